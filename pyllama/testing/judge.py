"""Judge the gradient of one output with respect to one leaf, at one point."""
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.testing.calls import Function
from pyllama.testing.compare import Comparison, compare, direction
from pyllama.testing.passes import flat
from pyllama.testing.report import Verdict
from pyllama.testing.trees import is_float

SHAKE = 1e-6                                # between neighbors that differ in their rounding errors


class Line:
    """All outputs of f, end to end [M], at leaves whose number `place` is moved by t v: line(t).

    Each t is computed once.  Where f refuses a real t, or returns another number of outputs, they are NaN.
    """

    def __init__(self, function: Function, leaves: list, place: int, v: np.ndarray, size: int):
        self.function, self.leaves, self.place, self.v, self.size = function, leaves, place, v, size
        self.known: dict[complex, np.ndarray] = {}

    def __call__(self, t: complex) -> np.ndarray:
        if t not in self.known:
            self.known[t] = self.computed(t)
        return self.known[t]

    def computed(self, t: complex) -> np.ndarray:
        moved = [x if x is None else np.array(x) for x in self.leaves]
        x = self.leaves[self.place]
        dtype = np.result_type(x.dtype, np.complex64) if isinstance(t, complex) else x.dtype
        moved[self.place] = np.asarray(x + t * self.v).astype(dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                outputs = flat(self.function.values(moved))
        except Exception:
            if isinstance(t, complex):
                raise
            outputs = np.empty(0)
        if outputs.shape != (self.size,):
            return np.full(self.size, np.nan)
        return outputs.astype(np.result_type(outputs, float))


def shaken(x: Any, rng: np.random.Generator) -> Any:
    """The array with other rounding errors, in float32 or float64."""
    return np.asarray(x * (1 + SHAKE * rng.standard_normal(x.shape)), x.dtype) if is_float(x) else x


def inequality(name: str, claimed: float, measured: float, error: float, tolerance: float) -> str:
    """The comparison as an inequality with numbers."""
    sign = "<=" if error <= tolerance else ">"
    return f"|back {claimed:.9g} - {name} {measured:.9g}| = {error:.2g} {sign} {tolerance:.2g}"


def verdict_of(found: Comparison) -> Verdict:
    """A comparison, whose error and tolerance are relative, as a verdict, where they are absolute."""
    gap = abs(found.slope - found.claimed)
    size = gap / found.error if found.error else max(abs(found.slope), abs(found.claimed))
    error, tolerance = (gap, found.tolerance * size) if np.isfinite(gap) else (gap, found.tolerance)
    why = "along a random direction: " + inequality(found.name, found.claimed, found.slope, error, tolerance)
    return Verdict(found.method, "wrong" if found.wrong else "passed", found.claimed, found.slope, error, tolerance,
                   why)


def along_a_direction(function: Function, line: Line, dx: np.ndarray, dy: np.ndarray, outputs: tuple,
                      gradient_at: Callable) -> Verdict | None:
    """Compare <dx, v> with <dy, J v>; None if f has a kink there, or its noise hides its slope.

    gradient_at     gradient_at(leaves) is dx at other leaves, for the same dy
    """
    def neighbor(k):
        rng = np.random.default_rng(k)
        near = [shaken(x, rng) for x in line.leaves]
        return gradient_at(near), Line(function, near, line.place, line.v, line.size)

    found = compare(function.name, line, dx, line.v, dy, outputs, neighbor)
    return verdict_of(found) if found else None


__all__ = ["Line", "along_a_direction", "direction", "inequality"]
