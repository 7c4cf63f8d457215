"""Compile a CUDA kernel and launch it; CuPy compiles a module on first use and keeps the result on disk."""
from functools import cache

import cupy

from pyllama import cuda_text
from pyllama.cuda_text import THREADS


@cache
def module(file, precision, defines, device):
    """What csrc/cuda/<file>.cu is for "f" or "d", with these (name, value) defined."""
    if dict(defines) not in cuda_text.variants(file, precision):
        raise ValueError(f"{file}.cu is not tested for {dict(defines)}; list it in pyllama/cuda_text.py")
    return cupy.RawModule(code=cuda_text.text(file), options=cuda_text.options(precision, dict(defines)))


@cache
def kernel(name, file, precision, defines, device):
    return module(file, precision, defines, device).get_function(name)


def launch(name, blocks, *args, file=None, threads=THREADS, **defines):
    """name<<<blocks, threads>>>(*args): arrays, of which the first gives the precision, int and float.

    blocks is a number or a tuple of them; if it is 0, there is nothing to do.
    """
    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    if all(grid):
        device = cupy.cuda.runtime.getDevice()
        kernel(name, file or name.removesuffix("_backward"), args[0].dtype.char, tuple(defines.items()), device)(
            grid, (threads,), args)


def dense(*arrays):
    """The arrays as C-contiguous ones: themselves if they are."""
    return [cupy.ascontiguousarray(a) for a in arrays]


def aligned(n, *arrays):
    """May rows of n numbers be loaded 16 bytes at a time?  1 or 0, for the kernels."""
    return int(n * arrays[0].itemsize % 16 == 0 and all(a.data.ptr % 16 == 0 for a in arrays))


def threads_for(n, x):
    """Of a block that has rows of n numbers like those of x: 16 bytes for each thread, in whole warps."""
    return min(THREADS, max(1, -(-n * x.itemsize // 512)) * 32)


def elementwise(name, outputs, inputs, *rest, **options):
    """A thread for every 16 bytes of the outputs; what is in `rest` follows the arrays."""
    n, at_once = outputs[0].size, THREADS * 16 // outputs[0].itemsize
    launch(name, -(-n // at_once), *outputs, *inputs, *rest, n, aligned(n, *outputs, *inputs), **options)
    return outputs


def in_place(*arrays):
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("an array that is updated in place must be contiguous; copy it first")


def number(value, dtype):
    """A number as an array on the device, whether it is one already or not."""
    return value.astype(dtype, copy=False) if isinstance(value, cupy.ndarray) else cupy.full((), value, dtype)
