"""Hypothesis strategies for functions of arrays: their inputs, cotangents, masks, token ids, layouts and dtypes.

    from hypothesis import given
    from pyllama.testing import strategies

    @given(strategies.arrays("x[... D], w[D] -> y[... D]"))
    def test_rms_norm(inputs):
        x, w = inputs

Numbers are drawn as eighths and then scaled, so that Hypothesis shrinks them to 0, 1 and ½ and a failure can be read.
In half of the arrays all numbers but zeros are moved off the eighths, so that ties are rare.

Three reasons for how things are drawn.  (a) All numbers of an array are one draw of bytes, which costs as much as one
number.  (b) The size of that draw does not depend on the shape, so that both shrink independently; and it is read from
its end, because Hypothesis moves what is not zero there.  (c) Hypothesis mixes constants of the loaded modules into its
draws, so a seed would mean something else in another run.  A decision is therefore a letter of an alphabet that no
module uses.
"""
import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pyllama import shapes
from pyllama.op import between
from pyllama.testing.layouts import LAYOUTS
from pyllama.testing.problems import Problem, Sizes, named, packed, precision_of

DTYPES = ("float64", "float32", "float16", "bfloat16")
SMALL = [1, 2, 3, 4, 5]
MOST = 2 ** 11                                          # the largest product of the axes of one problem
LETTER = 0xF0000                                        # the first of Unicode's second area for private use
LETTERS = 2 ** 15
NUMBERS = 61                                            # bytes; prime: rows of a large array then differ
SCALES = [1, 3, 1 / 3]                                  # a third of an eighth is rounded in every dtype
APART = 1 / 16                                          # half an eighth: how far numbers are moved off the eighths


def simple(eighths: Fraction):
    """Sorts 0, 1, -1, 2, -2, ½, -½, ..."""
    return eighths.denominator, abs(eighths), eighths < 0


EIGHTHS = np.array(sorted((Fraction(k, 8) for k in range(-16, 17)), key=simple), dtype=float)


@functools.cache
def letters(count: int) -> st.SearchStrategy[str]:
    """One of the first letters, all as likely as each other."""
    return st.text("".join(chr(LETTER + i) for i in range(count)), min_size=1, max_size=1)


