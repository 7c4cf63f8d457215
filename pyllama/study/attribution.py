"""Which inputs decide a score: its attributions to the vectors that it is computed from.

f is a function of vectors x [T D], x' another text's, the baseline, and g(α) the slope of f on the line between them:

    p(α) = x' + α (x - x')
    g_td(α) = (x_td - x'_td) ∂f/∂x_td (p(α))

    gradient x input        a_t = Σ_d g_td(1)           Simonyan et al., 2013; Shrikumar et al., 2016, where x' = 0
    integrated gradients    a_t = ∫ Σ_d g_td(α) dα      from 0 to 1: Sundararajan, Taly & Yan, 2017, equation 1

Completeness (proposition 1 of the latter): Σ_td g_td(α) = d/dα f(p(α)), whose integral is f(x) - f(x').  So integrated
gradients add up to the difference that they explain.  Gradient x input does so if f is linear: then g is constant.

The integral is computed by Simpson's rule with n steps of h = 1/n.  Where g has enough derivatives its error is
(g‴(1) - g‴(0)) h⁴ / 180 + O(h⁶): each doubling of n divides it by 16.  Where a ReLU turns on or off on the way, g
jumps, and the error is O(h).  A doubling computes only the points that the rule with fewer steps has not used.
"""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Score = Callable[[np.ndarray], tuple[np.ndarray, Callable]]     # points [N T D] -> (f of each [N], back)

TOLERANCE = 0.01                                # of the gap, as a share of Σ |a_t|
FEWEST, MOST = 8, 1024                          # steps; with fewer, the sum may be right and its terms wrong by chance
AT_ONCE = 16                                    # points of the path that are computed together


class Attribution(NamedTuple):
    """What each of T vectors adds to a score.

    shares    [T] a_t, float64
    score     f(x)
    base      f(x')
    steps     of the integral; 0 for gradient x input
    """
    shares: np.ndarray
    score: float
    base: float
    steps: int

    @property
    def gap(self) -> float:
        """Σ a_t - (f(x) - f(x')): what is missing to completeness."""
        return float(self.shares.sum()) - (self.score - self.base)

    @property
    def complete(self) -> bool:
        """Is the gap within the tolerance of integrated_gradients()?"""
        return abs(self.gap) <= TOLERANCE * float(np.abs(self.shares).sum())


def gradient_times_input(f: Score, x: np.ndarray, baseline: np.ndarray, *, at_once: int = AT_ONCE) -> Attribution:
    """The Attribution of f to x [T D] by the gradient at x.

    f           f(points [N T D]) returns (scores [N], back);  back(dscores [N]) gives the gradient [N T D]
    baseline    [T D]
    at_once     points that f is given together, at most

    >>> import numpy as np
    >>> from pyllama.study.attribution import gradient_times_input
    >>> weights = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> def f(x):
    ...     return (weights * x).sum(axis=(1, 2)), lambda d: d[:, None, None] * weights
    >>> gradient_times_input(f, np.ones((2, 2)), np.zeros((2, 2)))
    Attribution(shares=array([3., 7.]), score=10.0, base=0.0, steps=0)
    """
    (score, base), slopes = along(f, x, baseline, [1.0, 0.0], at_once)
    return Attribution(slopes[0], score, base, 0)


def integrated_gradients(f: Score, x: np.ndarray, baseline: np.ndarray, tolerance: float = TOLERANCE,
                         most: int = MOST, *, at_once: int = AT_ONCE) -> Attribution:
    """The Attribution of f to x [T D] by the gradient on the way from the baseline.

    The steps are doubled until |gap| <= tolerance · Σ |a_t|, or there are `most`.  Arguments as in
    gradient_times_input().

    >>> import numpy as np
    >>> from pyllama.study.attribution import integrated_gradients
    >>> def f(x):
    ...     return x.prod(axis=(1, 2)), lambda d: d[:, None, None] * x.prod(axis=(1, 2), keepdims=True) / x
    >>> integrated_gradients(f, np.full((2, 1), 3.0), np.ones((2, 1))).shares.round(6)
    array([4., 4.])
    """
    (base, score), ends = along(f, x, baseline, [0.0, 1.0], at_once)
    even, odd, steps = np.zeros(len(x)), between(f, x, baseline, 2, at_once), 2
    while True:
        found = Attribution((ends.sum(axis=0) + 4 * odd + 2 * even) / (3 * steps), score, base, steps)
        enough = abs(found.gap) <= tolerance * np.abs(found.shares).sum()
        if steps >= most or (steps >= FEWEST and enough):
            return found
        even, steps = even + odd, 2 * steps
        odd = between(f, x, baseline, steps, at_once)


def between(f: Score, x: np.ndarray, baseline: np.ndarray, steps: int, at_once: int) -> np.ndarray:
    """Σ_i Σ_d g_td(i / steps) of the odd i: [T]"""
    _, slopes = along(f, x, baseline, np.arange(1, steps, 2) / steps, at_once)
    return slopes.sum(axis=0)


def along(f: Score, x: np.ndarray, baseline: np.ndarray, alphas: Sequence[float] | np.ndarray,
          at_once: int) -> tuple[list[float], np.ndarray]:
    """(f(p(α)), Σ_d g_td(α)) of each α: N numbers and [N T], float64"""
    scores: list[float] = []
    slopes: list[Any] = []
    for first in range(0, len(alphas), at_once):
        alpha = np.asarray(alphas[first:first + at_once], x.dtype)[:, None, None]
        values, back = f(baseline + alpha * (x - baseline))
        gradient = back(np.ones_like(values))
        scores += map(float, values)
        slopes.append(np.sum(gradient * (x - baseline), axis=-1, dtype=np.float64))
    return scores, np.concatenate(slopes)
