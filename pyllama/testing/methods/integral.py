"""The gradient integrated along a line, beside the change of the function: for float16 and bfloat16 alone.

    r(t) = φ(x(t)) − ∫ <dx, ẋ> dt       φ(x) = <dy, f(x)>, and dx is what back says at x(t)

r is constant if the gradient is right (the fundamental theorem of calculus), however wide the line.  A difference
divides the rounding of f by a narrow step; here it is divided by a line as wide as the inputs are large.

(a) The line.  Its nodes are rounded to the precision of x, and dx is integrated from node to node, so no rounding of x
    counts.  No entry moves across 0, except one that is 0.  Where f is not defined, the line is narrower.
(b) Rounding.  Second differences of r and of <dx, ẋ> show the roundings that differ from node to node.  Those that do
    not, as of a constant, are SHARED eps of the outputs that depend on the entries that move, and of their gradients.
(c) Integration.  The trapezoidal rule at every second node shows its error.
(d) Jumps.  If a step of r from one node to the next explains its drift, f jumps there, and nothing is said.
"""
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pyllama.testing.methods.judge import Case
from pyllama.testing.methods.precision import finfo
from pyllama.testing.methods.slopes import norm
from pyllama.testing.report import Verdict

NODES = 33
HALVES = (0.5, 0.1)                         # of the line, relative to the entries: then all keep their signs
SIGMAS = 6.0                                # of a normal error: 2e-9 of the lines of right gradients
SHARED = 4.0                                # in eps: 16 roundings by half an eps, shared by all nodes, have √16 / 2 on
                                            # average; twice that
FAR = 8.0                                   # times the line
VISIBLE = 0.25                              # of the slope: a line that would not show such an error says nothing
JUMP = 0.25                                 # of the drift in one step of 32: f jumps, or its slope does


class Drift(NamedTuple):
    """The slope of r along a line, how far it may be off, and the slopes of both sides.

    steady  does r drift all along the line, and not in one step?
    """
    value: float
    error: float
    claimed: float
    measured: float
    steady: bool


def verdict(value: Callable, gradient: Callable, x: np.ndarray, lines: Iterable[np.ndarray], dy: np.ndarray,
            eps: float) -> Verdict:
    """The verdict on the gradient with respect to x: of the first line where it is wrong, or of that which shows most.

    value       value(x) is the outputs [M] at another x of the same dtype
    gradient    gradient(x) is dx there
    x           the input, in the precision in which f computes
    lines       directions, of the shape of x; entries move by half of these to both sides
    dy          the weights of the outputs [M]
    eps         of the coarsest precision that takes part

    >>> import numpy as np
    >>> from pyllama.testing.methods.integral import verdict
    >>> x = np.array([0.5, -1.0, 2.0], np.float16)
    >>> for times in (1, 2):
    ...     print(verdict(np.square, lambda x: 2 * times * x, x, [x], np.ones(3), 2.0 ** -10).status)
    passed
    wrong
    """
    found = []
    for v in lines:
        found.append(verdict_along(value, gradient, x, np.asarray(v, float), dy, eps))
        if found[-1].status == "wrong":
            return found[-1]
    return min(found, key=visible, default=Verdict("differences", "undecided", why="no line was looked at"))


def visible(found: Verdict) -> tuple:
    """The lower, the more a verdict that is not wrong has seen."""
    return found.status != "passed", hidden(found)


def hidden(found: Verdict) -> float:
    """The largest error that the line would not show, relative to the slope; 0 if f and the gradient are constant."""
    size = max(abs(found.claimed), abs(found.measured))
    return found.tolerance / size if size else 0.0


def verdict_along(value: Callable, gradient: Callable, x: np.ndarray, v: np.ndarray, dy: np.ndarray,
                  eps: float) -> Verdict:
    """The verdict of one line, which is narrower if the widest shows nothing."""
    found = Verdict("differences", "undecided", why="f is not defined along the line")
    counted = depends(value, x, v)
    for half in HALVES:
        drift = drift_along(value, gradient, nodes(x, half * v), half, np.where(counted, dy, 0), eps)
        if drift is None:
            continue
        found = judged(drift, 0.0 if counted.any() else unseen(value, x, dy, eps))
        if found.status != "undecided":
            break
    return found


