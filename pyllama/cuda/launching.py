"""Compile a CUDA kernel and launch it; CuPy compiles a module on first use and keeps the result on disk."""
from functools import cache

import cupy

from pyllama import cuda_text
from pyllama.cuda_text import THREADS


@cache
def module(file, precision, defines, device):
    """csrc/cuda/<file>.cu compiled in the precision "f" or "d", with these (name, value) macros.

    Raises ValueError if cuda_text lacks the variant.
    """
    if dict(defines) not in cuda_text.variants(file, precision):
        raise ValueError(f"{file}.cu is not tested for {dict(defines)}; list it in pyllama/cuda_text.py")
    return cupy.RawModule(code=cuda_text.text(file), options=cuda_text.options(precision, dict(defines)))


@cache
def kernel(name, file, precision, defines, device):
    return module(file, precision, defines, device).get_function(name)


def launch(name, blocks, *args, file=None, threads=THREADS, **defines):
    """Launch name<<<blocks, threads>>>(*args).

    blocks   a number or a tuple of numbers; if one is 0, nothing is launched
    args     arrays, ints and floats; the first is an array and determines the precision
    file     the .cu file, if its name is not that of the kernel
    defines  macros of the variant
    """
    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    if all(grid):
        device = cupy.cuda.runtime.getDevice()
        kernel(name, file or name.removesuffix("_backward"), args[0].dtype.char, tuple(defines.items()), device)(
            grid, (threads,), args)


def dense(*arrays):
    """The arrays, copied if they are not C-contiguous."""
    return [cupy.ascontiguousarray(a) for a in arrays]


def aligned(n, *arrays):
    """1 if rows of n numbers may be loaded 16 bytes at a time, otherwise 0."""
    return int(n * arrays[0].itemsize % 16 == 0 and all(a.data.ptr % 16 == 0 for a in arrays))


def threads_for(n, x):
    """The threads of a block for rows of n numbers of x's dtype: one for every 16 bytes, in whole warps."""
    return min(THREADS, max(1, -(-n * x.itemsize // 512)) * 32)


def elementwise(name, outputs, inputs, *rest, **options):
    """Launch an elementwise kernel with a thread for every 16 bytes of the outputs.  `rest` follows the arrays."""
    n, at_once = outputs[0].size, THREADS * 16 // outputs[0].itemsize
    launch(name, -(-n // at_once), *outputs, *inputs, *rest, n, aligned(n, *outputs, *inputs), **options)
    return outputs


def in_place(*arrays):
    """Raise ValueError unless the arrays are C-contiguous."""
    if not all(a.flags.c_contiguous for a in arrays):
        raise ValueError("an array that is updated in place must be contiguous; copy it first")


def number(value, dtype):
    """A Python number or a 0-d array as a 0-d array on the device."""
    return value.astype(dtype, copy=False) if isinstance(value, cupy.ndarray) else cupy.full((), value, dtype)
