"""Hypotheses that are tested by calling back again with another dy, and what the tried points have in common."""
import time
from collections.abc import Iterator

import numpy as np

from pyllama.testing.diagnosis.constants import short
from pyllama.testing.diagnosis.evidence import Evidence, largest

GIVEN = "as given"
CAUSES = {
    "random w": "Wrong only when w is not constant: right for the equal numbers given, wrong for random ones.",
    "repeated ids": "Wrong only for repeated ids: right as given, wrong where an id occurs twice.",
    "away from 0 and 1": "Wrong only at other inputs: right as given, wrong near them. Zeros and ones hide mistakes; "
                         "so does what back keeps from the first call.",
}
NEAR = 1e-6                                         # relative: a difference above this is not rounding
CURVED = 1e-2                                       # nor is one above this, even where back rounds to 16 bits


def sentences(e: Evidence) -> Iterator[str]:
    """How back uses dy, and for which points it is wrong."""
    again = repeats(e)
    of_dy = [*misread(e), *how_dy_enters(e)] if again else []
    yield from of_dy
    yield from points(e)
    if again and not of_dy:
        yield from one_row(e)


def repeats(e: Evidence) -> bool:
    """Does a second call of back give the same as the first?  Else a third one says nothing about dy."""
    first, second = called(e, e.dy), called(e, e.dy)
    return first is not None and second is not None and same(first, second)


def called(e: Evidence, dy) -> np.ndarray | None:
    """The gradient for another dy; None where back refuses it, or there is no time."""
    if e.deadline is not None and time.monotonic() > e.deadline:
        return None
    try:
        with np.errstate(all="ignore"):
            dx = np.asarray(e.gradient(dy), dtype=float)
    except Exception:
        return None
    return dx if dx.shape == e.x.shape and np.isfinite(dx).all() else None


def same(a, b, near=NEAR) -> bool:
    return largest(a - b) <= near * max(largest(a), largest(b))


def misread(e: Evidence) -> Iterator[str]:
    """The same numbers in another layout give another gradient."""
    if e.dy.size < 2:
        return
    strided = np.repeat(e.dy, 2, -1)[..., ::2]
    here = called(e, e.dy)
    there = called(e, strided if e.dy.flags.c_contiguous else np.ascontiguousarray(e.dy))
    if here is None or there is None or same(here, there):
        return
    yield ("dy read as contiguous: the same dy in another memory layout gives another gradient; use dy's strides, or "
           "np.ascontiguousarray(dy).")


def how_dy_enters(e: Evidence) -> Iterator[str]:
    """It must enter linearly."""
    dy = np.array(e.dy, order="C")
    other = np.random.default_rng(0).standard_normal(dy.shape).astype(dy.dtype)
    zero, one, two, double, both = (called(e, d) for d in (0 * dy, dy, other, 2 * dy, dy + other))
    if zero is None or one is None or two is None or double is None or both is None or not dy.any():
        return
    if largest(one) <= e.noise:
        return                                      # rounding alone
    if same(one, two) and same(one, double):
        yield "dy ignored: back returns the same gradient for every dy; multiply by dy."
    elif largest(zero) > CURVED * largest(one):
        yield "dy not linear: back(0) is not 0; each term of a gradient contains dy."
    elif not same(double, 2 * one, CURVED):
        times = float(np.sum(double * one) / np.sum(one * one))
        power = f", as if dy had the power {round(np.log2(times))}" if round(times, 6) in (1, 4, 8) else ""
        value = f"{short(times)} × back(dy) instead of 2 ×{power}" if same(double, times * one) else "not 2 back(dy)"
        yield f"dy not linear: back(2 dy) is {value}."
    elif not same(both, one + two, CURVED):
        yield "dy not linear: back(a + b) is not back(a) + back(b)."


def one_row(e: Evidence) -> Iterator[str]:
    """Only a part of dy counts, for which claimed is right."""
    if not e.claimed[e.bad].any():
        return                                      # zeros: a part of dy may not reach these entries at all
    part, where = np.array(e.dy, order="C"), []
    for axis, size in enumerate(part.shape):
        for what, index in (("first", 0), ("last", size - 1)):
            alone = only(part, axis, index)
            dx = called(e, alone)
            if dx is not None and size > 1 and largest(dx) and same(dx, e.claimed) and (part - alone).any():
                part = alone
                where.append(f"the {what} index of axis {axis}")
                break
    if where and e.slope and e.explains(e.slope(part)):
        yield f"Contributions lost: claimed depends on {' and '.join(where)} of dy alone; add those of all."


def only(a, axis, index) -> np.ndarray:
    """The array with zeros at all other indices of the axis."""
    part, place = np.zeros_like(a), (slice(None),) * axis + (index,)
    part[place] = a[place]
    return part


def points(e: Evidence) -> Iterator[str]:
    """What the points at which the gradient is wrong have in common; their names are those of points.py."""
    wrong = [name for name, is_wrong in e.outcomes.items() if is_wrong]
    right = [name for name, is_wrong in e.outcomes.items() if not is_wrong]
    if not wrong or not right or GIVEN in wrong:
        return                                      # where it is wrong as given, other points say nothing about why
    for name, cause in CAUSES.items():
        if name in wrong and GIVEN in right:
            yield cause
            return
    yield f"Wrong only for {listed(wrong)}; right for {listed(right[:3] if GIVEN not in right else [GIVEN])}."


def listed(names) -> str:
    quoted = [f"{name!r}" for name in names]
    return ", ".join(quoted[:-1]) + f" and {quoted[-1]}" if len(quoted) > 1 else quoted[0]
