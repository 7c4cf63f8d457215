"""Compile CUDA kernels without a GPU, by NVRTC or nvcc, and read which resources a block of each needs."""
import contextlib
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from pyllama import cuda_text

REGISTERS = 65_536                              # per multiprocessor, and at most per block
STATIC = 48 * 1024                              # bytes of shared memory a block may have by default
RESERVED = 1024                                 # bytes of shared memory that CUDA takes per block
VERBOSE = "-v"                                  # option of ptxas: print the resources used
LAUNCH_BOUND = 5                                # EIATTR_MAX_THREADS of a cubin's .nv.info


class Multiprocessor(NamedTuple):
    """Its limits; CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""
    warps: int
    blocks: int
    shared: int                                 # bytes


MULTIPROCESSORS = {"sm_80": Multiprocessor(64, 32, 164 * 1024), "sm_90": Multiprocessor(64, 32, 228 * 1024),
                   "sm_100": Multiprocessor(64, 32, 228 * 1024), "sm_120": Multiprocessor(48, 24, 100 * 1024)}


class Used(NamedTuple):
    """Resources that a kernel uses."""
    threads: int                                # per block, at most
    registers: int                              # per thread
    shared: int                                 # bytes per block
    stack: int                                  # bytes per thread, in device memory
    spills: int                                 # bytes per thread stored there and loaded again


class CompileError(Exception):
    """The compiler's message."""


def at_once(used, arch):
    """The number of blocks that a multiprocessor runs at the same time; if 0, a launch fails."""
    has, warps = MULTIPROCESSORS[arch], -(-used.threads // 32)
    of_warp = -(-used.registers * 32 // 256) * 256                      # allocated 256 at a time,
    by_registers = REGISTERS // of_warp // 4 * 4 // warps               # a quarter for each of four schedulers
    by_shared = has.shared // (-(-(used.shared + RESERVED) // 128) * 128)
    return min(by_registers, by_shared, has.warps // warps, has.blocks)


def faults(used, arch):
    """Yield a sentence for each fault that makes a kernel slow or makes its launch fail."""
    if used.stack or used.spills:
        yield (f"{used.stack} bytes of stack and {used.spills} of spills: an array with an index unknown at "
               f"compile time, or too few registers")
    if used.shared > STATIC:
        yield f"{used.shared} bytes of static shared memory, more than {STATIC}"
    if not at_once(used, arch):
        yield f"not a single block of {used.threads} threads with {used.registers} registers each fits"


class Nvrtc:
    """The compiler that CuPy uses, loaded as CuPy loads it, but not by RawModule, which needs a device.

    RuntimeError or ImportError if it is missing.
    """

    def __init__(self):
        from cupy_backends.cuda.libs import nvrtc

        self.nvrtc, self.version = nvrtc, "NVRTC {}.{}".format(*nvrtc.getVersion())
        self.archs = {f"sm_{arch}" for arch in nvrtc.getSupportedArchs()}

    def compile(self, text, options, arch):
        """(the compiled module, the compiler's log)"""
        program = self.nvrtc.createProgram(text, "kernels.cu", (), ())
        try:
            self.nvrtc.compileProgram(program, (*options, f"-arch={arch}", f"--ptxas-options={VERBOSE}"))
            return self.nvrtc.getCUBIN(program), self.nvrtc.getProgramLog(program)
        except self.nvrtc.NVRTCError:
            raise CompileError(self.nvrtc.getProgramLog(program)) from None
        finally:
            self.nvrtc.destroyProgram(program)


class Nvcc:
    """The toolkit's compiler.  RuntimeError if it is not on the PATH."""

    def __init__(self):
        if not shutil.which("nvcc"):
            raise RuntimeError("nvcc is not on the PATH")
        self.version = "nvcc " + self.run("--version").stdout.rpartition(" V")[2].split()[0]
        self.archs = {arch.replace("compute", "sm") for arch in self.run("--list-gpu-arch").stdout.split()}

    def run(self, *arguments):
        return subprocess.run(["nvcc", *arguments], capture_output=True, text=True, check=False)

    def compile(self, text, options, arch):
        """(the compiled module, the compiler's log)"""
        with tempfile.TemporaryDirectory() as folder:
            source, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
            source.write_text(text, "utf-8")
            done = self.run(*options, f"-arch={arch}", "-Xptxas", VERBOSE, "-cubin", "-o", str(cubin), str(source))
            if done.returncode:
                raise CompileError(done.stderr)
            return cubin.read_bytes(), done.stderr


def compilers():
    """The compilers that are installed; NVRTC, which CuPy uses, first: it is twice as fast as nvcc."""
    installed = []
    for kind in (Nvrtc, Nvcc):
        with contextlib.suppress(ImportError, RuntimeError):
            installed.append(kind())
    return installed


def compiled(compiler, text, options, arch):
    """{kernel: Used}.  CompileError with the compiler's message, even if it is only a warning."""
    cubin, log = compiler.compile(text, options, arch)
    if complaints := [line for line in log.splitlines() if re.search(r"\b(warning|error)\b", line)]:
        raise CompileError("\n".join(complaints))
    bounds, used = dict(launch_bounds(cubin)), {}
    for entry in log.split("Compiling entry function '")[1:]:
        name = entry.partition("'")[0]
        stack, spilled, loaded = (max(map(int, bytes)) for bytes in zip(*re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry), strict=True))
        shared = re.search(r"(\d+) bytes smem", entry)
        used[name] = Used(bounds.get(name, cuda_text.THREADS), int(re.search(r"Used (\d+) registers", entry)[1]),
                          int(shared[1]) if shared else 0, stack, spilled + loaded)
    return used


def launch_bounds(cubin):
    """Yield (kernel, its __launch_bounds__) for the kernels of a module (an ELF file) that declare them."""
    start, = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]
    for name, _, _, _, begin, length in sections:
        name = cubin[sections[names][4] + name:].partition(b"\0")[0].decode()
        end = begin + length
        while name.startswith(".nv.info.") and begin < end:             # attributes: format, kind, and a value or its
            form, kind, value = struct.unpack_from("<BBH", cubin, begin)                                        # size
            if kind == LAUNCH_BOUND:
                x, y, z = struct.unpack_from("<3I", cubin, begin + 4)
                yield name.removeprefix(".nv.info."), x * y * z
            begin += 4 + (value if form == 4 else 0)
