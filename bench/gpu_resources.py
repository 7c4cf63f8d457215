"""Compile every CUDA kernel for all it is meant for, without a GPU, and say what it takes.

    python -m bench.gpu_resources [file ...] [--write]

Each file of csrc/cuda, in both precisions, with all that pyllama/cuda_text.py defines for it, for an A100 (sm_80), an
H100 (sm_90) and what the compiler knows of newer ones; by NVRTC, which CuPy uses, and by nvcc, where they are there.
A warning is an error, and so is what would make a kernel slow or fail at its launch: see gpu_compile.faults.  --write
keeps the tables in tests/golden, which the tests compare where the compiler is of that version: of another, registers
differ.
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
KEPT = ROOT / "build/gpu_resources"                 # what was compiled before, by its text, options and compiler
CARDS = {"sm_80": "A100", "sm_90": "H100"}          # that have a table
LINE = "{:23} {:27} {:6} {:>7} {:>9} {:>6} {:>5} {:>6} {:>6} {:>4}"
ABOUT = """\
# What a block of each kernel takes of a multiprocessor of an {}, compiled by {}.
# Registers, stack and spills are those of a thread, shared, stack and spills are bytes; how many blocks a
# multiprocessor holds at once, and how full of threads it is then.       python -m bench.gpu_resources --write
"""
HEAD = LINE.format("kernel", "for", "real", "threads", "registers", "shared", "stack", "spills", "blocks", "full")


def own(file):
    """The kernels that csrc/cuda/<file>.cu has, without those of the files before it."""
    return re.findall(r'^extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(',
                      (cuda_text.FOLDER / f"{file}.cu").read_text("utf-8"), re.MULTILINE)


def once(compiler, file, precision, defines, arch):
    """{kernel: Used} of the file's own.  CompileError if the compiler complains."""
    text, options = cuda_text.text(file), cuda_text.options(precision, defines)
    reading = Path(gpu_compile.__file__).read_text("utf-8")             # what is read from what a compiler says
    key = hashlib.sha256(repr((text, options, arch, compiler.version, reading)).encode()).hexdigest()
    kept = KEPT / f"{key[:32]}.json"
    if not kept.exists():
        used = compiled(compiler, text, options, arch)
        KEPT.mkdir(parents=True, exist_ok=True)
        rewrite(kept, [json.dumps({name: used[name] for name in own(file)}).encode()])
    return {name: Used(*values) for name, values in json.loads(kept.read_text()).items()}


def measure(compiler, file, precision, arch, apply=map):
    """{(kernel, what is defined): Used} of one file.  CompileError names what failed."""
    def one(defines):
        try:
            return once(compiler, file, precision, defines, arch)
        except CompileError as error:
            raise CompileError(f"{file}.cu, {cuda_text.REAL[precision]}, {named(defines)} {arch}, {compiler.version}:\n"
                               f"{error}") from None

    variants = cuda_text.variants(file, precision)
    return {(name, named(defines)): used for defines, found in zip(variants, apply(one, variants), strict=True)
            for name, used in found.items()}


def named(defines):
    return " ".join(f"{name}={value}" for name, value in defines.items())


def wrong(found, arch):
    """The faults of what measure() found, a sentence each."""
    return [f"{' '.join(filter(None, key))} on {arch}: {fault}" for key, used in found.items()
            for fault in faults(used, arch)]


def lines(found, precision, arch):
    """The table's lines; a kernel that all defines leave alike has one."""
    for name in sorted({name for name, _ in found}):
        rows = {defines: used for (kernel, defines), used in found.items() if kernel == name}
        if len({*rows.values()}) == 1:
            rows = {"": next(iter(rows.values()))}
        for defines, used in rows.items():
            blocks = at_once(used, arch)
            full = blocks * -(-used.threads // 32) / MULTIPROCESSORS[arch].warps
            yield LINE.format(name, defines, cuda_text.REAL[precision], *used, blocks, f"{full:.0%}")


def golden(arch):
    """(the version of the compiler that made the table, its lines)"""
    about, _, table = path(arch).read_text().partition(HEAD + "\n")
    return about.partition("compiled by ")[2].partition(".\n")[0], table.splitlines()


def path(arch):
    return GOLDEN / f"cuda_resources_{arch}.txt"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="file", help="of csrc/cuda, without .cu; all, or those named")
    parser.add_argument("--arch", nargs="+", choices=MULTIPROCESSORS, help="kinds of GPU; all, or those named")
    parser.add_argument("--compiler", choices=["NVRTC", "nvcc"], help="both, if they are there, or one")
    parser.add_argument("--write", action="store_true", help=f"keep the tables in {GOLDEN.relative_to(ROOT)}")
    options = parser.parse_args()
    if unknown := set(options.files) - set(cuda_text.files()):
        parser.error(f"there is no {min(unknown)}.cu; there are {', '.join(cuda_text.files())}")
    if options.write and options.files:
        parser.error("the tables that are kept are those of all files; name none")
    found, bad = [of for of in compilers() if of.version.startswith(options.compiler or "")], []
    if not found:
        return f"there is no {options.compiler or 'NVRTC and no nvcc'}: pip install cupy-cuda13x nvidia-cuda-nvrtc"
    with ThreadPoolExecutor(machine.cores()) as pool:
        for compiler, arch in itertools.product(found, options.arch or MULTIPROCESSORS):
            if arch not in compiler.archs:
                print(f"{compiler.version} does not know {arch}", file=sys.stderr)
                continue
            table = []
            for file, precision in itertools.product(options.files or cuda_text.files(), cuda_text.REAL):
                measured = measure(compiler, file, precision, arch, pool.map)
                bad += [f"{compiler.version}: {cuda_text.REAL[precision]} {fault}" for fault in wrong(measured, arch)]
                table += lines(measured, precision, arch)
            text = ABOUT.format(CARDS.get(arch, arch), compiler.version) + "\n".join([HEAD, *table, ""])
            if compiler is found[0] and arch in CARDS:
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
