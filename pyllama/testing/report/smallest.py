"""The smallest failing case: shorter axes and simpler numbers, as long as the case still fails.

Sizes shrink first.  Axes of equal length are probably one axis of the function, so they shrink together, then alone.
Numbers become eighths, then 0, 1 or ½ where that is enough; integers go towards 0.
"""
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pyllama.testing.calls import OutOfTime
from pyllama.testing.report.pasted import as_python
from pyllama.testing.trees import copies

__all__ = ["as_python", "smallest"]

LENGTHS = (1, 2, 3)                                 # to which an axis is cut; then it is halved
SIMPLE = (0.0, 1.0, 0.5)                            # the simplest number first
MANY = 256                                          # entries that are changed one by one
Leaves = list[Any]


class Search:
    """The smallest leaves so far.

    take(candidate)     make the candidate the smallest if it fails; return whether it does.  Raises OutOfTime
    """

    def __init__(self, fails: Callable[[Leaves], bool], leaves: Leaves, deadline: float | None):
        self.fails, self.leaves, self.deadline, self.changed = fails, list(leaves), deadline, False

    def take(self, candidate: Leaves) -> bool:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime
        try:
            with np.errstate(all="ignore"):
                taken = bool(self.fails(copies(candidate)))
        except Exception:
            taken = False
        if taken:
            self.leaves, self.changed = candidate, True
        return taken


def smallest(fails: Callable[[Leaves], bool], leaves: Leaves, deadline: float | None = None) -> Leaves:
    """Smaller leaves for which fails(leaves) is still true: no single step makes them smaller.

    fails       does the case fail in the same way?  An exception counts as no
    leaves      arrays, or None for an input left out; they stay as they are
    deadline    by time.monotonic(), when to return what was found so far; None: there is no limit

    >>> import numpy as np
    >>> from pyllama.testing.report.smallest import smallest
    >>> smallest(lambda leaves: leaves[0].max() > 0.3, [np.array([[0.1, 0.7], [0.9, -2.0]])])
    [array([[1.]])]
    """
    search = Search(fails, leaves, deadline)
    with contextlib.suppress(OutOfTime):
        search.changed = True
        while search.changed:
            search.changed = False
            shorten(search)
            simplify(search)
    return search.leaves


def shorten(search: Search) -> None:
    """Cut axes: those of one length together, the longest first; then each alone."""
    for length in sorted({size for _, _, size in axes(search.leaves)}, reverse=True):
        cut(search, [(i, axis) for i, axis, size in axes(search.leaves) if size == length])
    for i, axis, _ in axes(search.leaves):
        cut(search, [(i, axis)])


def axes(leaves: Leaves) -> list[tuple[int, int, int]]:
    """(number of the leaf, axis, its length) of all axes."""
    return [(i, axis, size) for i, x in enumerate(leaves) if x is not None for axis, size in enumerate(x.shape)]


def cut(search: Search, chosen: list[tuple[int, int]]) -> None:
    """Cut these axes, which have one length, as short as possible."""
    while chosen:
        (i, axis), leaves = chosen[0], search.leaves
        length = leaves[i].shape[axis]
        sizes = (size for size in sorted({*LENGTHS, length // 2, length - 1}) if 0 < size < length)
        if not any(search.take(candidate) for size in sizes for candidate in parts(leaves, chosen, size)):
            return


def parts(leaves: Leaves, chosen: list[tuple[int, int]], size: int) -> Iterator[Leaves]:
    """The leaves with the first or the last `size` of these axes, and ids below `size`."""
    for part in (slice(size), slice(-size, None)):
        shorter = list(leaves)
        for i, axis in chosen:
            shorter[i] = shorter[i][(slice(None),) * axis + (part,)]
        yield shorter
        if any(map(is_integer, leaves)):
            yield [x % size if is_integer(x) else x for x in shorter]


def is_integer(x) -> bool:
    return x is not None and x.dtype.kind in "iu"


def simplify(search: Search) -> None:
    """Take simpler numbers: whole arrays first, then entry by entry."""
    for i, x in enumerate(search.leaves):
        if x is not None and x.size:
            any(search.take(replaced(search.leaves, i, candidate)) for candidate in whole(x))
    for i, x in enumerate(search.leaves):
        for index in np.ndindex(x.shape) if x is not None and x.size <= MANY else ():
            any(search.take(with_entry(search.leaves, i, index, value)) for value in values(x[index]))


def replaced(leaves: Leaves, i: int, x: np.ndarray) -> Leaves:
    return [*leaves[:i], x, *leaves[i + 1:]]


def with_entry(leaves: Leaves, i: int, index: tuple, value) -> Leaves:
    x = leaves[i].copy()
    x[index] = value
    return replaced(leaves, i, x)


def whole(x: np.ndarray) -> Iterator[np.ndarray]:
    """Arrays all of whose numbers are at least as simple as those of x, and one is simpler."""
    if x.dtype.kind in "iub":
        candidates: list[Any] = [np.zeros_like(x), x // 2 if x.dtype.kind != "b" else x]
    else:
        rounded = np.where(np.isfinite(x), np.round(x.astype(float) * 8) / 8, x.astype(float))
        candidates = [np.full_like(x, value) for value in SIMPLE] + [rounded.astype(x.dtype)]
    have = complexity(x)
    for candidate in candidates:
        cost = complexity(candidate)
        if (cost <= have).all() and (cost < have).any():
            yield candidate


def values(value) -> Iterator[Any]:
    """Simpler numbers than this one, the simplest first."""
    if np.issubdtype(value.dtype, np.floating) or value.dtype.kind not in "iub":
        eighths = round(float(value) * 8) / 8 if np.isfinite(float(value)) else 1.0
        candidates = [*SIMPLE, float(round(eighths)), eighths]
    else:
        candidates = [0, int(value) // 2, int(value) - 1 if value > 0 else int(value) + 1]
    have = complexity(value)
    yield from (v for v in candidates if complexity(np.asarray(v, value.dtype)) < have)


def complexity(x) -> np.ndarray:
    """How hard each number is to read: 0, 1, ½, other eighths by their size, then all others."""
    x = np.asarray(x)
    if x.dtype.kind in "iub":
        return np.abs(x.astype(float)) + 0.5 * (x.astype(float) < 0)
    x = x.astype(float)
    eighths = 10 + np.minimum(np.abs(x), 1e6) + (x != np.round(x)) + 0.5 * (x < 0)
    cost = np.where(np.isfinite(x) & (x * 8 == np.round(x * 8)), eighths, 1e9)
    for rank, value in enumerate(SIMPLE):
        cost = np.where((x == value) & ~np.signbit(x), rank, cost)
    return cost
