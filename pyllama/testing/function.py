"""Is the backward pass of any function `y, back = f(*inputs)` right?

For a random dy and a random direction v of each input, <dy, J v> must equal <Jᵀ dy, v> (see compare.py).  J v comes
from one complex step where f is holomorphic, exact to rounding.  Where it is not (it takes an absolute value, computes
in float32, or refuses complex numbers), J v comes from differences (see slopes.py).  Nobody has to say which.
"""
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllama import params
from pyllama.testing.compare import Comparison, Method, compare, direction
from pyllama.testing.passes import WrongGradient, each, flat, forward, gradients, is_float

ATTEMPTS = 10                               # the inputs, and neighbors of these if f has a kink there
SHAKE = 1e-6                                # between neighbors that differ in their rounding errors
ASIDE = 1e-2                                # how far those are, relative to the inputs


class Agreement(float):
    """The largest relative error that check_gradient() met, a float.

    method      "complex step": exact to rounding; "differences": f is not holomorphic
    tolerance   the largest error that is not a fault of back

    >>> import numpy as np
    >>> from pyllama import check_gradient
    >>> agreement = check_gradient(lambda x: (np.abs(x), lambda dy: dy * np.sign(x)), [np.array([1.0, -2.0])])
    >>> agreement.method, agreement <= agreement.tolerance
    ('differences', True)
    """
    method: Method
    tolerance: float

    def __new__(cls, comparison: Comparison | None):
        agreement = super().__new__(cls, comparison.error if comparison else 0.0)
        agreement.method = comparison.method if comparison else "complex step"
        agreement.tolerance = comparison.tolerance if comparison else 0.0
        return agreement

    def __repr__(self):
        return f"{float(self)!r} by {self.method} (tolerance {self.tolerance:.1e})"


def check_gradient(f: Callable, inputs: Sequence[Any], seed: int = 0) -> Agreement:
    """Compare the gradients of f with its derivative; return the largest relative error, or raise WrongGradient.

    f         called as ``y, back = f(*inputs)``; y is a floating array, a number or a tuple of these, and ``back(dy)``
              returns a gradient for each input: an array of its shape and precision, or None for an input of integers.
              The gradient of a single input may stand alone, unless the input is a list.
    inputs    arrays of any shape, or dicts and lists of arrays.  Floating ones are computed with as float64, unless f
              refuses that.  They stay as they are.
    seed      of dy and of the directions.

    f may be any function: one that is not holomorphic is compared with differences instead of a complex step, and the
    result says so (see Agreement).  Where f has a kink at the inputs, such as the absolute value at 0, the gradients
    are compared right beside it.

    Raises WrongGradient, too, if f or back changes arrays that are not its own, or a second call of back returns
    something else.  Raises TypeError or ValueError in one sentence if f or back returns something of another form, or
    if nothing can be compared: no input is floating, f is not defined at the inputs or jumps wherever it is tried.

    >>> import numpy as np
    >>> from pyllama import check_gradient
    >>> def square(x):
    ...     return x * x, lambda dy: 2 * x * dy
    >>> check_gradient(square, [np.array([1.0, -2.0, 3.0])]) < 1e-11
    True
    """
    if not isinstance(inputs, list | tuple):
        raise TypeError(f"inputs is a {type(inputs).__name__}; give a list of f's inputs, such as [x]")
    given = [mapped(checked, x) for x in inputs]
    if not any(is_float(x) for x in leaves(given)):
        raise TypeError("no input is floating, so there is no gradient to check; convert one, such as x.astype(float)")
    rng = np.random.default_rng(seed)
    at = start = in_precision(f, given)
    precisions = frozenset(x.dtype for x in leaves(given) if is_float(x))
    for _ in range(ATTEMPTS):
        comparisons = compared(f, at, rng, precisions)
        if comparisons is not None:
            return Agreement(max(comparisons, key=lambda c: c.error / c.tolerance, default=None))
        at = [mapped(lambda x: aside(x, rng), x) for x in start]
    raise ValueError("the gradients cannot be compared: f jumps, or its noise hides its slope, at these inputs and "
                     "beside them; give other inputs")


