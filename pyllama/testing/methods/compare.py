"""Compare a gradient with the slope of the function along a random direction, as exactly as the function allows.

Backward computes dx = Jᵀ dy, where J is the Jacobian of forward at x.  So for every direction v

    <dy, J v> = <dx, v>

slopes.py gives J v and a bound of its error.  The tolerance is that bound and rounding.  Rounding is EXACT or, where
numbers cancel that are larger than the slope, more.  Then two things must come together:

(a) The gap between both sides is not steady: neighboring inputs have other rounding errors, but the same mistakes.
(b) It is not larger than CHAIN roundings of the numbers that may cancel, which are as large as f is elsewhere: the
    floor.  A larger one is excused as far as neighbors show it, up to DIGITS.

A slope that is smaller than the floor is not judged.
"""
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama.testing.methods import slopes
from pyllama.testing.methods.entries import Entries
from pyllama.testing.methods.slopes import CHAIN, EXACT, WIDTHS, bound, norm
from pyllama.testing.passes import eps_of, flat
from pyllama.testing.report import Status, Verdict
from pyllama.testing.trees import is_float

ROUNDED = 4 * 2.0 ** -52 / EXACT            # of y: slopes count as at least this large, so that EXACT of it is four eps
                                            # of y.  More than that is measured, as in the sum of a softmax: rounding()
VAGUE = 1e-2                                # of the slope: a comparison that would not see a percent says nothing
NEAR = 1e-6                                 # relative: of a larger error, differences say nothing that a complex step
                                            # does not
NEIGHBORS = 6                               # rounding is less than twice the range of six samples: see rounding()
FEW = 4                                     # neighbors in a row
DIGITS = 2.0 ** -30                         # relative: rounding in float64 is excused up to this.  A hidden cast to
                                            # float32 within back loses 2⁻²⁴ of each number: that is a fault
FAR = -slopes.FAR, -2.0, slopes.FAR         # where f may be of quite another size: -2 changes signs
STEADY = 1e-3                               # of its size: the gap of a wrong gradient varies by less between neighbors
                                            # 1e-6 apart, unless f bends within a thousandth of its inputs
ORDINARY = 2.0 ** 10                        # numbers that are neither larger nor, inverse, smaller
Method = Literal["complex step", "differences"]


class Comparison(NamedTuple):
    """Both sides of <dy, J v> = <dx, v>, their relative difference, and the largest that is not a fault of back.

    rounding    how far the claimed slope may be off by rounding alone, absolute
    """
    name: str
    slope: float
    claimed: float
    error: float
    tolerance: float
    method: Method
    rounding: float = 0.0

    @property
    def wrong(self) -> bool:
        return not self.error <= self.tolerance             # NaN is wrong


def direction(x, rng):
    """A random direction, relative to the size of each number of x; it leaves infinities where they are.

    A zero counts as large as the others are in the median, or as 1 if there are none.
    """
    sizes = np.abs(np.where(np.isfinite(x), x, 0.0), dtype=float)
    typical = float(np.median(sizes[sizes > 0])) if sizes.any() else 1.0
    return np.where(np.isfinite(x), rng.standard_normal(x.shape) * np.where(sizes == 0, typical, sizes), 0.0)


def compare(name: str, along: Callable, dx: np.ndarray, v: np.ndarray, dy: np.ndarray, y: Any,
            neighbor: Callable, largest: float = 1.0) -> Comparison | None:
    """Compare; None if f has a kink or a jump at its inputs, or so much noise that nothing can be said.

    along       along(t) is the outputs [M] at x + t v
    dx          the gradient that back returned, for dy [M] and the outputs y
    neighbor    neighbor(k) is (dx, along) at inputs right beside these, others for each k
    largest     input
    """
    eps = max(eps_of(a.dtype) for a in (dx, np.zeros(1), *map(np.asarray, y)) if is_float(a))
    with np.errstate(all="ignore"):
        found = slopes.slopes(along, eps, largest)
        counted = dy != 0
        if (found.kink & counted).any():
            return None
        terms, off = (dy * found.value)[counted], bound((dy * found.error)[counted])
        slope, claimed = float(terms.sum()), inner(dx, v)
        steep = max(np.abs(terms).sum(), np.abs(dx * v).sum(dtype=float))
        outputs = np.abs(dy * flat(y))[counted].sum()
        size = max(steep, ROUNDED * outputs)
        method: Method = "complex step" if found.holomorphic else "differences"
        if not np.isfinite(off):                            # as at the root of 0, whose slope is infinite
            return by_complex_step(name, found.exact, dx, v, dy, eps)
        if not np.isfinite(claimed):
            return Comparison(name, slope, claimed, np.nan, EXACT, method)
        if not size:
            return Comparison(name, slope, claimed, 0.0, EXACT, method)
        coarse = 0.0
        if eps > np.finfo(float).eps:
            coarse = CHAIN * eps * (abs(claimed) + norm(dx * v) + norm(terms) + norm((dy * flat(y))[counted]))
        error, tolerance = abs(slope - claimed) / size, EXACT + (coarse + off) / size
        if not coarse + off <= max(VAGUE * steep, EXACT * outputs):         # a slope of EXACT y is none
            return by_complex_step(name, found.exact, dx, v, dy, eps)
        shaken = 0.0
        if error > tolerance:
            near = abs(slope - claimed) < NEAR * max(size, outputs)
            nearer = by_differences(along, eps, dy, counted, claimed) if near else None
            if nearer and nearer[1] <= NEAR * steep:            # or they see nothing
                (slope, off), method = nearer, "differences"
                error, tolerance = abs(slope - claimed) / size, EXACT + off / size
            else:
                gap, floor = slope - claimed, floor_of(along, dy, unit_of(v), np.abs(flat(y)))
                if max(abs(gap), steep) <= floor:
                    return by_complex_step(name, found.exact, dx, v, dy, eps)
                shaken = rounding(neighbor, dy, v, eps, found.holomorphic, gap, near, floor)
                if eps <= 2.0 ** -52:
                    most = max(DIGITS * size, jitter(along, dy)) if near else np.inf
                    shaken = excused(shaken, gap, most, floor)
                tolerance += shaken / size
    return Comparison(name, slope, claimed, float(error), float(tolerance), method, EXACT * size + coarse + shaken)


