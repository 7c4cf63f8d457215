"""Random calls of an op for a property that is looked at: small ones, empty ones, in unusual layouts, ..."""
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from pyllama.testing.layouts import LAYOUTS, repeated
from pyllama.testing.passes import eps_of
from pyllama.testing.problems import EDGES, MAY_BE_EMPTY, MOST, SMALL, Sizes, choose_by, named, problem
from pyllama.testing.trees import is_float
from pyllama.testing.verify.adapter import Adapter
from pyllama.testing.verify.counterexample import Call

UNUSUAL = [name for name in LAYOUTS if name != "C"]
SCALES = [1e3, 1e-3, 30.0, 1e-6, 1e4]               # exp overflows in float64 at 710, in float32 at 89
LONG = 4096                                         # terms of a sum
ATTEMPTS = 100                                      # to draw a call that has the property


class Within(Sizes):
    """Sizes of which each axis has its own candidates."""

    def __init__(self, choose, lengths):
        super().__init__(choose)
        self.lengths = lengths

    def candidates(self, axis):
        return self.lengths(axis, self.span)


def few(axis, span):
    return [1, 2, 3] if axis == "R" else SMALL


def several(axis, span):
    return [2, 3] if axis == "R" else [3, 2, 5]                     # one entry has no order in memory


def across_edges(axis, span):
    return few(axis, span) if axis == "R" else [n for n in EDGES if n * span <= MOST] or [1]


def across_long_edges(axis, span):
    """The first axis is too long for sums in float16 and bfloat16, where 2,048 + 1 and 256 + 1 change nothing."""
    return [LONG] if axis != "R" and span == 1 else across_edges(axis, span)


def perhaps_none(axis, span):
    return [0, 2] if axis in MAY_BE_EMPTY or isinstance(axis, int) else few(axis, span)


def in_groups(axis, span):
    return [2, 3] if axis in "GR" else few(axis, span)


class RandomCalls:
    """Draws the calls that an adapter's function is tried with.

    dtype       of the floating arrays
    other       the other precision to try, or the same one
    """

    def __init__(self, adapter: Adapter, dtype: str, other: str, rng: np.random.Generator):
        self.adapter, self.op, self.dtype, self.other = adapter, adapter.op, dtype, other
        self.choose, self.rng = choose_by(rng), rng
        self.defaults = adapter.defaults()
        self.free = {name: values for name, values in self.op.options.items()
                     if name in adapter.options and name not in adapter.fixed}

    def small(self, number: int) -> Call:
        return self.drawn(few)

    def sizes(self, number: int) -> Call:
        half = eps_of(self.dtype) > eps_of(np.float32)
        return self.drawn(across_long_edges if half and number % 2 else across_edges)

    def empty(self, number: int) -> Call | None:
        """None if no axis may be empty."""
        axes = {axis for x in (*self.adapter.inputs, *self.op.outputs) for axis in x.axes}
        if not axes & {*MAY_BE_EMPTY}:
            return None
        return self.first(lambda: self.drawn(perhaps_none), lambda call: any(x.size == 0 for x in given(call)))

    def groups(self, number: int) -> Call | None:
        """None if the op has no grouped queries."""
        axes = {factor for x in self.op.inputs for axis in x.axes for factor in axis.split("*")}
        return self.drawn(in_groups) if {"G", "R"} <= axes else None

    def options(self, number: int) -> Call | None:
        """None if the function takes no option."""
        return self.drawn(few, self.free) if self.free else None

    def layouts(self, number: int) -> Call:
        """Each layout in turn; of some of the arrays, then of all."""
        call = self.drawn(several, self.free)
        how = UNUSUAL[number % len(UNUSUAL)]
        chosen = self.rng.random(len(call.arrays)) < (1.0 if number % 2 else 0.5)
        chosen[self.rng.integers(len(chosen))] = True
        arrays = [repeated(x).copy() if x is not None and x.ndim and how == "broadcast" else x for x in call.arrays]
        return replace(call, arrays=tuple(arrays), layouts=tuple(how if it else "C" for it in chosen))

    def dtypes(self, number: int) -> Call:
        """Each precision in turn; ids of 32 and of 64 bits."""
        call = self.drawn(few, dtype=self.other if number % 2 else self.dtype)
        ids = np.int32 if number // 2 % 2 else np.int64
        arrays = [x.astype(ids) if x is not None and not is_float(x) else x for x in call.arrays]
        return replace(call, arrays=tuple(arrays))

    def scales(self, number: int) -> Call:
        """Small arrays of large and of tiny numbers: each scale in turn, in each precision; dy stays as it is."""
        call = self.drawn(few, dtype=self.other if number // len(SCALES) % 2 else self.dtype)
        scale = SCALES[number % len(SCALES)]
        inputs = [np.asarray(x * x.dtype.type(scale)) if x is not None and is_float(x) else x
                  for x in call.arrays[:-call.outputs]]
        return replace(call, arrays=(*inputs, *call.arrays[-call.outputs:]))

    def first(self, draw, wanted) -> Call | None:
        return next((call for call in (draw() for _ in range(ATTEMPTS)) if wanted(call)), None)

    def drawn(self, lengths, options: dict[str, Any] | None = None, dtype: str = "") -> Call:
        """A random call.  Options have the op's default, but for those given, which are drawn."""
        drawn = dict(options or {}) | {name: self.op.options[name] for name in self.op.options
                                       if name not in self.defaults}
        line: Any = SimpleNamespace(inputs=self.adapter.inputs, outputs=self.op.outputs, options=drawn)
        sizes = Within(self.choose, lengths)
        inputs, chosen, dy = problem(line, self.choose, dtype or self.dtype, sizes)
        inputs = [x if x is None else in_one(x, dtype or self.dtype) for x in inputs]
        inputs += [None] * (len(self.adapter.inputs) - len(inputs))
        dys = [in_one(d, dtype or self.dtype) for d in (dy if len(self.op.outputs) > 1 else (dy,))]
        arrays = (*inputs, *dys)
        letters = {axis: n for axis, n in sizes.items() if isinstance(axis, str)}
        return Call((*self.adapter.inputs, *self.op.outputs), arrays, len(dys), self.defaults | chosen, letters,
                    ("C",) * len(arrays), self.defaults)


def in_one(x, dtype: str) -> np.ndarray:
    """x as an array, because a number has no entries to simplify; in this precision, if it is floating.

    problem() draws vectors in float32 beside bfloat16, but the functions of others take one precision.
    """
    return np.asarray(x).astype(named(dtype), copy=False) if is_float(x) else np.asarray(x)


def given(call: Call) -> list[np.ndarray]:
    return [x for x in call.arrays if x is not None]
