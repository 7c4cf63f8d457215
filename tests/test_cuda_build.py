"""Every CUDA kernel is compiled for real GPUs, without one: no warning, no spill, nothing that a launch would refuse.

No kernel is named: to be in csrc/cuda is to be compiled, for all that pyllama/cuda_text.py defines.  Here one compiler
does it for two kinds of GPU; `python -m bench.gpu_resources` asks every compiler, for newer GPUs too.
"""
import importlib
import re

import pytest

from bench import gpu_compile, gpu_resources
from bench.gpu_compile import CompileError, Used, at_once, compiled, faults
from pyllama import cuda_text
from tests import fakecupy

FEW = 10                                            # variants: files with more leave double on sm_80 to the command
COMPILERS = gpu_compile.compilers()
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="no NVRTC and no nvcc: pip install cupy-cuda13x "
                                                          "nvidia-cuda-nvrtc")
by_each_compiler = pytest.mark.parametrize("compiler", COMPILERS or [pytest.param(None, marks=needs_compiler)],
                                           ids=[compiler.version for compiler in COMPILERS] or ["none"])
JOBS = [(file, precision, arch) for arch in gpu_resources.CARDS for file in cuda_text.files()
        for precision in cuda_text.REAL
        if len(cuda_text.variants(file, precision)) <= FEW or (precision, arch) != ("d", "sm_80")]


@needs_compiler
@pytest.mark.parametrize(("file", "precision", "arch"), JOBS, ids=lambda of: cuda_text.REAL.get(of, of))
def test_a_kernel_compiles_and_takes_what_it_took(file, precision, arch):
    """Register counts are compared where the compiler is of the version that the table was made by: each version has
    its own.  After a change that is meant: python -m bench.gpu_resources --write, and look at the difference.

    Where this compiler made the table of this very text, it would only repeat itself.  Then of the many variants of
    attention the first and the last are compiled, and the table says what the others take.
    """
    version, lines = gpu_resources.golden(arch)
    measured, variants = {}, cuda_text.variants(file, precision)
    if version == COMPILERS[0].version and gpu_resources.is_of_this_text(file, precision, arch):
        measured, variants = gpu_resources.taken(file, precision, arch), [variants[0], variants[-1]]
    measured |= gpu_resources.measure(COMPILERS[0], file, precision, arch, variants=variants)
    assert gpu_resources.all_faults(measured, arch) == []
    if version == COMPILERS[0].version:
        names = set(gpu_resources.kernels_in(file))
        assert list(gpu_resources.lines(measured, precision, arch)) == [
            line for line in lines if line.split()[0] in names and f" {cuda_text.REAL[precision]} " in line]


@pytest.mark.parametrize("arch", gpu_resources.CARDS)
def test_the_table_has_every_kernel_and_no_other(arch):
    _, lines = gpu_resources.golden(arch)
    kernels = {name for file in cuda_text.files() for name in gpu_resources.kernels_in(file)}
    assert {line.split()[0] for line in lines} == kernels


@pytest.mark.parametrize("arch", gpu_resources.CARDS)
@pytest.mark.parametrize("file", cuda_text.VARIANTS)
def test_the_table_says_what_was_measured_of_a_text_and_of_no_other(file, arch, monkeypatch):
    _, lines = gpu_resources.golden(arch)
    for precision, real in cuda_text.REAL.items():
        of_file = [line for line in lines if line.split()[0] in gpu_resources.kernels_in(file) and f" {real} " in line]
        taken = gpu_resources.taken(file, precision, arch)
        assert len(taken) == len(gpu_resources.kernels_in(file)) * len(cuda_text.variants(file, precision))
        assert list(gpu_resources.lines(taken, precision, arch)) == of_file
        with monkeypatch.context() as patch:
            patch.setattr(cuda_text, "text", lambda file, of=cuda_text.text: of(file) + "\n")
            assert not gpu_resources.is_of_this_text(file, precision, arch)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_text, "options", lambda *variant: (*variant, "-G"))
            assert not gpu_resources.is_of_this_text(file, precision, arch)


