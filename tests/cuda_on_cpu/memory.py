"""Device memory: NumPy arrays that lie between guard zones and whose allocation is found by address.

(a) An allocation is full of 0xFF when it is new: NaN to whoever reads it as floats.
(b) GUARD bytes of 0xFF lie on each side: a write beside an array lands in them, and each launch looks at them.
(c) Views have addresses, too: whatever slicing, transposing or reshaping makes of an array belongs to its allocation.
(d) The array owns its memory as any array of NumPy does; when the last view dies, the allocation is forgotten.
"""
import bisect
import math
import threading
import weakref

import numpy as np

from tests.cuda_on_cpu.errors import KernelError

GUARD = 16 << 10                                            # bytes on each side
ALIGNMENT = 256                                             # of CUDA's allocations
MAX_SHARED = 227 << 10                                      # bytes that a block can have at most

_lows: list[int] = []                                       # of live allocations, ascending
_highs: dict[int, int] = {}
_lock = threading.RLock()                                   # collecting garbage may end an allocation under the lock


def new(shape, dtype):
    """A new array in device memory, full of 0xFF bytes."""
    shape = (shape,) if np.ndim(shape) == 0 else tuple(shape)
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    owner = np.full(GUARD + size + GUARD + ALIGNMENT, 0xFF, np.uint8)
    start = GUARD + -(owner.ctypes.data + GUARD) % ALIGNMENT
    low = owner.ctypes.data + start
    with _lock:
        bisect.insort(_lows, low)
        _highs[low] = low + size
    weakref.finalize(owner, _forget, low).atexit = False
    return np.ndarray(shape, dtype, owner, start)


def allocation_of(array):
    """(low, high), the addresses of the allocation that the array lies in.

    TypeError if it is not an array, KernelError if it is not in device memory.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"an array in device memory is needed, not {type(array).__name__}")
    first, last = np.lib.array_utils.byte_bounds(array)
    with _lock:
        i = bisect.bisect_right(_lows, first)
        low = _lows[i - 1] if i else 0
        high = _highs.get(low, 0)
    if not low <= first <= last <= high:
        raise KernelError(f"an array of shape {array.shape} is not in device memory; memory.new makes one that is")
    return low, high


def used():
    """The bytes of all live allocations."""
    with _lock:
        return sum(high - low for low, high in _highs.items())


def _forget(low):
    with _lock:
        del _lows[bisect.bisect_left(_lows, low)], _highs[low]
