"""Compare the backward pass of a registered op with the exact derivative of its reference, on random problems."""
import contextlib
import itertools
import warnings
from typing import NamedTuple

import numpy as np

from pyllama.testing.compare import Comparison, Method, compare, direction
from pyllama.testing.function import line, shaken
from pyllama.testing.passes import each, flat, forward, gradients, is_float
from pyllama.testing.problems import choose_by, problem
from pyllama.testing.slopes import EXACT, STEP

# Where an op may be defined if it is not everywhere: maps of standard normal numbers.
DOMAINS = (lambda x: x, np.abs, np.tanh, lambda x: (1 + np.tanh(x)) / 2, lambda x: 1 + np.abs(x))


class Finding(NamedTuple):
    """The largest relative error that check() met, and the problem that it belongs to.

    error      relative error of <dy, J v> = <dx, v>
    input      the name of the input whose gradient it is, "" if there was no error at all
    shapes     the shapes of the problem's inputs; None for one left out
    options    the problem's options
    tolerance  the largest error that is not a fault of backward: 1e-11 for an exact derivative
    method     "complex step": the derivative is exact; "differences": the op is not holomorphic

    >>> from pyllama.testing import Finding
    >>> Finding(error=0.5, input="w", shapes=[(2, 3), (3,)], options={"eps": 0.1}).wrong
    True
    """
    error: float
    input: str
    shapes: list[tuple[int, ...] | None]
    options: dict
    tolerance: float = EXACT
    method: Method = "complex step"

    @property
    def wrong(self) -> bool:
        """Is the error, or NaN, more than the tolerance?"""
        return not self.error <= self.tolerance

    @property
    def severity(self) -> float:
        return np.inf if np.isnan(self.error) else self.error / self.tolerance


def complex_step(f, inputs, i, v):
    """J v, the directional derivative of f with respect to input i along v, exact up to rounding: see slopes.py.

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


def check(op, seed=0, problems=50):
    """Compare the op's backward pass with exact derivatives on random problems; return the worst Finding.

    op        a registered op; its current backend runs forward and backward, the reference gives the derivative
    seed      of the problems and the directions
    problems  how many, in float64

    A correct backward pass has an error below 1e-11, or below the finding's tolerance if the op is not holomorphic.
    NaN counts as the worst error.  Inputs are standard normal or, where forward is NaN there, in a part of that range.

    Raises TypeError, ValueError or WrongGradient if a pass returns something of another form or changes arrays that
    are not its own (see check_gradient); ValueError if no problem can be judged.

    >>> from pyllama import ops
    >>> from pyllama.testing import check
    >>> check(ops.tanh, problems=5).error < 1e-11
    True
    """
    rng, worst, judged = np.random.default_rng(seed), Finding(0.0, "", [], {}), 0
    for _ in range(problems):
        drawn, options, dy = problem(op, choose_by(rng))
        inputs = inside(op, drawn, options)
        if inputs is None and any(x is not None and x.size == 0 for x in drawn):
            continue                                            # such as the mean of no numbers
        inputs = inputs or drawn
        for found in compared(op, inputs, options, dy, rng):
            judged += found is not None
            if found:
                shapes = [None if x is None else x.shape for x in inputs]
                finding = Finding(found.error, found.name, shapes, options, found.tolerance, found.method)
                worst = max(worst, finding, key=lambda finding: finding.severity)
    if not judged and any(not x.below for x in op.inputs):
        raise ValueError(f"{op.name} cannot be checked: its forward pass jumps, or its noise hides its slope, "
                         f"everywhere")
    return worst


def inside(op, inputs, options):
    """The inputs, mapped to where forward is defined; None if there is no such map."""
    floating = [i for i, x in enumerate(inputs) if is_float(x)]
    for maps in sorted(itertools.product(range(len(DOMAINS)), repeat=len(floating)), key=sum):
        chosen = list(inputs)
        for i, number in zip(floating, maps, strict=True):
            chosen[i] = DOMAINS[number](inputs[i])
        with contextlib.suppress(Exception), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y, _ = op(*chosen, **options)
            if not np.isnan(flat(y)).any():
                return chosen
    return None


def compared(op, inputs, options, dy, rng) -> list[Comparison | None]:
    """The comparison of each floating input; None for one that says nothing."""
    given = [i for i, x in enumerate(inputs) if x is not None]

    def with_none(arrays):
        return [arrays[given.index(i)] if i in given else None for i in range(len(inputs))]

    def run(*arrays):
        y, back = op(*with_none(arrays), **options)
        return y, lambda dy: [d for i, d in enumerate(back(dy)) if i in given]

    def reference(*arrays):
        return op.forward(*with_none(arrays), **options)

    arrays, names = [inputs[i] for i in given], [op.inputs[i].name for i in given]
    y, back = forward(run, arrays)
    comparisons = []
    for place, (name, x, dx) in enumerate(gradients(back, dy, y, arrays, names)):
        v = direction(x, rng)

        def neighbor(k, place=place, v=v):
            noise = np.random.default_rng(k)
            near = [shaken(x, noise) for x in arrays]
            near_y, near_back = run(*near)
            return gradients(near_back, dy, near_y, near, names)[place][2], line(reference, near, place, v, near_y)

        comparisons.append(compare(name, line(reference, arrays, place, v, y), dx, v, flat(dy), each(y), neighbor))
    return comparisons
