"""Compile every CUDA kernel in all its variants, without a GPU, and list the resources that each needs.

    python -m bench.gpu_resources [file ...] [--write]

Each file of csrc/cuda is compiled in both precisions, with each set of macros in pyllama/cuda_text.py, for an A100
(sm_80), an H100 (sm_90) and newer GPUs that the compiler knows; by NVRTC, which CuPy uses, and by nvcc, if installed.
A warning is an error, and so is a fault that makes a kernel slow or its launch fail: see gpu_compile.faults.  --write
saves the tables in tests/golden.  The tests compare them only with the same version of the compiler: other versions
use other numbers of registers.
"""
import argparse
import hashlib
import itertools
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import gpu_compile
from bench.gpu_compile import MULTIPROCESSORS, CompileError, Used, at_once, compiled, compilers, faults
from pyllama import cuda_text, machine
from pyllama.files import rewrite

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"
CACHE = ROOT / "build/gpu_resources"                 # earlier results, by text, options and compiler
CARDS = {"sm_80": "A100", "sm_90": "H100"}          # that have a table
LINE = "{:23} {:27} {:6} {:>7} {:>9} {:>6} {:>5} {:>6} {:>6} {:>4}"
HEADER = """\
# Resources that a block of each kernel uses on a multiprocessor of an {}, compiled by {}.
# Registers, stack and spills are per thread; shared, stack and spills are in bytes; blocks run at once on a
# multiprocessor and fill this share of its threads.                      python -m bench.gpu_resources --write
"""
TEXT = "# text of {} in {}: {}"                        # in the header, for files of many variants; see digest()
COLUMNS = LINE.format("kernel", "for", "real", "threads", "registers", "shared", "stack", "spills", "blocks", "full")


def kernels_in(file):
    """The names of the kernels that csrc/cuda/<file>.cu itself defines."""
    return re.findall(r'^extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(',
                      (cuda_text.FOLDER / f"{file}.cu").read_text("utf-8"), re.MULTILINE)


def resources(compiler, file, precision, defines, arch):
    """{kernel: Used} of the file's kernels, compiled or from an earlier result.  CompileError if compiling fails."""
    text, options = cuda_text.text(file), cuda_text.options(precision, defines)
    parser = Path(gpu_compile.__file__).read_text("utf-8")              # interprets the compiler's log
    key = hashlib.sha256(repr((text, options, arch, compiler.version, parser)).encode()).hexdigest()
    cache = CACHE / f"{key[:32]}.json"
    if not cache.exists():
        used = compiled(compiler, text, options, arch)
        CACHE.mkdir(parents=True, exist_ok=True)
        rewrite(cache, [json.dumps({name: used[name] for name in kernels_in(file)}).encode()])
    return {name: Used(*values) for name, values in json.loads(cache.read_text()).items()}


def measure(compiler, file, precision, arch, apply=map, variants=None):
    """{(kernel, macros): Used} of one file, in all variants or these.  CompileError names the variant that failed."""
    def variant(defines):
        try:
            return resources(compiler, file, precision, defines, arch)
        except CompileError as error:
            raise CompileError(f"{file}.cu, {cuda_text.REAL[precision]}, {named(defines)} {arch}, {compiler.version}:\n"
                               f"{error}") from None

    variants = variants or cuda_text.variants(file, precision)
    return {(name, named(defines)): used for defines, kernels in zip(variants, apply(variant, variants), strict=True)
            for name, used in kernels.items()}


def named(defines):
    return " ".join(f"{name}={value}" for name, value in defines.items())


def all_faults(measured, arch):
    """A sentence for each fault in a result of measure()."""
    return [f"{' '.join(filter(None, key))} on {arch}: {fault}" for key, used in measured.items()
            for fault in faults(used, arch)]