def floor_of(along, dy, unit, least=0.0) -> float:
    """The rounding of <dy, J v>, and of <dx, v>, where numbers cancel that are as large as f elsewhere: see reach()."""
    counted = dy != 0
    with np.errstate(all="ignore"):
        return CHAIN * 2.0 ** -52 * norm((dy * np.fmax(reach(along, unit), least))[counted])


def reach(along, unit) -> np.ndarray:
    """How large numbers may be that cancel in the slope of each output [M]: f changes by so much far from here.

    Beside the 1 of 1 + tanh(x), what is left is 0 or a rounding of that 1 at least: a much smaller output was not so
    made, unless it was multiplied by a small number.
    """
    here, slope = along(0.0), slopes.imaginary(along)
    near = np.zeros(here.shape) if slope is None else np.abs(slope)
    sizes = [near]
    for t in FAR:
        try:
            there = along(t + 1j * slopes.STEP)
        except Exception:                                   # f refuses complex numbers
            there = along(t)
        sizes += [np.abs(np.real(there) - here), np.abs(np.imag(there)) / slopes.STEP]
    far = np.max([np.where(np.isfinite(size), size, 0) for size in sizes], axis=0)
    beside = np.where((here == 0) | (ORDINARY * np.abs(here) >= 2.0 ** -53 * far), far, near)
    return np.fmax(beside, slopes.inner(along, unit, 2.0 ** -52))


def jitter(along, dy) -> float:
    """Twice the rounding of the slope at points a thousandth apart: more than float64 has, if f computes in less."""
    row = [slopes.imaginary(lambda t, k=k: along(1e-3 * k + t)) for k in range(2 * FEW)]
    if any(one is None for one in row):
        return 0.0
    total = [float((dy * one)[dy != 0].sum()) for one in row]
    return 2 * float(np.abs(without_parabola(total)).max())


def excused(shaken, gap, most, floor) -> float:
    """How much of a measured rounding float64 may have: so much at most, and the floor where the gap is not steady."""
    unsteady = abs(gap) <= floor and shaken > STEADY * abs(gap)
    return floor if unsteady else min(shaken, max(most, floor))


def by_complex_step(name, exact, dx, v, dy, eps) -> Comparison | None:
    """A gradient that a complex step confirms, where differences see too little to contradict; else None."""
    counted = dy != 0
    terms, claimed = (dy * exact)[counted], inner(dx, v)
    size = max(float(np.abs(terms).sum()), float(np.abs(dx * v).sum(dtype=float)))
    gap = abs(float(terms.sum()) - claimed)
    if eps > 2.0 ** -52 or not terms.any() or not gap <= EXACT * size:
        return None
    return Comparison(name, float(terms.sum()), claimed, gap / size, EXACT, "complex step", EXACT * size)


def unit_of(v) -> float:
    """The size of the largest move: where t is its inverse, an entry has moved by 1."""
    return float(np.abs(v).max(initial=0))


def inner(dx, v) -> float:
    return float(np.sum(dx * v, dtype=float))


def blur(dx, v, eps) -> float:
    """How far <dx, v> may be off by the rounding of dx."""
    return EXACT * float(np.abs(dx * v).sum(dtype=float)) + (CHAIN * eps * norm(dx * v) if eps > 2.0 ** -52 else 0.0)


