"""Arrays beside protected memory pages: a kernel that reads or writes past an array ends with a segmentation fault."""
import ctypes
import mmap
import sys

import numpy as np
import pytest

library = ctypes.CDLL(None) if sys.platform != "win32" else None            # made once: each makes a class
can_fence = pytest.mark.skipif(sys.platform == "win32", reason="Windows protects memory by other calls")


def fenced(x, behind=True):
    """A copy of x that ends (or, without behind, begins) exactly where a protected page begins (ends)."""
    page = mmap.PAGESIZE
    size = -(-x.nbytes // page) * page
    room = mmap.mmap(-1, page + size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for fence in (address, address + page + size):
        assert library.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    copy = np.frombuffer(room, x.dtype, x.size, page + (size - x.nbytes if behind else 0)).reshape(x.shape)
    copy[...] = x
    return copy


def fence_results(patch, behind=True):
    """Until the patch is undone, np.empty returns fenced arrays: the kernels' results and scratch memory."""
    empty = np.empty
    patch.setattr(np, "empty", lambda *args, **options: fenced(empty(*args, **options), behind))