def lines(measured, precision, arch):
    """Yield the table's lines; a kernel whose variants are all alike has only one."""
    for name in sorted({name for name, _ in measured}):
        rows = {defines: used for (kernel, defines), used in measured.items() if kernel == name}
        if len({*rows.values()}) == 1:
            rows = {"": next(iter(rows.values()))}
        for defines, used in rows.items():
            blocks = at_once(used, arch)
            full = blocks * -(-used.threads // 32) / MULTIPROCESSORS[arch].warps
            yield LINE.format(name, defines, cuda_text.REAL[precision], *used, blocks, f"{full:.0%}")


def digest(file, precision):
    """Of all that the resources depend on, but the compiler and the GPU: the text and the options of each variant."""
    options = [cuda_text.options(precision, defines) for defines in cuda_text.variants(file, precision)]
    return hashlib.sha256(repr((cuda_text.text(file), options)).encode()).hexdigest()[:32]


def is_of_this_text(file, precision, arch):
    """Was the table made of the file as it is now?  Only files of many variants have their digests in it."""
    return TEXT.format(file, cuda_text.REAL[precision], digest(file, precision)) in path(arch).read_text().splitlines()


def taken(file, precision, arch):
    """{(kernel, macros): Used} of one file, as its table says: measure() when the table was made."""
    rows = {}
    for line in golden(arch)[1]:
        name, *words = line.split()
        defines = [word for word in words if "=" in word]
        real, *numbers = words[len(defines):]
        if real == cuda_text.REAL[precision]:
            rows[name, " ".join(defines)] = Used(*map(int, numbers[:len(Used._fields)]))
    every = [named(defines) for defines in cuda_text.variants(file, precision)]
    return {(name, defines): rows.get((name, ""), rows.get((name, defines))) for defines in every
            for name in kernels_in(file)}


def golden(arch):
    """(the version of the compiler that made the table, its lines)"""
    header, _, table = path(arch).read_text().partition(COLUMNS + "\n")
    return header.partition("compiled by ")[2].partition(".\n")[0], table.splitlines()


def path(arch):
    return GOLDEN / f"cuda_resources_{arch}.txt"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="file", help="names in csrc/cuda without .cu; all by default")
    parser.add_argument("--arch", nargs="+", choices=MULTIPROCESSORS, help="GPU architectures; all by default")
    parser.add_argument("--compiler", choices=["NVRTC", "nvcc"], help="use only this one; both by default")
    parser.add_argument("--write", action="store_true", help=f"save the tables in {GOLDEN.relative_to(ROOT)}")
    options = parser.parse_args()
    if unknown := set(options.files) - set(cuda_text.files()):
        parser.error(f"{min(unknown)}.cu does not exist; choose from {', '.join(cuda_text.files())}")
    if options.write and options.files:
        parser.error("--write saves the tables of all files; name none")
    installed = [compiler for compiler in compilers() if compiler.version.startswith(options.compiler or "")]
    if not installed:
        return f"{options.compiler or 'NVRTC or nvcc'} is missing: pip install cupy-cuda13x nvidia-cuda-nvrtc"
    bad = []
    with ThreadPoolExecutor(machine.cores()) as pool:
        for compiler, arch in itertools.product(installed, options.arch or MULTIPROCESSORS):
            if arch not in compiler.archs:
                print(f"{compiler.version} does not know {arch}", file=sys.stderr)
                continue
            table = []
            for file, precision in itertools.product(options.files or cuda_text.files(), cuda_text.REAL):
                measured = measure(compiler, file, precision, arch, pool.map)
                bad += [f"{compiler.version}: {cuda_text.REAL[precision]} {fault}" 
                        for fault in all_faults(measured, arch)]
                table += lines(measured, precision, arch)
            texts = [TEXT.format(file, cuda_text.REAL[precision], digest(file, precision))
                     for file, precision in itertools.product(cuda_text.VARIANTS, cuda_text.REAL)]
            text = HEADER.format(CARDS.get(arch, arch), compiler.version) + "\n".join([*texts, COLUMNS, *table, ""])
            if compiler is installed[0] and arch in CARDS:
                print(text)
                if options.write:
                    path(arch).write_text(text)
            print(f"{compiler.version}, {arch}: {len(table)} lines", file=sys.stderr)
    return "\n".join(bad) or 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CompileError as error:
        sys.exit(str(error))
