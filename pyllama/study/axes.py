"""Arrays whose axes have names, so that the indices of a formula say which axes belong together.

x_ti k_si has the axes t, i and s: what both factors share is multiplied number by number, the rest in all combinations.
"""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MOVED = "∂"                                     # the axis of a numerical derivative: another number moves in each row


class Array(NamedTuple):
    """Numbers and the names of their axes, all different."""
    axes: tuple[str, ...]
    data: np.ndarray


def aligned(arrays: Sequence[Array]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """(axes, data): all axes in the order in which they first appear; an array without one has length 1 there."""
    axes = tuple(dict.fromkeys(axis for a in arrays for axis in a.axes))
    return axes, [spread(a, axes) for a in arrays]


def spread(a: Array, axes: Sequence[str]) -> np.ndarray:
    """The data with these axes, which include those of a."""
    sizes = dict(zip(a.axes, a.data.shape, strict=True))
    data = a.data.transpose([a.axes.index(axis) for axis in axes if axis in a.axes])
    return data.reshape([sizes.get(axis, 1) for axis in axes])


def combined(function: Callable, *arrays: Array) -> Array:
    """function(*data), number by number."""
    axes, data = aligned(arrays)
    return Array(axes, np.asarray(function(*data)))


def reduced(function: Callable, a: Array, over: Sequence[str]) -> Array:
    """function(data, axis=...) over some axes."""
    places = tuple(a.axes.index(axis) for axis in over)
    left = tuple(axis for axis in a.axes if axis not in over)
    return Array(left, np.asarray(function(a.data, axis=places)))


def indexed(a: Array, indices: Sequence[Array]) -> Array:
    """The numbers at these indices, one array of integers for each axis.  A shared axis of the indices is a diagonal.

    Outside of an axis there are zeros: the state before the first step, the gradient from after the last one.

    >>> import numpy as np
    >>> from pyllama.study.axes import Array, indexed
    >>> x, i = Array(("N", "V"), np.array([[1, 2], [3, 4]])), Array(("n",), np.arange(2))
    >>> indexed(x, [i, i])
    Array(axes=('n',), data=array([1, 4]))
    """
    if not indices:
        return a
    axes, data = aligned(indices)
    inside = [(places >= 0) & (places < size) for places, size in zip(data, a.data.shape, strict=True)]
    if all(one.all() for one in inside):
        return Array(axes, np.asarray(a.data[tuple(data)]))
    found = a.data[tuple(np.where(here, places, 0) for here, places in zip(inside, data, strict=True))]
    return Array(axes, np.where(np.logical_and.reduce(np.broadcast_arrays(*inside)), found, 0))
