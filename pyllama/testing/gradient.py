"""Compare a backward pass with the exact derivative of its forward pass.

Backward computes dx = Jᵀ dy, where J is the Jacobian of forward at x.  So for every direction v

    <dy, J v> = <dx, v>

J v comes from one complex step (Squire & Trapp, 1998).  For a holomorphic f,

    f(x + i h v) = f(x) + i h J v + O(h²)

The imaginary part divided by h is J v.  No subtraction is involved, so no digits cancel: h can be as small as 1e-30,
and the result is exact up to rounding.
"""
import math
from typing import NamedTuple

import numpy as np

from pyllama.testing.problems import choose_by, problem

STEP = 1e-30


class Finding(NamedTuple):
    """The largest relative error that check() met, and the problem that it belongs to.

    error    relative error of <dy, J v> = <dx, v>; rounding explains up to about 1e-11
    input    the name of the input whose gradient it is, "" if there was no error at all
    shapes   the shapes of the problem's inputs
    options  the problem's options

    >>> from pyllama.testing import Finding
    >>> Finding(error=0.5, input="w", shapes=[(2, 3), (3,)], options={"eps": 0.1}).input
    'w'
    """
    error: float
    input: str
    shapes: list[tuple[int, ...]]
    options: dict


def is_float(x):
    return x.dtype.kind == "f"


def vector(op, y):
    """The outputs of op, or their gradients dy, concatenated into one vector."""
    return np.concatenate([np.ravel(a) for a in op.each(y)])


def complex_step(f, inputs, i, v):
    """J v, the directional derivative of f with respect to input i along v, exact up to rounding.

    f        a holomorphic function of arrays: it must not use abs, conj, or comparisons of complex numbers
    inputs   its arguments; floating arrays are converted to complex128, others are passed as they are
    i        which input is varied
    v        the direction, with the shape of inputs[i]
    returns  float64, with the shape of f's result

    The derivative of x³ at 2 is 12:

    >>> import numpy as np
    >>> from pyllama.testing import complex_step
    >>> float(complex_step(lambda x: x ** 3, [np.array(2.0)], 0, 1.0).round(4))
    12.0
    """
    stepped = [x.astype(complex) if is_float(x) else x for x in inputs]
    stepped[i] = stepped[i] + 1j * STEP * v
    return np.imag(f(*stepped)) / STEP


def relative_error(dy, jv, dx, v):
    """|<dy, J v> - <dx, v>|, divided by the sum of the sizes of its terms, or by 1 if that is less."""
    return float(abs(np.vdot(dy, jv) - np.vdot(dx, v)) / max(1.0, np.abs(dy * jv).sum(), np.abs(dx * v).sum()))


def check(op, seed=0, problems=50):
    """Compare the op's backward pass with exact derivatives on random problems; return the worst Finding.

    op        a registered op; its current backend runs forward and backward, the reference gives the derivative
    seed      of the problems and the directions
    problems  how many, in float64

    A correct backward pass has an error below 1e-11.  NaN counts as the worst error.

    >>> from pyllama import ops
    >>> from pyllama.testing import check
    >>> check(ops.tanh, problems=5).error < 1e-11
    True
    """
    rng, worst = np.random.default_rng(seed), Finding(0.0, "", [], {})
    for _ in range(problems):
        inputs, options, dy = problem(op, choose_by(rng))
        _, back = op(*inputs, **options)
        for i, (x, dx) in enumerate(zip(inputs, back(dy), strict=True)):
            if is_float(x):
                v = rng.standard_normal(x.shape)
                jv = complex_step(lambda *xs, options=options: vector(op, op.forward(*xs, **options)[0]), inputs, i, v)
                error = relative_error(vector(op, dy), jv, dx, v)
                if error > worst.error or math.isnan(error):             # NaN is the worst, and stays the worst
                    worst = Finding(error, op.inputs[i].name, [x.shape for x in inputs], options)
    return worst
