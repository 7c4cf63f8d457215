"""The CUDA kernels' own text, executed on the CPU: for tests on a machine without a GPU.

    y = memory.new((4,), np.float32)                        # "device memory", full of NaN
    module = Module(code, options=("-Dreal=float",), checked=True)
    module.get_function("relu")((1,), (32,), (y, x, y.size))        # in place; KernelError says what went wrong where

Found in every build: writes beside an array; barriers and warp primitives that threads do not reach together; accesses
to addresses that do not exist; launches and arguments that are not the kernel's; elements that no thread wrote, and
shared memory, as NaN; what depends on the order of threads and blocks, by running in another.
Found in the checked build: every access outside the arguments and shared arrays; races; reads of shared memory that was
never written; misaligned accesses; indices out of an array's bounds; overflow of signed integers.

Not found: anything about speed or resources; what a compiler for GPUs makes of the text, such as fused multiply-adds or
the last bits of its exp; pointers that are __restrict__ and overlap; reads of an argument that was never written, if
their NaN does not show; threads that meet at one line to which two calls led them.  Reported though harmless: races of
two bytes in one word of shared memory, or in one element of an array that is used as smaller ones.
"""
from tests.cuda_on_cpu import memory
from tests.cuda_on_cpu.errors import KernelError
from tests.cuda_on_cpu.module import Module

__all__ = ["KernelError", "Module", "memory"]
