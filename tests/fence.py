"""Arrays at the edge of memory that may not be touched: a kernel that goes beyond ends by a segmentation fault."""
import ctypes
import mmap
import sys

import numpy as np
import pytest

can_fence = pytest.mark.skipif(sys.platform == "win32", reason="memory is protected by other means there")


def fenced(x, behind=True):
    """A copy of x at the very edge of memory that may not be touched: behind it, or before it."""
    page = mmap.PAGESIZE
    size = -(-x.nbytes // page) * page
    room = mmap.mmap(-1, page + size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for fence in (address, address + page + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    copy = np.frombuffer(room, x.dtype, x.size, page + (size - x.nbytes if behind else 0)).reshape(x.shape)
    copy[...] = x
    return copy


def fence_results(patch, behind=True):
    """Until the patch is undone, let what np.empty makes be fenced: kernels' results and their scratch memory."""
    empty = np.empty
    patch.setattr(np, "empty", lambda *args, **options: fenced(empty(*args, **options), behind))
