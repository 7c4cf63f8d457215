"""Count false alarms and misses of the gradient checker, on the functions of `functions.py`.

    python -m bench.alarms                      # 10,000 correct cases; the wrong ones among as many
    python -m bench.alarms --cases 500 --first 7000 --only softmax

Each case is a function, inputs of a random shape, and scales of 1e-12 to 1e12 for inputs and outputs.  It runs

- as it is, through gradcheck, in float64, and every tenth in a function that accepts float32 alone;
- through the verdicts one by one: order, entries, subgradients; and in float32 beside float64 (precision);
- with gradients that are wrong by a factor: 1 + 1e-6, 1.01, -1 and 0 in float64, 1.01 in float32.

Correct cases must not alarm, and wrong ones must.  A wrong gradient that is zero anyway is not counted.
"""
import functools
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from bench import array_functions  # noqa: F401 -- registers
from bench.functions import CASES, scaled
from pyllama.testing import compare, entries, kinks, order
from pyllama.testing.judge import shaken, verdict_of
from pyllama.testing.passes import flat
from pyllama.testing.report import Verdict
from pyllama.testing.trees import is_float

SCALES = 10.0 ** np.arange(-12, 13, 4)
WRONG = {"a millionth": 1 + 1e-6, "a percent": 1.01, "the sign": -1.0, "zero": 0.0}


def drawn(k: int, only: str = "") -> tuple[str, Callable, list, np.random.Generator]:
    """(name, f, inputs, rng) of case k: every function in turn, first without scales."""
    names = [name for name in CASES if only in name]
    name, rng = names[k % len(names)], np.random.default_rng(k)
    a, b = rng.choice(SCALES, 2) if k >= len(names) else (1.0, 1.0)
    inputs = [x * a if is_float(x) else x for x in CASES[name].draw(rng)]
    return name, scaled(CASES[name], a, b), inputs, rng


def times(f: Callable, factor: float) -> Callable:
    """f with gradients that are wrong by this factor."""
    def g(*inputs):
        y, back = f(*inputs)
        return y, lambda dy: tuple(d if d is None else (d * factor).astype(d.dtype) for d in back(dy))
    return g


def in_float32(f: Callable) -> Callable:
    """f, which accepts float32 alone."""
    def g(*inputs):
        assert all(x.dtype == np.float32 for x in inputs if is_float(x))
        return f(*inputs)
    return g


def lowered(inputs, dtype=np.float32) -> list:
    return [x.astype(dtype) if is_float(x) else x for x in inputs]


def line(f, inputs, i, move) -> Callable:
    """The outputs [M] of f, as a function of t, when move(x, t) takes the place of input i."""
    def along(*t):
        moved = [move(x, *t) if k == i else x for k, x in enumerate(inputs)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            y = flat(f(*moved)[0])
        return y.astype(np.result_type(y, float))
    return along


def at(x, index, t):
    moved = x.astype(np.result_type(x.dtype, np.complex64 if isinstance(t, complex) else x.dtype))
    moved[index] += t
    return moved


def along_line(x, v, t):
    moved = x + t * v
    return moved.astype(np.result_type(x.dtype, np.complex64 if isinstance(t, complex) else x.dtype))


def verdicts(name, f, inputs, rng, few=4) -> Iterator[tuple[str, Verdict]]:
    """The verdicts one by one, on each input."""
    y, back = f(*inputs)
    outputs = y if isinstance(y, tuple) else (y,)
    dys = tuple(np.asarray(rng.standard_normal(np.shape(a))).astype(np.asarray(a).dtype) for a in outputs)
    eps, dy = max(float(np.finfo(a.dtype).eps) for a in inputs if is_float(a)), flat(dys).astype(float)
    size = float(np.abs(dy * flat(y)).sum())

    def gradients(arrays):
        return f(*arrays)[1](dys if isinstance(y, tuple) else dys[0])

    for i, dx in enumerate(back(dys if isinstance(y, tuple) else dys[0])):
        if dx is None or not dx.size:
            continue
        x = inputs[i]

        def again(k, index, i=i):
            beside = [shaken(x, np.random.default_rng(k)) for x in inputs]
            found = entries.entries(line(f, beside, i, at), dy, beside[i], eps, [index])
            return gradients(beside)[i][index], found.value[index]

        which = [tuple(int(rng.integers(n)) for n in x.shape) for _ in range(few)]
        found = entries.entries(line(f, inputs, i, at), dy, x, eps, which)
        yield "entries", compare.entrywise(found, dx, eps, again)[0]
        for v in (compare.direction(x, rng), *kinks.directions(x, rng)[:2]):
            along = functools.cache(line(f, inputs, i, lambda x, t, v=v: along_line(x, v, t)))
            claimed = compare.inner(dx, v)

            def neighbor(k, i=i, v=v):
                beside = [shaken(x, np.random.default_rng(k)) for x in inputs]
                return gradients(beside)[i], line(f, beside, i, lambda x, t: along_line(x, v, t))

            compared = compare.compare(name, along, dx, v, dy, y if isinstance(y, tuple) else (y,), neighbor)
            blur = compared.rounding if compared else compare.blur(dx, v, eps)
            if compared:
                yield "line", verdict_of(compared)
            yield "subgradients", kinks.verdict(along, dy, claimed, eps, blur)
            low, high, _ = kinks.subgradients(along, dy, eps)

            def phi(t, along=along):
                return float(dy @ along(t))

            yield "order", order.order(phi, claimed, eps, size, (high - low) / 2, blur)
