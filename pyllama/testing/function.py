"""Is the backward pass of any function `y, back = f(*inputs)` right?

For a random dy and a random direction v of each input, <dy, J v> must equal <Jᵀ dy, v> (see gradient.py).  J v comes
from one complex step where f is holomorphic, exact to rounding.  Where it is not (it takes an absolute value, or
refuses complex numbers), J v comes from central differences: the two are compared first, so nobody has to say which.
"""
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyllama import params
from pyllama.testing.gradient import STEP, is_float

EXACT = 1e-11                               # a relative error above this is not rounding
ROUNDED = 1e-4                              # share of y below which a slope counts as this large: where terms cancel,
                                            # what is left is rounding, an eps or a few of y
WIDTH = 1e-3                                # of a central difference: its error is O(WIDTH⁴) after extrapolation


class WrongGradient(AssertionError):
    """A gradient that check_gradient found wrong.  The message names the input, both sides and the relative error.

    >>> import numpy as np
    >>> from pyllama.testing import WrongGradient, check_gradient
    >>> try:
    ...     check_gradient(lambda x: (x * x, lambda dy: x * dy), [np.array([1.0, -2.0, 3.0])])
    ... except WrongGradient as error:
    ...     print(str(error).partition(":")[0])
    the gradient of input 0 is wrong
    """


class Slope(NamedTuple):
    """<dy, J v>, and how far it may be off."""
    value: float
    error: float


def check_gradient(f: Callable[..., tuple[Any, Callable]], inputs: Sequence[Any], *, seed: int = 0) -> float:
    """The largest relative error of the gradients that f's back returns; raises WrongGradient if one is wrong.

    f         called as ``y, back = f(*inputs)``; y is a floating array, a number or a tuple of these, and ``back(dy)``
              returns a gradient for each input: an array of its shape, or None for an input of integers.  The gradient
              of a single input may stand alone.
    inputs    arrays of any shape, or dicts and lists of arrays.  Floating ones are computed with as float64.
    seed      of dy and of the directions.

    Raises TypeError or ValueError in one sentence if back returns something else than a gradient for each input.

    >>> import numpy as np
    >>> from pyllama import check_gradient
    >>> def square(x):
    ...     return x * x, lambda dy: 2 * x * dy
    >>> check_gradient(square, [np.array([1.0, -2.0, 3.0])]) < 1e-11
    True
    """
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"inputs is a {type(inputs).__name__}; give a list of f's inputs, such as [x]")
    rng = np.random.default_rng(seed)
    inputs = [mapped(in_float64, x) for x in inputs]
    y, back = f(*inputs)
    dy = mapped_outputs(lambda a: rng.standard_normal(np.shape(a)), y)
    worst = 0.0
    for place, (name, x, dx) in enumerate(zipped(inputs, back(dy))):
        v = rng.standard_normal(x.shape)
        slope = directional(f, inputs, place, v, dy)
        claimed = float(np.vdot(dx, v))
        size = max(abs(slope.value), float(np.abs(dx * v).sum()), ROUNDED * magnitude(dy, y))
        error = abs(slope.value - claimed) / size if size else 0.0
        if not error * size <= EXACT * size + slope.error:              # NaN is wrong, too
            raise WrongGradient(f"the gradient of {name} is wrong: along a random direction the output moves by "
                                f"{slope.value:.9g}, the gradient says {claimed:.9g} (relative error {error:.1e})")
        worst = max(worst, error)
    return worst


def in_float64(x):
    x = np.asarray(x)
    return x.astype(np.float64) if is_float(x) else x


def mapped(f, tree):
    """The tree with f of each leaf."""
    return params.rebuild(tree, (f(x) for _, x in params.leaves(tree)))


def mapped_outputs(f, y):
    """f of an output, or of each of a tuple of outputs."""
    return tuple(map(f, y)) if isinstance(y, tuple) else f(y)


def zipped(inputs, gradients):
    """(name, x, its gradient) for each floating array among the inputs."""
    if len(inputs) == 1 and not isinstance(gradients, tuple | list):
        gradients = (gradients,)
    if not isinstance(gradients, tuple | list) or len(gradients) != len(inputs):
        count = len(gradients) if isinstance(gradients, tuple | list) else 1
        raise TypeError(f"back returned {count} gradients for {len(inputs)} inputs; return one for each, None for one "
                        f"of integers")
    for number, (x, dx) in enumerate(zip(inputs, gradients, strict=True)):
        expected = dict(params.leaves(x))
        returned = dict(params.leaves(dx)) if isinstance(x, dict | list) else {"": dx}
        for path, leaf in expected.items():
            name = f"input {number}" + (f" at {path}" if path else "")
            if is_float(leaf):
                yield name, leaf, fitting(name, leaf, returned.get(path))


def fitting(name, x, dx):
    if dx is None:
        raise TypeError(f"back returned no gradient for {name}, which is floating; return an array of its shape")
    if np.shape(dx) != x.shape:
        raise ValueError(f"the gradient of {name} has shape {np.shape(dx)}, the input has {x.shape}")
    return np.asarray(dx)


def directional(f, inputs, place, v, dy) -> Slope:
    """The slope of <dy, f> at the inputs along v, a direction of the floating array number `place`."""
    def along(step):
        moved = iter(moved_leaves(inputs, place, step * v))
        y, _ = f(*[params.rebuild(x, moved) for x in inputs])
        return product(dy, y)

    differences = central(along)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            exact = float(np.imag(along(1j * STEP)) / STEP)
    except Exception:                       # f refuses complex numbers, in whatever way
        return differences
    holomorphic = abs(exact - differences.value) <= differences.error + EXACT * abs(exact)
    return Slope(exact, 0.0) if holomorphic else differences


def moved_leaves(inputs, place, step):
    """The arrays of all inputs, in order, the floating one number `place` moved by step."""
    count = -1
    for _, x in (leaf for tree in inputs for leaf in params.leaves(tree)):
        count += is_float(x)
        yield x + step if is_float(x) and count == place else x


def product(dy, y):
    """Σ dy y over all outputs, complex where y is."""
    pairs = zip(dy, y, strict=True) if isinstance(dy, tuple) else [(dy, y)]
    return sum(np.sum(a * np.asarray(b)) for a, b in pairs)


def magnitude(dy, y) -> float:
    """Σ |dy y| over all outputs."""
    return float(product(mapped_outputs(np.abs, dy), mapped_outputs(np.abs, y)))


def central(along) -> Slope:
    """Richardson's extrapolation of two central differences.

    The difference of the two bounds the truncation that is left; each value of f is off by a few eps of its size.
    """
    values = {h: along(h) for h in (WIDTH, -WIDTH, WIDTH / 2, -WIDTH / 2)}
    wide, narrow = ((values[h] - values[-h]).real / (2 * h) for h in (WIDTH, WIDTH / 2))
    value = (4 * narrow - wide) / 3
    rounding = 8 * np.finfo(float).eps * max(map(abs, values.values())) / WIDTH
    return Slope(float(value), float(abs(narrow - wide) + rounding))