def entrywise(found: Entries, dx: np.ndarray, eps: float, again: Callable | None = None,
              floor_at: Callable | None = None) -> tuple[Verdict, tuple[int, ...] | None]:
    """The verdict on a gradient entry by entry, and the index of the worst entry; None if none was measured.

    eps     of the precision of dx
    again   again(k, index) is (claimed, measured) at inputs right beside these, others for each k: see rounding()
    floor_at    floor_at(index) is the rounding of numbers that may cancel within f: see floor_of()
    """
    method: Method = "complex step" if found.holomorphic else "differences"
    measured = np.isfinite(found.value)
    if not measured.any():
        return Verdict(method, "undecided", why="no entry was measured"), None
    coarse = CHAIN * eps * np.abs(dx.astype(float)) if eps > np.finfo(float).eps else 0.0
    gap, allowed = np.asarray(np.abs(dx.astype(float) - found.value)), np.array(found.error + coarse)
    with np.errstate(all="ignore"):
        ratio = np.where(measured, np.where(gap == 0, 0, gap / allowed), -1.0)
        ratio[np.isnan(ratio)] = np.inf
        for at in np.argsort(-ratio, axis=None)[:np.count_nonzero(ratio > 1)]:
            index = tuple(int(i) for i in np.unravel_index(at, ratio.shape))
            if again and np.isfinite(gap[index]):
                first = float(dx[index]) - float(found.value[index])
                floor = floor_at(index) if floor_at else 0.0
                if max(abs(first), abs(found.value[index])) <= floor:
                    shaken = floor
                else:
                    shaken = measured_rounding(gap_at(again, index), first, False, floor)
                    if eps <= 2.0 ** -52:
                        shaken = excused(shaken, first, DIGITS * np.abs(found.value[measured]).max(), floor)
                allowed[index] += shaken
                ratio[index] = gap[index] / allowed[index]
            if ratio[index] > 1:
                break
    index = tuple(int(i) for i in np.unravel_index(int(ratio.argmax()), ratio.shape))
    claimed, value, error, tolerance = (float(a[index]) for a in (dx, found.value, gap, allowed))
    status: Status = "wrong" if ratio[index] > 1 else "passed"
    return Verdict(method, status, claimed, value, error, tolerance), index


def gap_at(again: Callable, index: tuple[int, ...]) -> Callable[[int], float]:
    return lambda k: float(np.subtract(*again(k, index)))


def by_differences(along, eps, dy, counted, claimed):
    """(slope, its error) by differences, if they do not contradict the gradient.

    Then a part of f may be not holomorphic, so small that slopes() did not see it in any single output.
    """
    value, error, _ = slopes.differences(along, WIDTHS, eps)
    measured, off = float((dy * value)[counted].sum()), bound((dy * error)[counted])
    return (measured, off) if abs(measured - claimed) <= off else None


def rounding(neighbor, dy, v, eps, holomorphic, first, near, floor) -> float:
    """How far the two sides are apart by rounding alone, measured at neighboring inputs: see measured_rounding()."""
    def gap(k):
        dx, along = neighbor(k)
        exact = slopes.imaginary(along, slopes.step(eps)) if holomorphic else None
        return float((dy * (slopes.slopes(along, eps).value if exact is None else exact)).sum()) - inner(dx, v)
    return measured_rounding(gap, first, near, floor)


def measured_rounding(gap_at: Callable[[int], float], gap: float, near: bool, floor: float) -> float:
    """How large rounding makes the gap between both sides: from gap_at(k), at inputs beside these, others for each k.

    A wrong gradient is off by the same amount at all of these; rounding errors are drawn anew.  Numbers that are
    rounded to a few steps, such as 1 + tanh(x) far out, change on the way to ever more distant inputs alone.  There
    the gap of a wrong gradient follows a parabola.

    near    may so small a gap be rounding, even if the first neighbor does not show it?
    floor   a larger gap is not the rounding of numbers that are far out: see floor_of()
    """
    def defined(k):
        try:
            return gap_at(k)
        except Exception:                                   # f is not defined there
            return np.nan

    beside = [gap, defined(0)]
    seen = 0.0
    if near or spread(beside) > STEADY * abs(gap):
        seen = spread([*beside, *(defined(k) for k in range(1, NEIGHBORS))])
    if seen > STEADY * abs(gap) or abs(gap) > floor:
        return seen
    return spread(without_parabola([gap, *(defined(NEIGHBORS + k) for k in range(FEW))]))


def without_parabola(gaps: list[float]) -> list[float]:
    """What a parabola does not explain of values at equal distances: (-1, 3, -3, 1) is zero for each parabola."""
    return [float(third) for third in np.diff(gaps, 3)]


def spread(gaps: Iterable[float]) -> float:
    """Twice the range of some samples of an error around zero: it is hardly ever larger."""
    seen = [float(gap) for gap in gaps if np.isfinite(gap)]
    return 2 * (max(seen) - min(seen)) if seen else 0.0
