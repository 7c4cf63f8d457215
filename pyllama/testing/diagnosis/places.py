"""Hypotheses about where a gradient is wrong, if it is right elsewhere.

A pattern is stated only if the wrong entries fill it exactly, and so many others are right that chance would not have
chosen these.
"""
import math
from collections.abc import Iterator

import numpy as np

from pyllama.testing.diagnosis.constants import short
from pyllama.testing.diagnosis.evidence import Evidence

SEVERAL = 4                                         # entries that one formula does not fit by chance
JUMP = 100                                          # tolerances
SHAPED, VALUED = 50, 10_000                            # choices of as many entries: for a place, for a value


def sentences(e: Evidence) -> Iterator[str]:
    """Where the gradient is wrong, the most specific first."""
    bad, good, known = (int(mask.sum()) for mask in (e.bad, e.good, e.known))
    if e.kink is not None and bad and not (e.bad & ~e.kink).any():
        yield (f"Kink at {indices(e, e.bad)}: the slopes of {e.output} on both sides differ there, and claimed is not "
               f"between them.")
        return
    if lost := [*repeated_ids(e)]:
        yield from lost
        return
    if not bad or not good:
        return
    choices = math.comb(bad + good, bad)
    if patterns := [*found(e, choices)] or [*found(e.at(e.bad | e.good), choices)]:
        yield f"Wrong only {patterns[0]}: at {bad} of {known} entries, the others are right."
    elif bad <= 3:
        others = "the other entry is" if known - bad == 1 else f"the other {known - bad} entries are"
        yield f"Wrong only at {indices(e, e.bad)}: {others} right."


def found(e: Evidence, choices: int) -> Iterator[str]:
    """The patterns that the wrong entries fill, of so many choices of as many entries."""
    if choices >= SHAPED:
        yield from [*at_integers(e), *at_places(e), *at_signs(e)]
    if choices >= VALUED:
        yield from at_values(e)


def indices(e: Evidence, mask) -> str:
    """The entries in the mask by their indices, the first three."""
    places = [f"{e.input}[{', '.join(map(str, index))}]" for index in np.argwhere(mask)[:3].tolist()]
    return ", ".join(places) + (f" and {mask.sum() - 3} more" if mask.sum() > 3 else "")


def fills(e: Evidence, mask) -> bool:
    """Are all entries in the mask wrong, and all others right?"""
    mask = np.broadcast_to(mask, e.x.shape)
    return bool(np.array_equal(mask & e.known, e.bad))


def at_places(e: Evidence) -> Iterator[str]:
    for axis, size in enumerate(e.x.shape):
        index = np.arange(size).reshape(-1, *(1,) * (e.x.ndim - axis - 1))
        for what, mask in along(index, size):
            if fills(e, mask):
                yield f"{what} of axis {axis}"
        touched = e.bad.any(tuple(other for other in range(e.x.ndim) if other != axis))
        if e.x.ndim > 1 and 1 <= touched.sum() <= 3 and fills(e, touched.reshape(index.shape)):
            yield f"at index {', '.join(map(str, np.flatnonzero(touched)))} of axis {axis}"
    if e.x.ndim > 1:
        row, column = np.ogrid[:e.x.shape[-2], :e.x.shape[-1]]
        for what, mask in {"on the diagonal": row == column, "off the diagonal": row != column,
                           "above the diagonal": row < column, "below the diagonal": row > column}.items():
            if fills(e, mask):
                yield f"{what} of the last two axes"


def along(index, size) -> Iterator[tuple[str, np.ndarray]]:
    """Patterns of an axis, with their names."""
    yield "at the first index", index == 0
    yield "at the last index", index == size - 1
    if size > 2:
        yield "at both ends", (index == 0) | (index == size - 1)
        yield "between the ends", (index > 0) & (index < size - 1)
    if size > 3:
        yield "at the even indices", index % 2 == 0
        yield "at the odd indices", index % 2 == 1
        yield "in the first half", index < size // 2
        yield "in the second half", index >= size // 2
        for start in range(2, size):
            yield f"from index {start} on", index >= start
            yield f"before index {start}", index < start


