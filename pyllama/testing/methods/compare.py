"""Compare a gradient with the slope of the function along a random direction, as exactly as the function allows.

Backward computes dx = Jᵀ dy, where J is the Jacobian of forward at x.  So for every direction v

    <dy, J v> = <dx, v>

slopes.py gives J v and a bound of its error.  The tolerance is that bound and rounding: EXACT or, where more digits
cancel, as much as neighboring inputs show.
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
BESIDE_ONE = 1e-12                          # of |dy| |v|: excused, too, because numbers of size one may have canceled
STEADY = 1e-3                               # of its size: the gap of a wrong gradient varies by less between neighbors
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
                shaken = rounding(neighbor, dy, v, eps, found.holomorphic, slope - claimed, near)
                most = max(DIGITS * size, BESIDE_ONE * norm(dy) * norm(v))
                if near and shaken > most and eps <= 2.0 ** -52:
                    shaken = min(shaken, max(most, jitter(neighbor, dy, slope, eps)))
                least = CHAIN * 2.0 ** -52 * outputs
                if shaken < abs(slope - claimed) <= least and saturated(along, found.value, counted):
                    shaken = least                          # 1 - y is rounded alike at all neighbors
                tolerance += shaken / size
    return Comparison(name, slope, claimed, float(error), float(tolerance), method, EXACT * size + coarse + shaken)


def saturated(along, slope, counted) -> bool:
    """Is an output much steeper or flatter far away, so that numbers as large as it cancel in its slope here?"""
    there = np.abs([np.imag(along(t + 1j * slopes.STEP)) / slopes.STEP for t in (-slopes.FAR, -2.0, slopes.FAR)])
    here = np.abs(slope)
    return bool((counted & ((there > slopes.ALIKE * here) | (there < here / slopes.ALIKE))).any())


def by_complex_step(name, exact, dx, v, dy, eps) -> Comparison | None:
    """A gradient that a complex step confirms, where differences see too little to contradict; else None."""
    counted = dy != 0
    terms, claimed = (dy * exact)[counted], inner(dx, v)
    size = max(float(np.abs(terms).sum()), float(np.abs(dx * v).sum(dtype=float)))
    gap = abs(float(terms.sum()) - claimed)
    if eps > 2.0 ** -52 or not terms.any() or not gap <= EXACT * size:
        return None
    return Comparison(name, float(terms.sum()), claimed, gap / size, EXACT, "complex step", EXACT * size)


def inner(dx, v) -> float:
    return float(np.sum(dx * v, dtype=float))


def blur(dx, v, eps) -> float:
    """How far <dx, v> may be off by the rounding of dx."""
    return EXACT * float(np.abs(dx * v).sum(dtype=float)) + (CHAIN * eps * norm(dx * v) if eps > 2.0 ** -52 else 0.0)


def entrywise(found: Entries, dx: np.ndarray, eps: float, again: Callable | None = None, *,
              beside: float = 0.0) -> tuple[Verdict, tuple[int, ...] | None]:
    """The verdict on a gradient entry by entry, and the index of the worst entry; None if none was measured.

    eps     of the precision of dx
    again   again(k, index) is (claimed, measured) at inputs right beside these, others for each k: see rounding()
    beside  |dy|, if the inputs are numbers of ordinary size: see BESIDE_ONE
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
                most = max(DIGITS * np.abs(found.value[measured]).max(), BESIDE_ONE * beside)
                excused = measured_rounding(gap_at(again, index), first, False)
                allowed[index] += min(excused, most) if eps <= 2.0 ** -52 else excused
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


def rounding(neighbor, dy, v, eps, holomorphic, first, near) -> float:
    """How far the two sides are apart by rounding alone, measured at neighboring inputs: see measured_rounding()."""
    def gap(k):
        dx, along = neighbor(k)
        exact = slopes.imaginary(along, slopes.step(eps)) if holomorphic else None
        return float((dy * (slopes.slopes(along, eps).value if exact is None else exact)).sum()) - inner(dx, v)
    return measured_rounding(gap, first, near, NEAR * norm(dy) * norm(v))


def jitter(neighbor, dy, slope, eps) -> float:
    """Twice the rounding of the slope itself: more than float64 has, if f computes in less."""
    row = [neighbor(NEIGHBORS + k)[1] for k in range(2 * FEW)]
    exact = [slopes.imaginary(along, slopes.step(eps)) for along in row]
    values = [slopes.slopes(along, eps).value if one is None else one for along, one in zip(row, exact, strict=True)]
    return 2 * float(np.abs(without_parabola([slope, *(float((dy * one).sum()) for one in values)])).max())


def measured_rounding(gap_at: Callable[[int], float], gap: float, near: bool, most: float = np.inf) -> float:
    """How large rounding makes the gap between both sides: from gap_at(k), at inputs beside these, others for each k.

    A wrong gradient is off by the same amount at all of these; rounding errors are drawn anew.  Numbers that are
    rounded to a few steps, such as 1 + tanh(x) far out, change on the way to ever more distant inputs alone.  There
    the gap of a wrong gradient follows a parabola.

    near    may so small a gap be rounding, even if the first neighbor does not show it?
    most    a larger gap has nothing to do with numbers that are far out
    """
    def defined(k):
        try:
            return gap_at(k)
        except Exception:                                   # f is not defined there
            return np.nan

    beside = [gap, defined(0)]
    if near or spread(beside) > STEADY * abs(gap):
        return spread([*beside, *(defined(k) for k in range(1, NEIGHBORS))])
    row = [gap, *(defined(NEIGHBORS + k) for k in range(FEW))] if abs(gap) <= most else []
    return spread(without_parabola(row))


def without_parabola(gaps: list[float]) -> list[float]:
    """What a parabola does not explain of values at equal distances: (-1, 3, -3, 1) is zero for each parabola."""
    return [float(third) for third in np.diff(gaps, 3)]


def spread(gaps: Iterable[float]) -> float:
    """Twice the range of some samples of an error around zero: it is hardly ever larger."""
    seen = [float(gap) for gap in gaps if np.isfinite(gap)]
    return 2 * (max(seen) - min(seen)) if seen else 0.0
