"""Counter-based random numbers: a draw depends on what it is for, never on what was drawn before it.

So a resumed run, a recomputed activation and another rank draw what the undisturbed run would have drawn.
"""
import contextlib
import math
import operator
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

_undrawn: ContextVar[bool] = ContextVar("draw shapes instead of numbers?", default=False)


def generator(*key: int | str) -> np.random.Generator:
    """A Philox stream for this key, for example ``generator(seed, "dropout", step, layer)``.

    Every part is an integer or a word.  Equal keys give equal streams on every machine (NumPy's SeedSequence and Philox
    are stable by contract); different keys give independent ones.
    """
    if _undrawn.get():
        return Undrawn()                                # type: ignore[return-value]
    # Not the parts themselves: SeedSequence fills up with zeros, so that (7,) and (7, 0) would be one key.
    text = repr([part if isinstance(part, str) else operator.index(part) for part in key])
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(text.encode(), "little"))))


class Draw(NamedTuple):
    """What the dropout of a forward pass is drawn from: the key of a stream, and the place of its rows in the batch."""
    key: tuple[int | str, ...]                          # such as (seed, "dropout", step); (): nothing is drawn
    row: int = 0                                        # row number of x[0] in the whole batch

    def at(self, place: int | str) -> "Draw":
        """The draw of one layer or one part of it: the key grows by its name."""
        return self._replace(key=(*self.key, place)) if self.key else self


NO_DRAW = Draw(())                                      # outside training: no dropout


@contextlib.contextmanager
def undrawn():
    """Within this context a generator draws shapes without numbers: an init() then tells its shapes, for no memory."""
    token = _undrawn.set(True)
    try:
        yield
    finally:
        _undrawn.reset(token)


class Shape:
    """A matrix of which the shape alone is there, through what an init() does to one."""
    __array_ufunc__ = None                              # or a NumPy number times this would be an array of objects

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.size = shape, math.prod(shape)

    def __mul__(self, number):
        return self

    __rmul__ = __truediv__ = __mul__

    def astype(self, dtype):
        return self


class Undrawn:
    """What init() draws from in undrawn()."""

    def standard_normal(self, size):
        return Shape(size)

    def uniform(self, low, high, size):
        return Shape(size)