def of_shape(e: Evidence) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of x's shape whose values may matter."""
    yield from ((name, a) for name, a in e.candidates.items() if "(" not in name and a.shape == e.x.shape)


def at_signs(e: Evidence) -> Iterator[str]:
    """Where x, or another array, has some sign."""
    for name, a in of_shape(e):
        for sign, mask in {"<": a < 0, ">": a > 0, "=": a == 0}.items():
            if fills(e, mask):
                yield f"where {name} {sign} 0"


def at_values(e: Evidence) -> Iterator[str]:
    """Where x, or another array, is beyond some number, at which the error jumps instead of growing from 0."""
    jumps = (np.abs(e.claimed - e.measured) > JUMP * e.tolerance)[e.bad]
    for name, a in of_shape(e):
        for shown, values in ((name, a), (f"|{name}|", np.abs(a))):
            bad, good = values[e.bad], values[e.good]
            if bad.min() > good.max() and jumps[bad.argmin()]:
                yield f"where {shown} ≥ {short(bad.min())} (right up to {short(good.max())})"
            if bad.max() < good.min() and jumps[bad.argmax()]:
                yield f"where {shown} ≤ {short(bad.max())} (right from {short(good.min())})"


def at_integers(e: Evidence) -> Iterator[str]:
    """Where an integer input, such as labels, has a value that it has more than once."""
    for name, a in e.inputs.items():
        if a.dtype.kind in "iub" and a.ndim and a.shape == e.x.shape[:a.ndim]:
            full = a.reshape(a.shape + (1,) * (e.x.ndim - a.ndim))
            for value, count in zip(*np.unique(a, return_counts=True), strict=True):
                if count > 1 and fills(e, full == value):
                    yield f"where {name} = {value}"
        chosen = a.dtype.kind in "iu" and e.x.ndim and a.shape == e.x.shape[:-1]
        if chosen and fills(e, (a[..., None] == np.arange(e.x.shape[-1])) & e.bad.any(-1, keepdims=True)):
            yield f"at the index of the last axis that {name} has"


def scattered(e: Evidence) -> str:
    """How many entries are wrong, where no pattern says which."""
    return f"Wrong only at {e.bad.sum()} of {e.known.sum()} entries: the others are right."


def repeated_ids(e: Evidence) -> Iterator[str]:
    """x is a table, of which an input of integers chooses rows."""
    for name, ids in e.inputs.items():
        if ids.dtype.kind not in "iu" or not e.x.ndim or not ids.size or ids.min() < 0 or ids.max() >= len(e.x):
            continue
        counts = np.bincount(ids.ravel(), minlength=len(e.x))
        wrong = e.bad.reshape(len(e.x), -1).any(1)
        right = e.known.reshape(len(e.x), -1).any(1) & ~wrong
        single = (counts[wrong] > 1).all() and (counts[right] <= 1).all() and (counts[right] == 1).any()
        which = f"rows of {e.input} whose number occurs more than once in {name}"
        if e.bad.any() and (kept := one_of_them(e, ids)):
            yield f"Lost duplicates: wrong only in {which}: claimed is dy of the {kept} occurrence alone."
        elif e.bad.any() and single:
            yield f"Wrong only for repeated ids: in the {which}."


def one_of_them(e: Evidence, ids) -> str:
    """Which of the repeated ids the gradient is from; "" if it is not from one alone."""
    if e.dy.shape != ids.shape + e.x.shape[1:]:
        return ""
    rows = e.dy.reshape(ids.size, *e.x.shape[1:])
    for what, order in (("last", range(ids.size)), ("first", reversed(range(ids.size)))):
        table = np.zeros(e.x.shape)
        for place in order:
            table[ids.flat[place]] = rows[place]
        if e.explains(table):
            return what
    return ""