def leaves(inputs):
    return [x for tree in inputs for _, x in params.leaves(tree)]


def mapped(f, tree):
    """The tree with f of each leaf."""
    return params.rebuild(tree, (f(x) for _, x in params.leaves(tree)))


def checked(x):
    x = np.array(x)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"an input is {x.dtype}; give floating arrays" +
                        (": the real and the imaginary part are two inputs" if x.dtype.kind == "c" else ""))
    return x


def in_precision(f, given):
    """The inputs in float64, or as given if f accepts only these."""
    wide = [mapped(lambda x: x.astype(np.float64) if is_float(x) else x, x) for x in given]
    if all(x.dtype == np.float64 for x in leaves(given) if is_float(x)):
        return wide
    try:
        f(*copied(wide))
    except Exception:
        f(*copied(given))                               # raises what is wrong with f itself
        return given
    return wide


def copied(inputs):
    return [mapped(np.array, x) for x in inputs]


def aside(x, rng):
    """The array, or random numbers close to it."""
    return np.asarray(x + ASIDE * direction(x, rng), x.dtype) if is_float(x) else x


def compared(f, inputs, rng, precisions) -> list[Comparison] | None:
    """The comparison of each floating array.  None if one says nothing.  Raises WrongGradient if one is wrong."""
    y, back = forward(f, inputs)
    dy = drawn(y, rng)
    names = [f"input {number}" for number in range(len(inputs))]
    comparisons = []
    for place, (name, x, dx) in enumerate(gradients(back, dy, y, inputs, names, precisions)):
        v = direction(x, rng)

        def neighbor(k, place=place, v=v):
            noise = np.random.default_rng(k)
            near = [mapped(lambda x: shaken(x, noise), x) for x in inputs]
            near_y, near_back = f(*near)
            dx = gradients(near_back, dy, near_y, near, names, precisions)[place][2]
            return dx, line(f, near, place, v, near_y)

        found = compare(name, line(f, inputs, place, v, y), dx, v, flat(dy), each(y), neighbor)
        if found is None:
            return None
        if found.wrong:
            raise WrongGradient(f"the gradient of {name} is wrong: along a random direction the output moves by "
                                f"{found.slope:.9g}, the gradient says {found.claimed:.9g} (relative error "
                                f"{found.error:.1e}, tolerance {found.tolerance:.1e} by {found.method})")
        comparisons.append(found)
    return comparisons


def drawn(y, rng):
    """A random dy of the form and precision of y, 0 where y is infinite."""
    def draw(a):
        d = np.where(np.isfinite(a), rng.standard_normal(np.shape(a)), 0.0)
        return d.astype(a.dtype) if isinstance(a, np.ndarray | np.generic) and is_float(a) else d[()]
    return tuple(map(draw, y)) if isinstance(y, tuple) else draw(y)


def shaken(x, rng):
    """The array with other rounding errors, in float32 or float64."""
    return np.asarray(x * (1 + SHAKE * rng.standard_normal(x.shape)), x.dtype) if is_float(x) else x


def line(f, inputs, place, v, y) -> Callable:
    """along(t): all outputs of f, end to end, when the floating array number `place` is moved by t v.

    Where f refuses a real t, or returns another number of outputs, they are NaN.
    """
    shape = flat(y).shape

    def along(t):
        moved = iter(moved_leaves(inputs, place, t * v))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                outputs = flat(f(*[params.rebuild(x, moved) for x in inputs])[0])
        except Exception:
            if isinstance(t, complex):
                raise
            outputs = np.empty(0)
        return outputs.astype(np.result_type(outputs, float)) if outputs.shape == shape else np.full(shape, np.nan)

    return along


def moved_leaves(inputs, place, step):
    """A copy of the arrays of all inputs, in order, the floating one number `place` moved by step."""
    count = -1
    for x in leaves(inputs):
        count += is_float(x)
        here = is_float(x) and count == place
        yield np.array(x + step, np.result_type(x.dtype, np.complex64) if np.iscomplexobj(step) else x.dtype) \
            if here else np.array(x)
