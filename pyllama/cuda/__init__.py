"""The CUDA kernels under the ops' signatures: allocate, launch.  Products of matrices are cuBLAS's, through CuPy.

Nothing here waits for the device or copies from it: a launch returns at once, and what is made goes to whichever stream
and memory pool are current.  Op has checked shapes already.  A number that depends on data, such as how many targets
count, stays on the device, as an array of no axes; where a caller gives a number, either kind will do.

An id or a target outside the vocabulary gives NaN, where the CPU raises IndexError: to look would be to wait.  Results
are the same bits in every run: neither our kernels nor CuPy's sum() and argsort() leave an order to chance.
"""
from cupy import ndarray  # noqa: F401

from pyllama.cuda.attention import *  # noqa: F403 -- all that these offer is what the backend offers
from pyllama.cuda.ops import *  # noqa: F403
from pyllama.cuda.updates import *  # noqa: F403
