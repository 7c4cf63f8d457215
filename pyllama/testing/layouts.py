"""The same numbers in another memory layout: what a function must not notice.

    from pyllama.testing.layouts import LAYOUTS
    for name, lay_out in LAYOUTS.items():
        dx = back(lay_out(dy))                      # always the same dx

Each function returns a new array of x's shape, dtype and bits, whatever these are.  An array that is too small for a
layout (one number, or none, has no order) comes as an ordinary one.  The gaps in memory hold other numbers of x: code
that reads across them gets wrong numbers, never invalid ones.
"""
import functools
import inspect
from collections.abc import Callable

import numpy as np


def in_rows(x):
    """C order: the last axis is contiguous."""
    return np.array(x, order="C")


def in_columns(x):
    """Fortran order: the first axis is contiguous."""
    return np.array(x, order="F")


def transposed(x):
    """The last two axes swapped in memory, as after x.swapaxes(-1, -2)."""
    if x.ndim < 2:
        return in_rows(x)
    return in_rows(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def strided(x):
    """Every second number of a larger array, along each axis."""
    gaps = flipped(x).copy()
    for axis in range(x.ndim):
        gaps = gaps.repeat(2, axis)
    return filled(every(2, gaps), x)


def sliced(x):
    """Part of a longer last axis, as one of the parts of a fused projection: rows are contiguous, but apart."""
    if not x.ndim:
        return in_rows(x)
    gaps = np.concatenate([in_rows(flipped(x))] * 3, axis=-1, dtype=x.dtype)     # the default is native byte order
    n = x.shape[-1]
    return filled(gaps[..., n:2 * n], x)


def negative(x):
    """Negative strides: an array that is read backward along each axis."""
    return flipped(flipped(x).copy())


def broadcast(x):
    """Stride 0 along each axis along which x repeats its first entry; read-only.  See repeated()."""
    axes = [axis for axis in range(x.ndim) if repeated(x, axis).tobytes() == x.tobytes()]
    once = tuple(slice(0, 1 if axis in axes else None) for axis in range(x.ndim))
    return np.broadcast_to(in_rows(x[(*once, ...)]), x.shape)


def read_only(x):
    """An array that refuses to be written to."""
    x = in_rows(x)
    x.flags.writeable = False
    return x


def misaligned(x):
    """An address that is not a multiple of the size of a number, as in a file that is mapped into memory."""
    bytes_ = np.zeros(x.nbytes + 1, np.uint8)
    return filled(bytes_[1:].view(x.dtype).reshape(x.shape), x)


def every(step, x):
    """A view of each step-th number along each axis."""
    return x[(*[slice(None, None, step)] * x.ndim, ...)]


def flipped(x):
    return every(-1, x)


def filled(view, x):
    view[...] = x
    return view


def repeated(x, axis=0):
    """The first entry of x along an axis, repeated with stride 0.  These are other numbers than those of x.

    x       an array of at least one axis
    returns a read-only view of x, of its shape

    >>> import numpy as np
    >>> from pyllama.testing.layouts import repeated
    >>> repeated(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[1., 2.],
           [1., 2.]])
    """
    return np.broadcast_to(x.take([0] if x.shape[axis] else [], axis), x.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": in_rows,
    "F": in_columns,
    "transposed": transposed,
    "strided": strided,
    "sliced": sliced,
    "negative": negative,
    "broadcast": broadcast,
    "read-only": read_only,
    "misaligned": misaligned,
}


def laid_out(function: Callable, dy: str = "C", **inputs: str) -> Callable:
    """The function with its inputs and dy in other layouts: y, back = laid_out(f, x="strided", dy="negative")(x, w).

    inputs      the layout of each input by its name; others stay as they are given

    Raises ValueError for a name that is not a parameter, and for a layout that does not exist.

    >>> import numpy as np
    >>> from pyllama.testing.layouts import laid_out
    >>> y, back = laid_out(lambda x: (x.strides, lambda dy: dy.strides), x="strided", dy="negative")(np.ones(3))
    >>> y, back(np.ones(3))
    ((16,), (-8,))
    """
    names = [*inspect.signature(function).parameters]
    if unknown := {*inputs} - {*names}:
        raise ValueError(f"{min(unknown)!r} is not a parameter; the parameters are {', '.join(names)}")
    if unknown := {dy, *inputs.values()} - {*LAYOUTS}:
        raise ValueError(f"there is no layout {min(unknown)!r}; the layouts are {', '.join(LAYOUTS)}")

    @functools.wraps(function)
    def called(*arguments):
        of_each = [inputs.get(name, "C") for name in names] + ["C"] * len(arguments)        # there may be *arguments
        result = function(*map(converted, arguments, of_each))
        if dy == "C" or not (isinstance(result, tuple | list) and len(result) == 2 and callable(result[1])):
            return result
        y, back = result
        return y, lambda d: back(tuple(converted(each, dy) for each in d) if isinstance(d, tuple) else converted(d, dy))

    return called


def converted(x, name):
    """x itself where nothing is to be changed: a function that writes to its inputs can then be found out."""
    return LAYOUTS[name](x) if isinstance(x, np.ndarray) and name != "C" else x
