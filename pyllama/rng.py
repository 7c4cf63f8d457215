"""Counter-based random numbers: a draw depends on its key, never on earlier draws.

A resumed run, a recomputed activation and another rank therefore draw the numbers of the undisturbed run.
"""
import contextlib
import math
import operator
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

_undrawn: ContextVar[bool] = ContextVar("whether to draw shapes instead of numbers", default=False)


# The annotation is quoted, here and elsewhere, because NumPy loads numpy.random, and with it OpenSSL, when it is named:
# 6 MB, which greedy generation does without.
def generator(*key: int | str) -> "np.random.Generator":
    """A generator of Philox random numbers for this key, for example ``generator(seed, "dropout", step, layer)``.

    key     integers and strings

    Equal keys give equal streams on every machine, because NumPy guarantees that SeedSequence and Philox do not change.
    Different keys give independent streams.  Raises TypeError if a part of the key is neither.
    """
    if _undrawn.get():
        return Undrawn()                                # type: ignore[return-value]
    # Not the parts themselves: SeedSequence pads with zeros, so (7,) and (7, 0) would be the same key.
    text = repr([part if isinstance(part, str) else operator.index(part) for part in key])
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(text.encode(), "little"))))


class Draw(NamedTuple):
    """The random numbers of a forward pass's dropout: the key of the stream and the row at which it starts."""
    key: tuple[int | str, ...]                          # such as (seed, "dropout", step); (): no dropout
    row: int = 0                                        # number of x[0] among the rows of the step's batch

    def at(self, part: int | str) -> "Draw":
        """The draw of one layer or one part of it: append its number or name to the key."""
        return self._replace(key=(*self.key, part)) if self.key else self


NO_DRAW = Draw(())                                      # outside training: no dropout


@contextlib.contextmanager
def undrawn():
    """Let generators return shapes without numbers within this context: a model's init() then allocates no memory."""
    token = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(token)


class Shape:
    """A stand-in for a random matrix that has only its shape and supports the operations of a model's init()."""
    __array_ufunc__ = None                              # or a NumPy number times this would be an array of objects

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.size = shape, math.prod(shape)

    def __mul__(self, number):
        return self

    __rmul__ = __truediv__ = __mul__

    def astype(self, dtype, copy=True):
        return self


class Undrawn:
    """The generator within undrawn()."""

    def standard_normal(self, size):
        return Shape(size)

    def uniform(self, low, high, size):
        return Shape(size)
