"""Bindings of the CUDA kernels, with the ops' signatures: allocate, launch.  Matrix products are cuBLAS's, by CuPy.

Nothing here waits for the device or copies from it.  A launch returns at once and uses the current stream and memory
pool.  Op has checked the shapes already.  A number that depends on data, such as the number of targets that count,
stays on the device as a 0-d array.  Callers may pass a Python number or a 0-d array.

An id or a target outside the vocabulary gives NaN.  The CPU raises IndexError instead; a check on the GPU would have
to wait for it.  Every run gives the same bits, because our kernels and CuPy's sum() and argsort() are deterministic.
"""
from cupy import ndarray  # noqa: F401

from pyllama.cuda.attention import *  # noqa: F403 -- the backend has all names of these modules
from pyllama.cuda.ops import *  # noqa: F403
from pyllama.cuda.updates import *  # noqa: F403
