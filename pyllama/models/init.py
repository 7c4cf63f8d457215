"""Initial weights: dicts of one layer's parameters under the names of a state dict."""
from collections.abc import Callable

import numpy as np


class Initializer:
    """Draws matrices from N(0, std²), in order, from one stream of random numbers.

    std     a number, or a function of (rows, columns)
    """

    def __init__(self, rng: np.random.Generator, std: float | Callable[[int, int], float], dtype: str):
        self.rng, self.std, self.dtype = rng, std, dtype

    def matrix(self, rows: int, columns: int, std: float | None = None) -> dict:
        """{"weight": [rows columns]}; std overrides the default."""
        if std is None:
            std = self.std(rows, columns) if callable(self.std) else self.std
        return {"weight": (std * self.rng.standard_normal((rows, columns))).astype(self.dtype)}

    def affine(self, outputs: int, inputs: int, std: float | None = None, bias: bool = True) -> dict:
        """{"weight": [outputs inputs], "bias": [outputs]}; the bias, which is optional, is zero."""
        p = self.matrix(outputs, inputs, std)
        return p | {"bias": self.zeros(outputs)} if bias else p

    def norm(self, width: int, bias: bool = True) -> dict:
        """{"weight": [width], "bias": [width]}; the weight is one; the bias, which is optional, is zero."""
        p = {"weight": np.ones(width, self.dtype)}
        return p | {"bias": self.zeros(width)} if bias else p

    def zeros(self, *shape: int) -> np.ndarray:
        """An array of zeros of this shape."""
        return np.zeros(shape, self.dtype)
