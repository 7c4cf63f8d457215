"""Kinks: where the slopes of a function to the left and to the right differ, each of them is right.

At x = 0 the slope of |x| is -1 to the left and 1 to the right, and every number between is a subgradient.  Of several
outputs, each has its own interval.  So a gradient passes if, along the direction v,

    Σ dy[m] low[m]  ≤  <dx, v>  ≤  Σ dy[m] high[m]              low and high change places where dy[m] is negative

One random direction may miss a wrong gradient at a kink, because the interval is as wide as the gradient itself.  The
gradient 1 of each of four equal numbers that maximum() gives is out of the interval along v = 1 alone: there the slope
is 1 on both sides, and the gradient says 4.  See directions().
"""
from collections.abc import Callable

import numpy as np

from pyllama.testing.methods import slopes
from pyllama.testing.methods.slopes import WIDTHS
from pyllama.testing.report import Verdict

SHARP, COARSE = 1e-4, 1e-2                  # relative, in float64 and below: an interval of one slope says something if
                                            # that is known as well


def subgradients(along: Callable, dy: np.ndarray, eps: float = 2.0 ** -52,
                 size: float = 1.0) -> tuple[float, float, float]:
    """(low, high, error): the interval of the slopes of <dy, f> along a line, and how far its ends may be off.

    along   along(t) is the outputs [M] at x + t v
    dy      their weights [M]
    eps     of the precision in which f computes
    size    of the largest input

    >>> import numpy as np
    >>> from pyllama.testing.methods.kinks import subgradients
    >>> low, high, _ = subgradients(lambda t: np.abs(np.array([t, 1 + t])), np.array([2.0, 1.0]))
    >>> round(low, 6), round(high, 6)
    (-1.0, 3.0)
    """
    counted = np.asarray(dy) != 0
    weights = np.asarray(dy, float)[counted]

    def seen(t):
        return np.asarray(along(t))[counted]

    with np.errstate(all="ignore"):
        value, error, kink = slopes.differences(seen, WIDTHS, eps, size)
        low, high, error = sides(seen, eps, kink, value, error, size)
        rounded = 4 * eps * float(np.abs(weights * seen(0.0)).sum())
    ends = np.sort([weights * low, weights * high], axis=0)
    return float(ends[0].sum()), float(ends[1].sum()), slopes.bound(weights * error) + rounded


def verdict(along: Callable, dy: np.ndarray, claimed: float, eps: float = 2.0 ** -52, blur: float = 0.0,
            size: float = 1.0) -> Verdict:
    """Does <dx, v>, `claimed`, lie in the interval?  `blur` is its rounding."""
    low, high, error = subgradients(along, dy, eps, size)
    nearest = min(max(claimed, low), high)
    gap, allowed = abs(claimed - nearest), error + blur
    if not np.isfinite(low + high + error):
        return Verdict("differences", "undecided", claimed, why="f has no slope there to one side")
    if high - low <= error and error > (SHARP if eps <= 2.0 ** -52 else COARSE) * max(abs(nearest), abs(claimed)):
        return Verdict("differences", "undecided", claimed, why="f has no kink there, or too much noise")
    why = f"the slopes from left to right are in [{low:.6g}, {high:.6g}]"
    return Verdict("differences", "passed" if gap <= allowed else "wrong", claimed, nearest, gap, allowed, why)


def directions(x: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Directions along which kinks are compared: all entries alike, which keeps ties; each entry alone, up to four."""
    alike = np.where(np.isfinite(x), np.median(np.abs(x[np.isfinite(x)])) or 1.0 if x.size else 1.0, 0.0)
    some = rng.permutation(x.size)[:4]
    return [alike, *(np.where(np.arange(x.size).reshape(x.shape) == i, alike, 0.0) for i in some)]


def sides(along, eps, kink, value, error, size):
    """(low, high, error), each [M]: the slopes on both sides where there is a kink, and the one slope elsewhere."""
    (right, after), (left, before) = (slopes.one_sided(along, sign, eps, size) for sign in (1, -1))
    low, high = np.where(kink, np.fmin(left, right), value), np.where(kink, np.fmax(left, right), value)
    return low, high, np.where(kink, np.fmax(after, before), error)