def test_every_kernel_of_a_file_is_found():
    """By its name in the text: the gate looks at no other."""
    for file in cuda_text.files():
        text = (cuda_text.FOLDER / f"{file}.cu").read_text()
        assert len(gpu_resources.kernels_in(file)) == len(re.findall("__global__", text)) > 0


def test_a_launch_of_what_is_not_compiled_here_is_refused():
    with fakecupy.installed(), pytest.raises(ValueError, match=r"^rms_norm\.cu is not tested for .*WIDTH.*; list it"):
        importlib.import_module("pyllama.cuda.launching").module("rms_norm", "f", (("WIDTH", 64),), 0)


BODIES = {                                                              # what must be refused, and in which words
    "a variable without use": ("int i; x[0] = 1;", "was declared but never referenced"),
    "a misspelled pragma": ("\n#pragma unrol\nfor (int i = 0; i < n; i++) x[i] = 1;", "unrecognized #pragma"),
    "an array indexed at run time": ("float a[64]; for (int i = 0; i < n; i++) a[i % 64] = x[i]; x[0] = a[n % 64];",
                                     "256 bytes of stack"),
    "too few registers": ("float a[300];\n#pragma unroll\nfor (int i = 0; i < 300; i++) a[i] = x[i];\n"
                          "__syncthreads();\n#pragma unroll\nfor (int i = 0; i < 300; i++) x[i + n] = a[i];",
                          "of spills"),
    "too much shared memory": ("__shared__ float a[12300]; a[n] = x[n]; __syncthreads(); x[n] = a[n + 1];",
                               "uses too much shared data"),
    "a name that is not there": ("x[0] = nothing;", 'identifier "nothing" is undefined'),
}


@by_each_compiler
@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_what_the_gate_refuses(compiler, body, words):
    said = []
    try:
        used = compiled(compiler, f'extern "C" __global__ void f(float *x, int n) {{ {body} }}', (), "sm_90")
        said += faults(used["f"], "sm_90")
    except CompileError as error:
        said.append(str(error))
    assert words in "\n".join(said)


@by_each_compiler
def test_what_is_used_is_read_from_what_the_compiler_says(compiler):
    text = """
        extern "C" __global__ void __launch_bounds__(96) sum(float *x, int n) {
            __shared__ float room[100];
            room[threadIdx.x] = x[n];
            __syncthreads();
            x[threadIdx.x] = room[95 - threadIdx.x];
        }
        extern "C" __global__ void unbound(float *x) { x[threadIdx.x] = 1; }"""
    used = compiled(compiler, text, (), "sm_80")
    assert used.keys() == {"sum", "unbound"}
    assert used["sum"]._replace(registers=0) == Used(96, 0, 400, 0, 0)
    assert used["unbound"]._replace(registers=0) == Used(cuda_text.THREADS, 0, 0, 0, 0)
    assert all(2 <= u.registers <= 32 for u in used.values())


@pytest.mark.parametrize(("arch", "threads", "registers", "shared", "blocks"), [
    ("sm_80", 256, 32, 0, 8),                       # full of threads
    ("sm_80", 256, 33, 128, 6),                     # 33 registers are 40: 1,280 of a warp, 48 of 51 warps by fours
    ("sm_80", 128, 255, 0, 2),                      # 8 warps
    ("sm_80", 32, 16, 0, 32),                       # as many blocks as there may be
    ("sm_80", 128, 64, 28160, 5),                   # 28 KiB and the one that is reserved, of 164
    ("sm_90", 128, 64, 28160, 8),                   # of 228
    ("sm_90", 128, 64, 28161, 7),                   # in steps of 128 bytes
    ("sm_120", 256, 32, 0, 6),                      # 48 warps
    ("sm_90", 1024, 64, 0, 1),
    ("sm_90", 1024, 72, 0, 0),                      # "too many resources requested for launch"
])
def test_how_many_blocks_fit(arch, threads, registers, shared, blocks):
    """As in CUDA's cuda_occupancy.h."""
    assert at_once(Used(threads, registers, shared, 0, 0), arch) == blocks
    assert list(faults(Used(threads, registers, shared, 0, 0), arch)) == (
        [] if blocks else [f"not a single block of {threads} threads with {registers} registers each fits"])
