"""Formulas on random numbers: derivatives by a complex step, equality up to rounding."""
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.erf import erf
from pyllama.study.axes import MOVED, Array, spread

STEP = 1e-30                                    # its square is lost: a complex step is exact up to rounding
EXACT = 1e-11                                   # 45,000 eps: rounding of a formula of numbers of size one is far below


class Numeric:
    """Arrays of float64, or of complex128 within a derivative."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def fresh(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers away from 0, so that no relative error is large by chance."""
        return self.rng.choice([-1.0, 1.0], shape) * self.rng.uniform(0.3, 1.5, shape)

    def positive(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Below 1, so that they may be shares, as momentum and smoothing are."""
        return self.rng.uniform(0.3, 0.95, shape)

    def whole(self, name: str, value: int) -> np.ndarray:
        return np.asarray(float(value))

    def number(self, value: Any) -> Any:
        return float(value)

    def constant(self, name: str) -> Any:
        return {"π": np.pi, "e": np.e}[name]

    def function(self, name: str, data: np.ndarray) -> np.ndarray:
        if name == "abs":
            return np.where(data.real < 0, -data, data)
        if name in ("floor", "ceil"):
            return getattr(np, name)(np.real(data))
        return erf(data) if name == "erf" else getattr(np, name)(data)

    def largest(self, data: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
        """The maximum over these axes, as a function of the number that is the largest."""
        moved = np.moveaxis(data, axis, range(-len(axis), 0)).reshape(*np.delete(data.shape, axis), -1)
        at = moved.real.argmax(axis=-1)[..., None]
        return np.take_along_axis(moved, at, -1)[..., 0]

    def compare(self, sign: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = np.real(left), np.real(right)
        return {"=": np.equal, "≠": np.not_equal, "<": np.less, ">": np.greater, "≤": np.less_equal,
                "≥": np.greater_equal}[sign](left, right).astype(float)

    def derivatives(self, evaluate: Callable[[np.ndarray], Array], data: np.ndarray, name: str) -> Array:
        """The derivative of evaluate(data) with respect to each number of data, whose axes come last.

        evaluate(data) is an Array; those axes are named by the caller.  All numbers are moved at once, each in a row of
        its own along the axis MOVED, which is the first one of its argument.
        """
        steps = 1j * STEP * np.eye(data.size).reshape(data.size, *data.shape)
        above = evaluate(data + steps)
        axes = tuple(axis for axis in above.axes if axis != MOVED)
        slopes = np.imag(spread(above, (*axes, MOVED))) / STEP
        slopes = np.broadcast_to(slopes, (*slopes.shape[:-1], data.size))
        return Array(axes, slopes.reshape(*slopes.shape[:-1], *data.shape))

    def pointwise(self, f: Callable[[np.ndarray], np.ndarray], data: np.ndarray) -> np.ndarray:
        """f'(data), number by number."""
        return np.imag(f(data + 1j * STEP)) / STEP

    def apart(self, left: np.ndarray, right: np.ndarray) -> str:
        """How both differ, in words; "" if they are equal up to rounding."""
        size = max(1.0, np.abs(left).max(initial=0), np.abs(right).max(initial=0))
        error = np.abs(left - right)
        if np.isfinite(size) and (error <= EXACT * size).all():
            return ""
        at = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
        return f"{np.broadcast_to(left, error.shape)[at]:.6g} is not {np.broadcast_to(right, error.shape)[at]:.6g}"
