"""Computing with bfloat16: all arithmetic in float32, each result rounded once.

bfloat16 has float32's exponent and 8 bits of its significand.  It halves the memory of an array, and some processors
multiply it several times as fast.  Widening is exact; rounding is to nearest, ties to even.  See
docs/bfloat16.md.
"""
import functools
import operator

import numpy as np

from pyllama import backend
from pyllama.params import cast
from pyllama.shapes import is_bfloat16


def widened(x):
    """A bfloat16 array in float32, anything else as it is."""
    return cast(x, np.float32) if is_bfloat16(getattr(x, "dtype", None)) else x


def rounded(x, dtype):
    """x in this precision.  A NumPy scalar becomes a 0-d array."""
    return x if x.dtype == dtype else cast(np.asarray(x, like=x), dtype)


def in_float32(f, *arrays):
    """f(*arrays), rounded once to the precision of the first array if that is bfloat16.

    >>> import ml_dtypes
    >>> import numpy as np
    >>> from pyllama.low import in_float32
    >>> x = np.array([1, 1 / 256], ml_dtypes.bfloat16)
    >>> in_float32(lambda x: x + 1 + 1 / 256, x)          # x + 1 would have been rounded to 1 in the second entry
    array([2, 1.00781], dtype=bfloat16)
    """
    dtype = arrays[0].dtype
    return rounded(f(*map(widened, arrays)), dtype) if is_bfloat16(dtype) else f(*arrays)


def total(*arrays):
    """The sum of arrays of one shape and precision, added in their order.  A sum of bfloat16 is rounded once."""
    kernels = backend.kernels_for(arrays) if is_bfloat16(arrays[0].dtype) else None
    if hasattr(kernels, "total"):
        return kernels.total(list(arrays))
    return in_float32(lambda *addends: functools.reduce(operator.add, addends), *arrays)


class Rounded:
    """The two passes of an op in bfloat16, by its float32 kernels or, without any, by its reference.

    Outputs are bfloat16, but for single numbers, such as a loss.  The gradient of a weight, which the op names, is
    float32, because it is a sum over many rows; that of another input has the precision of the input.  Inputs and
    outputs are saved as they are given and returned, so that back keeps no copies of them in float32; all else is saved
    in float32.
    """

    def __init__(self, op):
        self.op = op

    def forward(self, *inputs, **options):
        precisions = [getattr(x, "dtype", None) for x in inputs]
        dtype = next(filter(is_bfloat16, precisions))
        wide = [widened(x) for x in inputs]
        (y, saved), backward, _ = self.op.run(wide, options)
        ys = self.op.each(y)
        outputs = tuple(rounded(a, dtype) if np.ndim(a) else a for a in ys)
        given = {id(a): b for a, b in zip((*wide, *ys), (*inputs, *outputs), strict=True)}
        kept = [given.get(id(a), a) for a in saved]         # first, at the places that saved_for gives
        return outputs if len(outputs) > 1 else outputs[0], (*kept, backward, precisions)

    def backward(self, dy, *saved, **options):
        *saved, backward, precisions = saved
        dys = widened(dy) if len(self.op.outputs) == 1 else tuple(map(widened, dy))
        grads = backward(dys, *map(widened, saved), **options)
        return [g if g is None or x.weight else rounded(g, dtype)
                for x, g, dtype in zip(self.op.inputs, grads, precisions, strict=False)]