def depends(value: Callable, x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which outputs [M] change along the line, or far beyond it?  Others have no rounding along it.

    Far, because an output may hide in its rounding what it does on the line.  Where f is not defined, each may.
    """
    with np.errstate(all="ignore"):
        try:
            here, *far = (value(np.asarray(x.astype(float) + t * v).astype(x.dtype)) for t in (0, -FAR, FAR))
        except Exception:
            return np.array(True)
        return np.any([one != here for one in far], axis=0) if far[0].shape == here.shape else np.array(True)


def unseen(value: Callable, x: np.ndarray, dy: np.ndarray, eps: float) -> float:
    """The steepest slope that outputs may have and not change as far as FAR: they change by less than their last place.

    Such as 1 + x / 10⁵ in float16.
    """
    y = np.asarray(value(x), float)
    return eps * float(np.abs(dy * y)[(dy != 0) & np.isfinite(y)].sum()) / FAR


def nodes(x: np.ndarray, reach: np.ndarray) -> list[np.ndarray]:
    """Points from x - reach to x + reach, in the dtype of x."""
    return [np.asarray(x.astype(float) + t * reach).astype(x.dtype) for t in np.linspace(-1, 1, NODES)]


def drift_along(value: Callable, gradient: Callable, points: list[np.ndarray], half: float, dy: np.ndarray,
                eps: float) -> Drift | None:
    """The drift along these points, which lie from -half to half; None where f is not defined or not finite."""
    with np.errstate(all="ignore"):
        try:
            y = np.array([np.where(dy != 0, value(x), 0) for x in points], float)
            dx = np.array([gradient(x).ravel() for x in points], float)
        except Exception:
            return None
        steps = np.diff([x.ravel().astype(float) for x in points], axis=0)
        terms = dy * y
        dx = np.where((steps != 0).any(axis=0), dx, 0)
        if not (np.isfinite(terms).all() and np.isfinite(dx).all() and np.isfinite(steps).all()):
            return None
    t = np.linspace(-half, half, NODES)
    slopes = dx @ steps.mean(axis=0) / (t[1] - t[0])
    gains = ((dx[1:] + dx[:-1]) * steps).sum(axis=1) / 2
    r = terms.sum(axis=1) - np.append(0, np.cumsum(gains))
    weights = t / (t @ t)
    drawn = roughness(r) * norm(weights) + roughness(slopes) / np.sqrt(NODES)
    least = float(finfo(points[0].dtype).smallest_normal)           # smaller ones are rounded as this is
    alike = norm(dy * np.fmax(np.abs(y), least).max(axis=0)) / half \
        + norm(np.fmax(np.abs(dx), least).max(axis=0) * steps.mean(axis=0)) / (t[1] - t[0])
    coarse = abs(np.trapezoid(slopes[::2], t[::2]) - np.trapezoid(slopes, t)) / (2 * half)
    drift = float(weights @ r)
    measured = float(weights @ terms.sum(axis=1))
    steady = bool(np.abs(np.diff(r)).max() < JUMP * abs(drift) * 2 * half)
    return Drift(drift, SIGMAS * drawn + SHARED * eps * alike + coarse, measured - drift, measured, steady)


def roughness(values: np.ndarray) -> float:
    """The standard deviation of the independent part of values at equal distances: second differences have √6 of it."""
    return float(np.sqrt(np.mean(np.diff(values, 2) ** 2) / 6))


def judged(drift: Drift, unseen: float = 0.0) -> Verdict:
    """The verdict of a drift; `unseen`: see there."""
    size, gap = max(abs(drift.claimed), abs(drift.measured)), abs(drift.value)
    numbers = drift.claimed, drift.measured, gap, drift.error
    why = f"along a line as wide as the inputs, back says {drift.claimed:.3g}, and f changes by {drift.measured:.3g}"
    if drift.error < gap <= unseen:
        return Verdict("differences", "undecided", *numbers, why="f changes by less than its rounding, if at all")
    if gap > drift.error:
        if drift.steady:
            return Verdict("differences", "wrong", *numbers, why=why)
        return Verdict("differences", "undecided", *numbers, why="f jumps along the line, or its rounding does")
    if drift.error > VISIBLE * size > 0:
        return Verdict("differences", "undecided", *numbers, why=f"rounding hides less than {drift.error / size:.0%}")
    seen = f"; an error above {drift.error / size:.2g} of the slope would show" if size else ""
    return Verdict("differences", "passed", *numbers, why=why + seen)


def directions(x: np.ndarray, rng: np.random.Generator, lines: int, entries: int) -> Iterator[np.ndarray]:
    """Random signs of every entry, relative to its size, then single entries; an entry of 0 moves as others do."""
    size = np.abs(np.where(np.isfinite(x), x, 0), dtype=float)
    typical = float(np.median(size[size > 0])) if size.any() else 1.0
    size = np.where(np.isfinite(x), np.where(size == 0, typical, size), 0)
    for _ in range(lines):
        yield size * rng.choice([-1.0, 1.0], x.shape)
    for place in rng.permutation(x.size)[:entries]:
        v = np.zeros(x.shape)
        v.flat[place] = size.flat[place]
        yield v


def by_integral(case: Case, eps: float, rng: np.random.Generator, lines: int, entries: int) -> Verdict:
    """The verdict on a case, along so many random lines and along those of so many single entries."""
    def at(x):
        return [x if i == case.place else leaf for i, leaf in enumerate(case.values.leaves)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # of lines that leave the domain of f
        return verdict(case.values.line(case.place).called, lambda x: case.gradient_at(at(x), case.dys), case.x,
                       directions(case.x, rng, lines, entries), case.dy, max(eps, case.eps))
