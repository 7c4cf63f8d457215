"""Draw a random call of any op from its registration: sizes, inputs, options and the gradient of its output.

Every random decision is made by one function, choose(values), which picks from a list or from between(low, high).
Hypothesis supplies a choose() that it can shrink; choose_by(rng) makes one from a NumPy generator.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from pyllama.op import Op, between
from pyllama.shapes import Array, is_bfloat16, is_vector

SMALL = [2, 3, 1, 4, 5]
EDGES = [8, 15, 17, 31, 64, 65, 130, 1030]                   # on both sides of vector and block edges
MAY_BE_EMPTY = {"...", "B", "T", "S", "N"}                   # numbers of rows; a feature axis has at least one entry
MOST = 2 ** 13                                               # the largest product of the axes of one problem
FEW = 2 ** 8                                                 # and of a small one
MANY = [1, 2, 3, 5, 17, 65, 130, 190, 257, 515, 1030, 4100, 33000]
GRAIN = 2 ** 15                                              # as in csrc/cpu/real.h: fewer numbers use one thread


class Problem(NamedTuple):
    """A call of an op, op(*inputs, **options), and the gradient dy to call back with.  Inputs left out are None.

    >>> import numpy as np
    >>> from pyllama.ops import tanh
    >>> from pyllama.testing import Problem
    >>> x = np.array([0.0, 1.0])
    >>> inputs, options, dy = Problem(inputs=[x], options={}, dy=np.ones(2))
    >>> y, back = tanh(*inputs, **options)
    >>> dx, = back(dy)
    >>> dx.round(4)
    array([1.  , 0.42])
    """
    inputs: list[np.ndarray | None]
    options: dict[str, Any]
    dy: Any                                                  # an array, or a tuple for several outputs


def packed(dys):
    """The gradients of an op's outputs in the form that back takes: one array, or a tuple of several."""
    dys = tuple(dys)
    return dys if len(dys) > 1 else dys[0]


def named(dtype) -> np.dtype:
    """np.dtype(dtype), which knows bfloat16, too."""
    if str(dtype) == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def precision_of(array: Array, dtype) -> np.dtype:
    """The precision of a floating input or output in calls of this dtype.

    In calls in bfloat16, a norm's weight, a bias and a loss are float32.
    """
    in_float32 = is_bfloat16(named(dtype)) and (is_vector(array) or not array.axes)
    return np.dtype(np.float32) if in_float32 else named(dtype)


def choose_by(rng):
    """A choose() that draws from a NumPy generator."""
    def choose(values):
        if isinstance(values, between):
            whole = isinstance(values.low, int)
            return int(rng.integers(*values, endpoint=True)) if whole else float(rng.uniform(*values))
        return values[rng.integers(len(values))]
    return choose


class Sizes(dict):
    """The size of each axis letter, drawn when it is first asked for."""
    most, small = MOST, SMALL

    def __init__(self, choose):
        self.choose, self.span = choose, 1

    def __missing__(self, axis):
        if axis == "...":
            self[axis] = tuple(self[i] for i in range(self.choose([1, 2, 0])))
        else:
            self[axis] = self.choose(self.candidates(axis))
            self.span *= max(self[axis], 1)
        return self[axis]

    def candidates(self, axis):
        empty = [0] if axis in MAY_BE_EMPTY or isinstance(axis, int) else []
        return [1, 2, 3] if axis == "R" else self.small + empty + [n for n in EDGES if n * self.span <= self.most]

    def shape(self, axes):
        out = []
        for axis in axes:
            if axis.endswith("?") and self.choose([True, False]):
                continue
            if axis.endswith("|1") and self.choose([True, False]):
                out.append(1)
                continue
            axis = axis.removesuffix("?").removesuffix("|1")
            factors = [int(f) if f.isdigit() else self[f] for f in axis.split("*")]
            out += factors[0] if axis == "..." else [math.prod(factors)]
        return tuple(out)


class Small(Sizes):
    """Sizes for arrays of few numbers, whose rows may be long; none is empty."""
    most = FEW

    def candidates(self, axis):
        return [n for n in super().candidates(axis) if n]


class Large(Sizes):
    """Sizes that make kernels use several threads."""

    def candidates(self, axis):
        return MANY


def large(op: Op, choose) -> Large:
    """Sizes for which each floating array of several axes has more than GRAIN numbers, and at most 8 times as many."""
    arrays = [x.axes for x in (*op.outputs, *op.inputs)
              if not x.below and not x.optional and {*x.axes[:-1]}]
    while True:
        sizes = Large(choose)
        numbers = [math.prod(sizes.shape(axes)) for axes in arrays]
        if min(numbers) > GRAIN and max(numbers) <= 8 * GRAIN and sizes.span <= 2 ** 9 * GRAIN:
            return sizes


def problem(op: Op, choose, dtype: str = "float64", sizes: Sizes | None = None,
            options: dict[str, Any] | None = None) -> Problem:
    """Draw a random call of op.

    choose   picks options, sizes and the seed of the numbers: see choose_by()
    dtype    of the floating inputs and of dy, "float64", "float32" or "bfloat16": see precision_of()
    sizes    the sizes of the axes; None: small ones, drawn by choose
    options  of the op; None: drawn by choose
    returns  Problem(inputs, options, dy)

    Floating inputs and dy are standard normal.  That includes the weight of a norm: with ones, errors would be hidden.

    >>> import numpy as np
    >>> from pyllama.ops import linear
    >>> from pyllama.testing import problem
    >>> from pyllama.testing.problems import choose_by
    >>> (x, w, *bias), options, dy = problem(linear, choose_by(np.random.default_rng(0)))
    >>> x.shape[-1] == w.shape[1], dy.shape == (*x.shape[:-1], w.shape[0])
    (True, True)
    """
    sizes = Sizes(choose) if sizes is None else sizes
    options = {name: choose(values) for name, values in op.options.items()} if options is None else options
    rng = np.random.default_rng(choose(between(0, 2 ** 32)))
    shapes = [sizes.shape(wanted.axes) if not wanted.optional or choose([True, False]) else None
              for wanted in op.inputs]
    while shapes[-1] is None:
        shapes.pop()
    inputs: list[np.ndarray | None] = []
    for wanted, shape in zip(op.inputs, shapes, strict=False):
        if shape is None:
            x = None
        elif wanted.below:
            x = rng.integers(int(wanted.below) if wanted.below.isdigit() else sizes[wanted.below], size=shape)
            if "ignore_index" in options:
                x = np.where(rng.random(shape) < 0.25, options["ignore_index"], x)
        else:
            x = rng.standard_normal(shape).astype(precision_of(wanted, dtype))
        inputs.append(x)
    dy = packed(rng.standard_normal(sizes.shape(output.axes)).astype(precision_of(output, dtype))
                for output in op.outputs)
    return Problem(inputs, options, dy)
