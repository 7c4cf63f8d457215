"""Correct functions of many kinds, each with its backward pass: y, back = f(*inputs).  What a checker must not refuse.

They compute in the precision of their inputs.  `CASES` holds them by name: a function that draws inputs, and f.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing.trees import is_float


class Case(NamedTuple):
    """A function and how its inputs are drawn: draw(rng) -> list of arrays, float64 or integers."""
    f: Callable
    draw: Callable
    exact: bool = True                  # is it right to rounding?  else it computes in float32, whatever it is given


CASES: dict[str, Case] = {}


def shape(rng, least=0, most=3):
    return tuple(int(n) for n in rng.choice([1, 2, 3, 4, 5, 8, 17], rng.integers(least, most + 1)))


def normal(rng, *sizes):
    return rng.standard_normal(sizes)


def case(*draws, name="", exact=True):
    """Register a function.  The draws give its inputs, one after the other, or all of them as a list."""
    def register(f):
        def draw(rng):
            drawn = [draw(rng) for draw in draws]
            return drawn[0] if len(drawn) == 1 and isinstance(drawn[0], list) else drawn
        CASES[name or f.__name__] = Case(f, draw, exact)
        return f
    return register


# --- one number to one number -----------------------------------------------------------------------------------------

def anywhere(rng):
    return rng.standard_normal(shape(rng))


def wide(rng):
    return 5 * rng.standard_normal(shape(rng))


def positive(rng):
    return np.exp(2 * rng.standard_normal(shape(rng)))


def probability(rng):
    return 1 / (1 + np.exp(-2 * rng.standard_normal(shape(rng))))


def inside(rng):
    return np.tanh(rng.standard_normal(shape(rng)))


def sparse(rng):
    """Numbers of which a third is exactly 0."""
    x = rng.standard_normal(shape(rng))
    return np.where(rng.random(x.shape) < 1 / 3, 0.0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elementwise(f, df):
    return lambda x: (f(x), lambda dy: (dy * df(x),))


UNARY: dict[str, tuple[Callable, Callable, Callable]] = {
    "exp": (np.exp, np.exp, anywhere),
    "expm1": (np.expm1, np.exp, wide),
    "log": (np.log, lambda x: 1 / x, positive),
    "log1p": (np.log1p, lambda x: 1 / (1 + x), positive),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), positive),
    "cbrt": (np.cbrt, lambda x: 1 / (3 * np.cbrt(x) ** 2), anywhere),
    "sin": (np.sin, np.cos, wide),
    "fast sine": (lambda x: np.sin(100 * x), lambda x: 100 * np.cos(100 * x), anywhere),
    "tan": (np.tan, lambda x: 1 + np.tan(x) ** 2, inside),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2, wide),
    "sinh": (np.sinh, np.cosh, wide),
    "arctan": (np.arctan, lambda x: 1 / (1 + x * x), wide),
    "arcsinh": (np.arcsinh, lambda x: 1 / np.sqrt(1 + x * x), wide),
    "arctanh": (np.arctanh, lambda x: 1 / ((1 - x) * (1 + x)), inside),
    "reciprocal": (lambda x: 1 / x, lambda x: -1 / (x * x), positive),
    "square": (np.square, lambda x: 2 * x, sparse),
    "cube": (lambda x: x ** 3, lambda x: 3 * x * x, sparse),
    "power 1.5": (lambda x: x ** 1.5, lambda x: 1.5 * np.sqrt(x), positive),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x), wide),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x)), wide),
    "softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), sigmoid, wide),
    "logit": (lambda x: np.log(x) - np.log1p(-x), lambda x: 1 / (x * (1 - x)), probability),
    "entropy": (lambda x: -x * np.log(x), lambda x: -np.log(x) - 1, probability),
    "abs": (np.abs, np.sign, sparse),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype), sparse),
    "leaky relu": (lambda x: np.where(x > 0, x, 0.125 * x), lambda x: np.where(x > 0, 1, 0.125).astype(x.dtype),
                   sparse),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda x: np.exp(np.minimum(x, 0)), sparse),
    "clip": (lambda x: np.clip(x, -1, 1), lambda x: (np.abs(x) < 1).astype(x.dtype), wide),
    "huber": (lambda x: np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5), lambda x: np.clip(x, -1, 1), wide),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2, sparse),
    "root of abs": (lambda x: np.sqrt(np.abs(x)), lambda x: np.sign(x) / 2 / np.sqrt(np.abs(x)), anywhere),
    "x abs x": (lambda x: x * np.abs(x), lambda x: 2 * np.abs(x), sparse),
    "conj": (lambda x: (x * np.conj(x)).real, lambda x: 2 * x, anywhere),
    "real part": (lambda x: np.exp(x.real), np.exp, anywhere),
    "an offset": (lambda x: 1000 + x, np.ones_like, anywhere),
    "constant": (lambda x: 3 + 0 * x, np.zeros_like, anywhere),
    "triangle wave": (lambda x: np.abs(x - np.round(x)), lambda x: np.sign(x - np.round(x)), wide),
    "polynomial near its root": (lambda x: (x - 1) ** 3, lambda x: 3 * (x - 1) ** 2,
                                 lambda rng: 1 + 1e-3 * anywhere(rng)),
}
for _name, (_f, _df, _draw) in UNARY.items():
    case(_draw, name=_name)(elementwise(_f, _df))


@case(anywhere)
def refuses_complex(x):
    if np.iscomplexobj(x):
        raise TypeError("real numbers only")
    return np.exp(x), lambda dy: (dy * np.exp(x),)


@case(anywhere)
def drops_imaginary_parts(x):
    x = np.asarray(x.real)
    return np.tanh(x), lambda dy: (dy / np.cosh(x) ** 2,)


@case(anywhere, exact=False)
def float32_within(x):
    """A kernel that computes in float32, with float64 at its border."""
    low = np.asarray(x.real, np.float32)
    y = np.tanh(low)
    return y.astype(x.real.dtype), lambda dy: ((dy.astype(np.float32) * (1 - y * y)).astype(x.dtype),)


# --- two inputs -------------------------------------------------------------------------------------------------------

def unbroadcast(d, like):
    """The sum of d over the axes along which `like` was broadcast."""
    d = d.sum(axis=tuple(range(d.ndim - like.ndim)))
    return d.sum(axis=tuple(i for i, n in enumerate(like.shape) if n == 1 and d.shape[i] > 1), keepdims=True)


def pair(rng):
    """Two arrays that broadcast."""
    full = shape(rng, 1)
    part = tuple(1 if rng.random() < 0.4 else n for n in full)[rng.integers(len(full)):]
    return [rng.standard_normal(full), rng.standard_normal(part)]


def positive_pair(rng):
    x, w = pair(rng)
    return [np.exp(x), np.exp(w)]


def tied_pair(rng):
    x, w = pair(rng)
    return [np.round(2 * x) / 2, np.round(2 * w) / 2]


def binary(f, dx, dw):
    def g(x, w):
        return f(x, w), lambda dy: (unbroadcast(dy * dx(x, w), x), unbroadcast(dy * dw(x, w), w))
    return g


BINARY: dict[str, tuple[Callable, Callable, Callable, Callable]] = {
    "add": (lambda x, w: x + w, lambda x, w: 1, lambda x, w: 1, pair),
    "multiply": (lambda x, w: x * w, lambda x, w: w, lambda x, w: x, pair),
    "divide": (lambda x, w: x / w, lambda x, w: 1 / w, lambda x, w: -x / (w * w), positive_pair),
    "power": (lambda x, w: x ** w, lambda x, w: w * x ** (w - 1), lambda x, w: x ** w * np.log(x), positive_pair),
    "maximum": (np.maximum, lambda x, w: (x > w).astype(x.dtype), lambda x, w: (x <= w).astype(x.dtype), pair),
    "maximum with ties": (np.maximum, lambda x, w: (x > w).astype(x.dtype), lambda x, w: (x <= w).astype(x.dtype),
                          tied_pair),
    "hypot": (np.hypot, lambda x, w: x / np.hypot(x, w), lambda x, w: w / np.hypot(x, w), pair),
    "arctan2": (np.arctan2, lambda x, w: w / (x * x + w * w), lambda x, w: -x / (x * x + w * w), pair),
    "difference of squares": (lambda x, w: x * x - w * w, lambda x, w: 2 * x, lambda x, w: -2 * w, pair),
    "hinge": (lambda x, w: np.maximum(1 - x * w, 0), lambda x, w: -w * (x * w < 1), lambda x, w: -x * (x * w < 1),
              pair),
}
for _name, (_f2, _dx, _dw, _draw) in BINARY.items():
    case(_draw, name=_name)(binary(_f2, _dx, _dw))


def scaled(case: Case, a: float, b: float) -> Callable:
    """b f(x / a): the same function for inputs a times as large, with outputs b times as large."""
    def f(*inputs: Any):
        near = [x / x.real.dtype.type(a) if is_float(x) or x.dtype.kind == "c" else x for x in inputs]
        y, back = case.f(*near)
        many = isinstance(y, tuple)
        outputs = tuple(d * np.asarray(d).real.dtype.type(b) for d in (y if many else (y,)))

        def backward(dy):
            dys = tuple(d * np.asarray(d).dtype.type(b) for d in (dy if many else (dy,)))
            return tuple(g if g is None else g / g.dtype.type(a) for g in back(dys if many else dys[0]))
        return outputs if many else outputs[0], backward
    return f