def decisions(draw):
    """A choose(values) as in problems.py: from a list or from between(low, high).  It shrinks to the first value."""
    def number(count):
        if count <= LETTERS:
            return ord(draw(letters(count))) - LETTER        # map() would take half as long again
        return (number(1 + count // LETTERS) * LETTERS + number(LETTERS)) % count

    def choose(values):
        if not isinstance(values, between):
            return values[number(len(values))] if len(values) > 1 else values[0]
        low, high = values
        if isinstance(low, int) and isinstance(high, int):
            return low + number(high - low + 1)
        landmarks = [*inside(values)[:3].tolist(), low, high]
        return choose([*landmarks, *spaced(values)])

    return choose


def inside(interval):
    """The eighths within an interval, 0, 1 and ½ first."""
    return np.array([x for x in EIGHTHS if interval.low <= x <= interval.high])


@functools.cache
def spaced(interval):
    """Numbers of few digits, evenly over an interval."""
    low, high = interval
    return [min(max(float(f"{x:.3g}"), low), high) for x in np.linspace(low, high, 64)]


class SmallFirst(Sizes):
    """The sizes of the axes, which shrink to 1, and "..." to no axis.  Some are empty, some around block edges."""
    small = SMALL

    def __init__(self, choose, most=MOST, declared=()):
        super().__init__(choose)
        self.most, self.declared = most, declared
        self.bounds = {x.below for x in declared}                       # no integer is below 0

    def __missing__(self, axis):
        if axis != "...":
            return super().__missing__(axis)
        self[axis] = tuple(self[i] for i in range(self.choose([0, 1, 2])))
        return self[axis]

    def candidates(self, axis):
        return [n for n in super().candidates(axis) if n or axis not in self.bounds]


def numbers(draw, choose, shape, dtype="float64", interval: between | None = None):
    """An array of eighths, scaled or within an interval.  Zeros stay zeros in all that follows."""
    n = math.prod(shape)
    drawn = repeated(draw, np.dtype(np.uint8), n)
    table, scale = (within(interval), 1) if interval else (EIGHTHS, choose(SCALES))
    x = table[drawn % len(table)] * scale
    if choose([False, True]):
        rng = np.random.default_rng(choose(between(0, 2 ** 32)))
        x = np.where(x == 0, 0, x + scale * rng.uniform(-APART, APART, n))
    if interval:
        x = np.clip(x, *interval)
    return x.reshape(shape).astype(named(dtype))


def repeated(draw, dtype, n):
    """n whole numbers of an unsigned dtype: NUMBERS are drawn and repeated, each time times another odd number.

    If most of those drawn are zero, the rest is: two numbers that shrink to one and its repetition would keep an array
    large.
    """
    bytes_drawn = NUMBERS * dtype.itemsize
    block = np.frombuffer(draw(st.binary(min_size=bytes_drawn, max_size=bytes_drawn)), dtype)[::-1]
    i = np.arange(n)
    drawn = block[i % NUMBERS] * (2 * (i // NUMBERS) + 1).astype(dtype)
    if np.count_nonzero(block) <= NUMBERS // 2:
        drawn[NUMBERS:] = 0
    return drawn


def within(interval):
    """The eighths of an interval; if they are few, also sixteenths of its width."""
    eighths = inside(interval)
    if len(eighths) >= 16:
        return eighths
    return np.concatenate([eighths, np.linspace(*interval, 17)])


def below(draw, choose, shape, bound):
    """Integers from 0 to bound - 1; in a third of the arrays only the first few, many times each."""
    drawn = repeated(draw, np.dtype(">u2"), math.prod(shape))
    few = choose([bound, bound, min(bound, 2)])
    return (drawn % few).astype(np.int64).reshape(shape)


def drawn_inputs(draw, choose, sizes, declared, precision, ranges):
    """An array, or None, for each input of a shape line.  precision(x): that of a floating input"""
    inputs: list[np.ndarray | None] = []
    for x in declared:
        if x.optional and choose([True, False]):
            inputs.append(None)
        elif x.below:
            bound = int(x.below) if x.below.isdigit() else sizes[x.below]
            inputs.append(below(draw, choose, sizes.shape(x.axes), bound))
        else:
            inputs.append(numbers(draw, choose, sizes.shape(x.axes), precision(x), ranges.get(x.name)))
    return inputs


@st.composite
def arrays(draw, line: str, dtype="float64", most: int = MOST, **ranges: between):
    """Inputs for a shape line: a tuple of an array for each input, None for an optional one that is left out.

    line     "x[... D], ids[T]<V -> y[... D]", or its inputs alone; see shapes.py
    dtype    of the floating inputs; integer inputs are int64
    most     the largest product of the axes
    ranges   x=between(0.5, 2) keeps the numbers of x in this interval; otherwise they are between -6 and 6

    Raises ValueError for a line that is not a shape line, TypeError for a range of an input that the line lacks.

    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import arrays
    >>> x, w = find(arrays("x[... D], w[D] -> y[... D]"), lambda inputs: inputs[1].sum() > 0)
    >>> x, w
    (array([0.]), array([1.]))
    """
    declared = shapes.parse(line)[0] if "->" in line else shapes.arrays(line, line)
    if unknown := ranges.keys() - {x.name for x in declared if not x.below}:
        raise TypeError(f"{line!r} has no floating input {min(unknown)!r}; give ranges for its inputs")
    choose = decisions(draw)
    return tuple(drawn_inputs(draw, choose, SmallFirst(choose, most, declared), declared, lambda x: dtype, ranges))


@st.composite
def cotangents(draw, y):
    """A dy for y: of its form (an array, a number, or a tuple of these), its shapes and its dtypes.

    >>> import numpy as np
    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import cotangents
    >>> find(cotangents(np.ones(3, np.float32)), np.any)
    array([1., 0., 0.], dtype=float32)
    """
    choose = decisions(draw)

    def cotangent(a):
        dy = numbers(draw, choose, np.shape(a), getattr(a, "dtype", "float64"))
        return dy if isinstance(a, np.ndarray) else dy[()]

    return tuple(map(cotangent, y)) if isinstance(y, tuple) else cotangent(y)


@st.composite
def masks(draw, *shape: int):
    """Which keys each query attends to: a Boolean array [... T S], True where it does.

    All, causal, padding of each row's end, random ones, or none; a query without a key is among them.

    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import masks
    >>> find(masks(2, 3), lambda mask: not mask.all())
    array([[ True,  True, False],
           [ True,  True,  True]])
    """
    choose = decisions(draw)
    *rows, T, S = shape
    kind = choose(["all", "causal", "padding", "random", "none"])
    if kind == "causal":
        return np.broadcast_to(np.tri(T, S, S - T, dtype=bool), shape).copy()
    if kind == "padding":
        lengths = S - below(draw, choose, (*rows, 1, 1), S + 1)
        return np.broadcast_to(np.arange(S) < lengths, shape).copy()
    if kind == "random":
        return below(draw, choose, shape, 2) == 0
    return np.full(shape, kind == "all")


class Tokens(NamedTuple):
    """A batch of token ids [B T] below V, and labels [B T], some of which are ignore_index."""
    ids: np.ndarray
    labels: np.ndarray
    V: int
    ignore_index: int


@st.composite
def token_batches(draw, ignore_index: int = -100, most: int = MOST):
    """Tokens: ids with repeats, labels of which some, all or none are ignored, batches that may be empty.

    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import token_batches
    >>> find(token_batches(), lambda batch: (batch.labels == -100).any())
    Tokens(ids=array([[0]]), labels=array([[-100]]), V=1, ignore_index=-100)
    """
    choose = decisions(draw)
    sizes = SmallFirst(choose, most)
    shape = sizes.shape(("B", "T"))
    ids, labels = (below(draw, choose, shape, sizes["V"]) for _ in "il")
    return Tokens(ids, without_ignored(draw, choose, labels, ignore_index), sizes["V"], ignore_index)


def without_ignored(draw, choose, labels, ignore_index):
    """Labels of which some are replaced by ignore_index, or all of them, or none."""
    kind = choose(["none", "some", "some", "all"])
    if kind == "some":
        return np.where(below(draw, choose, labels.shape, 4) > 2, ignore_index, labels)
    return labels if kind == "none" else np.full_like(labels, ignore_index)


@st.composite
def grouped_query(draw, dtype="float64", most: int = MOST, flat: bool = False):
    """(q, k, v) of grouped-query attention: q[B G R T K] with R query heads for each k[B G S K] and v[B G S K].

    flat    as models have them: q[B T H K] with H = G R heads, k[B S G K], v[B S G K]

    More queries than keys, one query, and groups of one head are among them.

    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import grouped_query
    >>> q, k, v = find(grouped_query(), lambda qkv: qkv[0].shape[2] == 2)
    >>> q.shape, k.shape
    ((1, 1, 2, 1, 1), (1, 1, 1, 1))
    """
    line = "q[B T G*R K], k[B S G K], v[B S G K]" if flat else "q[B G R T K], k[B G S K], v[B G S K]"
    return draw(arrays(line, dtype, most))


@st.composite
def layouts(draw, x):
    """x, an array or a strategy of arrays, in a drawn layout of layouts.py; it shrinks to C order.

    An array without entries has no layout but that of its shape: arrays() draws these.

    >>> import numpy as np
    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import layouts
    >>> find(layouts(np.ones((2, 3))), lambda x: x.strides[0] < 0).strides
    (-24, -8)
    """
    x = draw(x) if isinstance(x, st.SearchStrategy) else x
    return LAYOUTS[decisions(draw)(list(LAYOUTS))](x)


def dtypes(*names: str):
    """The dtypes of these names, float64, float32, float16 and bfloat16 if none is given.

    >>> from hypothesis import find
    >>> from pyllama.testing.strategies import dtypes
    >>> find(dtypes(), lambda dtype: dtype.itemsize == 2)
    dtype('float16')
    """
    return st.sampled_from(names or DTYPES).map(named)


@st.composite
def problems(draw, op, dtype="float64", most: int = MOST):
    """A call of a registered op: Problem(inputs, options, dy), as pyllama.testing.problem() draws one.

    In a call in bfloat16, every third of the other inputs is float32 though it usually is bfloat16, or the reverse.

    >>> from hypothesis import find
    >>> from pyllama.ops import rms_norm
    >>> from pyllama.testing.strategies import problems
    >>> find(problems(rms_norm), lambda problem: problem.inputs[0].any())
    Problem(inputs=[array([1.]), array([0.])], options={'eps': 1.0}, dy=array([0.]))
    """
    choose = decisions(draw)
    sizes = SmallFirst(choose, most, op.inputs)
    options = {name: choose(values) for name, values in op.options.items()}
    first = next(x for x in op.inputs if not x.below)

    def precision(x):
        usual = precision_of(x, dtype)
        if x is first or str(dtype) != "bfloat16":
            return usual
        return choose([usual, usual, named("bfloat16" if usual == np.float32 else "float32")])

    inputs = drawn_inputs(draw, choose, sizes, op.inputs, precision, {})
    if "ignore_index" in options:
        inputs = [without_ignored(draw, choose, x, options["ignore_index"]) if declared.below and x is not None else x
                  for x, declared in zip(inputs, op.inputs, strict=True)]
    while inputs[-1] is None:
        inputs.pop()
    dy: Any = packed(numbers(draw, choose, sizes.shape(y.axes), precision_of(y, dtype)) for y in op.outputs)
    return Problem(inputs, options, dy)
