"""Initial weights: dicts of one layer's parameters under the names of a state dict."""
import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from pyllama import memory, params
from pyllama.errors import UserError
from pyllama.rng import undrawn

LARGEST = 2**48                                     # numbers in a parameter
_left: ContextVar[Iterator[int] | None] = ContextVar("parameters that outlines may still have", default=None)
_kept: ContextVar[Collection | None] = ContextVar("shapes of the parameters that init() keeps", default=None)


@contextlib.contextmanager
def outlines(most: int = LARGEST):
    """Let init() of a model draw nothing within this context: its arrays have shapes, and no memory.

    most    how many arrays there may be: more of them raise UserError
    """
    token = _left.set(itertools.chain(range(most), [-1]).__iter__())
    try:
        with undrawn():
            yield
    finally:
        _left.reset(token)


def new_parameters(config: Any, dtype: str, shapes: Collection[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """{name: array} of a model's init(), of which only the arrays of these shapes have memory.

    All are drawn, because they come from one stream of random numbers.
    """
    token = _kept.set(shapes)
    try:
        return dict(params.leaves(config.model.init(config, dtype=dtype)))
    finally:
        _kept.reset(token)
        memory.release()                            # of the arrays that were dropped


def outline(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array of this shape without memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


class Initializer:
    """Draws matrices from N(0, std²), in order, from one stream of random numbers.

    std     a number, or a function of (rows, columns)
    """

    def __init__(self, rng: "np.random.Generator", std: float | Callable[[int, int], float], dtype: str):
        self.rng, self.std, self.dtype = rng, std, dtype

    def matrix(self, rows: int, columns: int, std: float | None = None) -> dict:
        """{"weight": [rows columns]}; std overrides the default."""
        if std is None:
            std = self.std(rows, columns) if callable(self.std) else self.std
        return {"weight": self.array((rows, columns), lambda shape: self.normal(shape, std))}

    def normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        """An array of this shape from N(0, std²), in float64."""
        x = self.rng.standard_normal(shape)
        x *= std                                    # in place: a table of embeddings is large
        return x

    def table(self, rows: int, columns: int, factor: int | None = None, std: float | None = None) -> dict:
        """Token embeddings {"weight": [rows columns]}; with a factor E {"weight": [rows E], "projection": [columns E]}.

        The projection is from N(0, 1/E), so that its results are of the size of what it reads.
        """
        if factor is None:
            return self.matrix(rows, columns, std)
        return self.matrix(rows, factor, std) | {"projection": self.matrix(columns, factor, factor ** -0.5)["weight"]}

    def affine(self, outputs: int, inputs: int, std: float | None = None, bias: bool = True, rank: int = 0) -> dict:
        """{"weight": [outputs inputs], "bias": [outputs]}; the bias, which is optional, is zero.

        With a rank, two factors {"first": {"weight": [rank inputs]}, "second": ...}, whose product has this variance.
        """
        if rank:
            return {"first": self.matrix(rank, inputs, rank ** -0.5), "second": self.affine(outputs, rank, std, bias)}
        p = self.matrix(outputs, inputs, std)
        return p | {"bias": self.zeros(outputs)} if bias else p

    def norm(self, width: int, bias: bool = True) -> dict:
        """{"weight": [width], "bias": [width]}; the weight is one; the bias, which is optional, is zero."""
        p = {"weight": self.array((width,), np.ones)}
        return p | {"bias": self.zeros(width)} if bias else p

    def uniform(self, bound: float, *shape: int) -> np.ndarray:
        """An array of this shape, uniform in ±bound."""
        return self.array(shape, lambda shape: self.rng.uniform(-bound, bound, shape))

    def zeros(self, *shape: int) -> np.ndarray:
        """An array of zeros of this shape."""
        return self.array(shape, np.zeros)

    def array(self, shape: tuple[int, ...], fill: Callable) -> np.ndarray:
        """fill(shape), or within outlines() an array of this shape without memory."""
        left = _left.get()
        if left is None:
            drawn, kept = fill(shape).astype(self.dtype, copy=False), _kept.get()
            return drawn if kept is None or shape in kept else outline(shape, self.dtype)
        if next(left) < 0 or math.prod(shape) >= LARGEST:
            raise UserError("config.json describes more or larger parameters than the weights have; give the "
                            "config.json that belongs to the weights")
        return outline(shape, self.dtype)
