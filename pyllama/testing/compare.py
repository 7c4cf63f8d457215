"""Compare a gradient with the slope of the function along a random direction, as exactly as the function allows.

Backward computes dx = Jᵀ dy, where J is the Jacobian of forward at x.  So for every direction v

    <dy, J v> = <dx, v>

slopes.py gives J v and a bound of its error.  The tolerance is that bound and rounding: EXACT or, where more digits
cancel, as much as neighboring inputs show.
"""
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama.testing import slopes
from pyllama.testing.passes import flat
from pyllama.testing.slopes import EXACT, WIDTHS, bound

ROUNDED = 1e-4                              # share of y below which a slope counts as this large: where terms cancel,
                                            # what is left is rounding, an eps or a few of y
VAGUE = 1e-2                                # a comparison with a larger tolerance says nothing
NEAR = 1e-6                                 # an error that rounding might explain: see rounding()
NEIGHBORS = 6
Method = Literal["complex step", "differences"]


class Comparison(NamedTuple):
    """Both sides of <dy, J v> = <dx, v>, their relative difference, and the largest that is not a fault of back."""
    name: str
    slope: float
    claimed: float
    error: float
    tolerance: float
    method: Method

    @property
    def wrong(self) -> bool:
        return not self.error <= self.tolerance             # NaN is wrong


def direction(x, rng):
    """A random direction, relative to the size of each number of x; it leaves infinities where they are.

    A zero counts as large as the others are on average, or as 1 if there are none.
    """
    sizes = np.abs(np.where(np.isfinite(x), x, 0.0), dtype=float)
    average = sizes.mean() if sizes.any() else 1.0
    return np.where(np.isfinite(x), rng.standard_normal(x.shape) * np.where(sizes == 0, average, sizes), 0.0)


def compare(name: str, along: Callable, dx: np.ndarray, v: np.ndarray, dy: np.ndarray, y: Any,
            neighbor: Callable) -> Comparison | None:
    """Compare; None if f has a kink or a jump at its inputs, or so much noise that nothing can be said.

    along       along(t) is the outputs [M] at x + t v
    dx          the gradient that back returned, for dy [M] and the outputs y
    neighbor    neighbor(k) is (dx, along) at inputs right beside these, others for each k
    """
    eps = max(np.finfo(a.dtype).eps for a in (dx, np.zeros(1), *map(np.asarray, y)) if a.dtype.kind == "f")
    with np.errstate(all="ignore"):
        found = slopes.slopes(along, eps)
        counted = dy != 0
        if (found.kink & counted).any():
            return None
        terms, off = (dy * found.value)[counted], bound((dy * found.error)[counted])
        slope, claimed = float(terms.sum()), inner(dx, v)
        size = max(np.abs(terms).sum(), np.abs(dx * v).sum(dtype=float), ROUNDED * np.abs(dy * flat(y))[counted].sum())
        method: Method = "complex step" if found.holomorphic else "differences"
        if not np.isfinite(claimed):
            return Comparison(name, slope, claimed, np.nan, EXACT, method)
        if not size:
            return Comparison(name, slope, claimed, 0.0, EXACT, method)
        coarse = 64 * eps * (abs(claimed) + norm(dx * v) + norm(terms)) if eps > np.finfo(float).eps else 0.0
        error, tolerance = abs(slope - claimed) / size, EXACT + (coarse + off) / size
        if not tolerance <= VAGUE:
            return None
        if tolerance < error < NEAR:
            nearer = by_differences(along, eps, dy, counted, claimed)
            if nearer:
                (slope, off), method = nearer, "differences"
                error, tolerance = abs(slope - claimed) / size, EXACT + off / size
            else:
                tolerance += rounding(neighbor, dy, v) / size
    return Comparison(name, slope, claimed, float(error), float(tolerance), method)


def inner(dx, v) -> float:
    return float(np.sum(dx * v, dtype=float))


def norm(a) -> float:
    return float(np.sqrt(np.sum(np.square(a, dtype=float))))


def by_differences(along, eps, dy, counted, claimed):
    """(slope, its error) by differences, if they do not contradict the gradient.

    Then a part of f may be not holomorphic, so small that slopes() did not see it in any single output.
    """
    value, error, _ = slopes.differences(along, WIDTHS, eps)
    measured, off = float((dy * value)[counted].sum()), bound((dy * error)[counted])
    return (measured, off) if abs(measured - claimed) <= off else None


def rounding(neighbor, dy, v) -> float:
    """How far the two sides are apart by rounding alone, measured at neighboring inputs.

    A wrong gradient is off by the same amount at all of these; rounding errors are drawn anew.
    """
    gaps = []
    for k in range(NEIGHBORS):
        dx, along = neighbor(k)
        exact = slopes.imaginary(along)
        if exact is not None:
            gaps.append(float((dy * exact).sum()) - inner(dx, v))
    return 2 * (max(gaps) - min(gaps)) if gaps else 0.0
