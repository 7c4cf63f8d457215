"""Is a backward pass the transpose of the derivative of its forward pass?

The derivative along v comes from one complex step: for a holomorphic f, f(x + i h v) = f(x) + i h f'(x) v + O(h²), and
its imaginary part over h involves no subtraction, so h may be 1e-30 and the quotient is exact to rounding
(Squire & Trapp, 1998).  The identity tested is <dy, J v> = <Jᵀ dy, v>.
"""
import math
from typing import NamedTuple

import numpy as np

from pyllama.testing.problems import choose_by, problem

STEP = 1e-30


class Finding(NamedTuple):
    """The largest relative error seen, for which input of which problem."""
    error: float
    input: str
    shapes: list[tuple[int, ...]]
    options: dict


def is_float(x):
    return x.dtype.kind == "f"


def vector(op, y):
    """The outputs of op, or the gradients dy, as one vector."""
    return np.concatenate([np.ravel(a) for a in op.each(y)])


def complex_step(f, inputs, i, v):
    """The derivative of f(*inputs) with respect to input i along v, exact to rounding.  f must be holomorphic."""
    stepped = [x.astype(complex) if is_float(x) else x for x in inputs]
    stepped[i] = stepped[i] + 1j * STEP * v
    return np.imag(f(*stepped)) / STEP


def relative_error(dy, jv, dx, v):
    """|<dy, J v> - <Jᵀ dy, v>| relative to the size of the terms that are summed, at least 1."""
    return float(abs(np.vdot(dy, jv) - np.vdot(dx, v)) / max(1.0, np.abs(dy * jv).sum(), np.abs(dx * v).sum()))


def check(op, seed=0, problems=50):
    """The worst Finding for the op on the current backend, over random problems in float64."""
    rng, worst = np.random.default_rng(seed), Finding(0.0, "", [], {})
    for _ in range(problems):
        inputs, options, dy = problem(op, choose_by(rng))
        _, back = op(*inputs, **options)
        for i, (x, dx) in enumerate(zip(inputs, back(dy), strict=True)):
            if is_float(x):
                v = rng.standard_normal(x.shape)
                jv = complex_step(lambda *xs, options=options: vector(op, op.forward(*xs, **options)[0]), inputs, i, v)
                error = relative_error(vector(op, dy), jv, dx, v)
                if error > worst.error or math.isnan(error):             # NaN is the worst of all, and stays it
                    worst = Finding(error, op.inputs[i].name, [x.shape for x in inputs], options)
    return worst
