"""Run the passes of y, back = f(*inputs), and refuse results that are not gradients, whatever their values."""
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama import params


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


def is_float(x):
    return x is not None and x.dtype.kind == "f"


def each(y):
    """An output, or several, as a tuple."""
    return y if isinstance(y, tuple) else (y,)


def flat(y) -> np.ndarray:
    """All outputs end to end: [M]."""
    return np.concatenate([np.ravel(np.asarray(a)) for a in each(y)])


def copies(tree):
    """A copy of each array of a tree, or of a tuple of them."""
    return [np.array(x) for _, x in params.leaves(list(tree) if isinstance(tree, tuple) else tree)]


def require_same(before, tree, what):
    """Raise WrongGradient if an array of a tree differs from its copy in one bit; NaN equals NaN."""
    for old, new in zip(before, copies(tree), strict=True):
        if old.tobytes() != new.tobytes():
            raise WrongGradient(f"{what} in place; work on a copy")


def forward(f: Callable, inputs: list) -> tuple[Any, Callable]:
    """y, back = f(*inputs).  Raises TypeError or ValueError for other results, WrongGradient if f changes inputs."""
    before = copies(inputs)
    result = f(*inputs)
    if not (isinstance(result, tuple | list) and len(result) == 2 and callable(result[1])):
        kind = f"a {type(result).__name__}" + (f" of {len(result)}" if isinstance(result, tuple | list) else "")
        raise TypeError(f"f returned {kind}; return y, back, where back(dy) returns a gradient for each input")
    require_same(before, inputs, "f changes its inputs")
    y, back = result
    for a in map(np.asarray, each(y)):
        if a.dtype.kind not in "fiub":
            raise TypeError(f"f returned {a.dtype}; return floating arrays" +
                            (": the real and the imaginary part are two outputs" if a.dtype.kind == "c" else ""))
        if a.dtype.kind == "f" and np.isnan(a).any():
            raise ValueError("f returned NaN; check it at inputs where it is defined")
    return y, back


def gradients(back: Callable, dy: Any, y: Any, inputs: list, names: list[str],
              given: frozenset = frozenset()) -> list[tuple]:
    """[(name, x, dx), ...] for each floating array of the inputs.

    given   the dtypes that the inputs had before they were converted: a gradient may have one of them

    Raises TypeError or ValueError unless back returns an array of x's shape and precision for each of them;
    WrongGradient if it changes arrays that are not its own, or returns something else when it is called again.
    """
    before = copies(dy), copies(y), copies(inputs)
    grads = list(zipped(names, inputs, back(dy), y, given))
    grads = [(name, x, dx.copy()) for name, x, dx in grads]
    for old, tree, what in zip(before, (dy, y, inputs), ("dy", "y", "the inputs"), strict=True):
        require_same(old, tree, f"back changes {what}")
    for (name, _, first), (_, _, second) in zip(grads, zipped(names, inputs, back(dy), y, given), strict=True):
        rounding = 1e3 * np.finfo(first.dtype).eps * np.abs(first).max(initial=0)      # as of another order of sums
        if not (np.abs(first - second) <= rounding).all() and np.isfinite(first).all():
            raise WrongGradient(f"the second call of back gives another gradient of {name} than the first; let back "
                                f"change nothing that it uses")
    return grads


def zipped(names, inputs, grads, y, given):
    """Yield (name, x, dx) for each floating array; see gradients()."""
    if len(inputs) == 1 and not isinstance(grads, tuple | list):
        grads = (grads,)
    if not isinstance(grads, tuple | list) or len(grads) != len(inputs):
        count = len(grads) if isinstance(grads, tuple | list) else 1
        raise TypeError(f"back returned {count} gradients for {len(inputs)} inputs; return one for each, None for one "
                        f"of integers")
    for name, x, dx in zip(names, inputs, grads, strict=True):
        returned = dict(params.leaves(dx)) if isinstance(x, dict | list) else {"": dx}
        for path, leaf in params.leaves(x):
            if is_float(leaf):
                full = name + (f" at {path}" if path else "")
                yield full, leaf, fitting(full, leaf, returned.get(path), y, given)


def fitting(name, x, dx, y, given) -> np.ndarray:
    """dx as an array.  Raises TypeError or ValueError unless it has x's shape, and its, y's or a given precision."""
    if dx is None:
        raise TypeError(f"back returned no gradient for {name}, which is floating; return an array of its shape")
    if np.shape(dx) != x.shape:
        summed = f"; sum it over the axes along which {name} was broadcast" if np.ndim(dx) > x.ndim else ""
        raise ValueError(f"the gradient of {name} has shape {np.shape(dx)}, the input has {x.shape}{summed}")
    number, dx = isinstance(dx, int | float), np.asarray(dx)
    of_y = {np.asarray(a).dtype for a in each(y) if np.asarray(a).dtype.kind == "f"}
    if not number and dx.dtype not in {x.dtype, *given, *(of_y if len(of_y) == 1 else ())}:
        raise TypeError(f"the gradient of {name} is {dx.dtype}, but the input is {x.dtype}; return that precision")
    return dx.astype(x.dtype, copy=False) if number else dx
