"""Compile CUDA kernels without a GPU, by NVRTC or by nvcc, and say what a block of each takes of a multiprocessor."""
import contextlib
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from pyllama import cuda_text

REGISTERS = 65_536                              # of a multiprocessor, and the most that a block may have
STATIC = 48 * 1024                              # bytes that a block may share without asking the driver for more
RESERVED = 1024                                 # bytes of shared memory that a block takes besides its own
VERBOSE = "-v"                                  # of ptxas: say what is used
LAUNCH_BOUND = 5                                # EIATTR_MAX_THREADS of a cubin's .nv.info


class Multiprocessor(NamedTuple):
    """What it runs at once; CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""
    warps: int
    blocks: int
    shared: int                                 # bytes


MULTIPROCESSORS = {"sm_80": Multiprocessor(64, 32, 164 * 1024), "sm_90": Multiprocessor(64, 32, 228 * 1024),
                   "sm_100": Multiprocessor(64, 32, 228 * 1024), "sm_120": Multiprocessor(48, 24, 100 * 1024)}


class Used(NamedTuple):
    """By a kernel."""
    threads: int                                # of a block, at most
    registers: int                              # of a thread
    shared: int                                 # bytes of a block
    stack: int                                  # bytes of a thread that lie in device memory
    spills: int                                 # bytes that a thread stores there and loads again


class CompileError(Exception):
    """What the compiler had to say."""


def at_once(used, arch):
    """Blocks that a multiprocessor holds at the same time; 0: a launch fails."""
    has, warps = MULTIPROCESSORS[arch], -(-used.threads // 32)
    of_warp = -(-used.registers * 32 // 256) * 256                      # they are given out 256 at a time,
    by_registers = REGISTERS // of_warp // 4 * 4 // warps               # a quarter to each of four schedulers
    by_shared = has.shared // (-(-(used.shared + RESERVED) // 128) * 128)
    return min(by_registers, by_shared, has.warps // warps, has.blocks)


def faults(used, arch):
    """Why a kernel must not be as it is, in words."""
    if used.stack or used.spills:
        yield (f"{used.stack} bytes of stack and {used.spills} of spills: an array whose index is not known when it is "
               f"compiled, or too few registers")
    if used.shared > STATIC:
        yield f"{used.shared} bytes of static shared memory, more than {STATIC}"
    if not at_once(used, arch):
        yield f"not a single block of {used.threads} threads with {used.registers} registers each fits"


class Nvrtc:
    """The compiler that CuPy uses, found as CuPy finds it; not by RawModule, which asks the device for its kind.
    RuntimeError or ImportError where it is not."""

    def __init__(self):
        from cupy_backends.cuda.libs import nvrtc

        self.nvrtc, self.version = nvrtc, "NVRTC {}.{}".format(*nvrtc.getVersion())
        self.archs = {f"sm_{arch}" for arch in nvrtc.getSupportedArchs()}

    def compile(self, text, options, arch):
        """(the compiled module, what was said)"""
        program = self.nvrtc.createProgram(text, "kernels.cu", (), ())
        try:
            self.nvrtc.compileProgram(program, (*options, f"-arch={arch}", f"--ptxas-options={VERBOSE}"))
            return self.nvrtc.getCUBIN(program), self.nvrtc.getProgramLog(program)
        except self.nvrtc.NVRTCError:
            raise CompileError(self.nvrtc.getProgramLog(program)) from None
        finally:
            self.nvrtc.destroyProgram(program)


class Nvcc:
    """The toolkit's compiler.  RuntimeError where it is not on the PATH."""

    def __init__(self):
        if not shutil.which("nvcc"):
            raise RuntimeError("nvcc is not on the PATH")
        self.version = "nvcc " + self.run("--version").stdout.rpartition(" V")[2].split()[0]
        self.archs = {arch.replace("compute", "sm") for arch in self.run("--list-gpu-arch").stdout.split()}

    def run(self, *arguments):
        return subprocess.run(["nvcc", *arguments], capture_output=True, text=True, check=False)

    def compile(self, text, options, arch):
        """(the compiled module, what was said)"""
        with tempfile.TemporaryDirectory() as folder:
            source, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
            source.write_text(text, "utf-8")
            done = self.run(*options, f"-arch={arch}", "-Xptxas", VERBOSE, "-cubin", "-o", str(cubin), str(source))
            if done.returncode:
                raise CompileError(done.stderr)
            return cubin.read_bytes(), done.stderr


def compilers():
    """Those that are there; NVRTC first: it is CuPy's, and twice as fast as nvcc."""
    found = []
    for kind in (Nvrtc, Nvcc):
        with contextlib.suppress(ImportError, RuntimeError):
            found.append(kind())
    return found


def compiled(compiler, text, options, arch):
    """{kernel: Used}.  CompileError with what the compiler had to say, were it a warning only."""
    cubin, log = compiler.compile(text, options, arch)
    if complaints := [line for line in log.splitlines() if re.search(r"\b(warning|error)\b", line)]:
        raise CompileError("\n".join(complaints))
    bounds, used = dict(launch_bounds(cubin)), {}
    for said in log.split("Compiling entry function '")[1:]:
        name = said.partition("'")[0]
        stack, spilled, loaded = (max(map(int, bytes)) for bytes in zip(*re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said), strict=True))
        shared = re.search(r"(\d+) bytes smem", said)
        used[name] = Used(bounds.get(name, cuda_text.THREADS), int(re.search(r"Used (\d+) registers", said)[1]),
                          int(shared[1]) if shared else 0, stack, spilled + loaded)
    return used


def launch_bounds(cubin):
    """Yield (kernel, its __launch_bounds__) of a module, an ELF file, for those that state one."""
    start, = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]
    for name, _, _, _, begin, length in sections:
        name = cubin[sections[names][4] + name:].partition(b"\0")[0].decode()
        end = begin + length
        while name.startswith(".nv.info.") and begin < end:             # attributes: a format, a kind, a value or its
            form, kind, value = struct.unpack_from("<BBH", cubin, begin)                                        # size
            if kind == LAUNCH_BOUND:
                x, y, z = struct.unpack_from("<3I", cubin, begin + 4)
                yield name.removeprefix(".nv.info."), x * y * z
            begin += 4 + (value if form == 4 else 0)
