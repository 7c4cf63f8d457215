"""Check the gradients of a function on random inputs of a shape line, or on inputs that are written beside it.

    >>> import numpy as np
    >>> from pyllama.testing.shaped import check_shapes
    >>> def scale(x, w):
    ...     return x * w, lambda dy: (dy * w, (dy * x).reshape(-1, w.size).sum(0))
    >>> bool(check_shapes(scale, "x[... D], w[D] -> y[... D]", seed=0))
    True
"""
import dataclasses
import inspect
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from pyllama import shapes
from pyllama.errors import counted
from pyllama.testing.function import gradcheck, seed_or_new
from pyllama.testing.ops import inside
from pyllama.testing.problems import choose_by, problem
from pyllama.testing.report import Report


def check_shapes(function: Callable, line: str, *, backward: Callable | None = None, saved: bool = False,
                 problems: int = 50, seed: int | None = None, budget: float | None = 2.0) -> Report:
    """Check a function on random problems of a shape line; return the report of the first that is wrong, or the worst.

    function, backward, saved       as in gradcheck; inputs are passed in the line's order, or in that of the function's
                                    parameters if these have the line's names
    line        "x[... D], w[D] -> y[... D]": see pyllama/shapes.py
    problems    how many, at most
    seed        of the problems, and of everything random in gradcheck; None: a new one, which the report has
    budget      seconds for all problems; the report names those that were skipped.  None: no limit

    Inputs are standard normal or, where the function is NaN there, in a part of that range.

    Raises ValueError for a line that is not a shape line, or if the function is not defined for any problem; what
    gradcheck raises for wrong use.
    """
    declared, outputs = shapes.parse(line)
    names = in_order_of([x.name for x in declared], function)
    seed = seed_or_new(seed)
    rng, end = np.random.default_rng(seed), time.monotonic() + (np.inf if budget is None else budget)
    drawn_of: Any = SimpleNamespace(inputs=declared, outputs=outputs, options={})
    worst: Report | None = None
    tried = 0
    for _ in range(problems):
        if worst and time.monotonic() > end:
            break
        tried += 1
        drawn = dict(zip([x.name for x in declared], problem(drawn_of, choose_by(rng)).inputs, strict=False))
        inputs = inside(values_of(function), [drawn.get(name) for name in names], {})
        if inputs is None and any(x is not None and x.size == 0 for x in drawn.values()):
            continue                                            # such as the mean of no numbers
        inputs = inputs or [drawn.get(name) for name in names]
        left = None if budget is None else max(end - time.monotonic(), 0.0)
        report = gradcheck(function, inputs, backward=backward, saved=saved, seed=seed, budget=left, names=names,
                           raise_exception=False)
        if worst is None or not report or report.error > worst.error:
            worst = report
        if not report:
            break
    if worst is None:
        raise ValueError(f"the function is not defined for any of {problems} random problems of {line!r}; give inputs")
    skipped = [f"{problems - tried} of {problems} random problems"] * bool(worst and tried < problems)
    return dataclasses.replace(worst, notes=(*worst.notes, f"{counted(tried, 'random problem')} of {line}"),
                               skipped=(*worst.skipped, *skipped),
                               replay=f"check_shapes({worst.function}, {line!r}, seed={seed}, budget=None)")


def in_order_of(names: list[str], function: Callable) -> list[str]:
    """The names in the order of the function's parameters, if these are the same."""
    try:
        parameters = [*inspect.signature(function).parameters]
    except (TypeError, ValueError):
        return names
    return parameters if sorted(parameters) == sorted(names) else names


def values_of(function: Callable) -> Callable:
    """The function, as y, something = f(*inputs), whatever it returns."""
    def f(*inputs):
        result = function(*inputs)
        return result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    return f


def line_beside(function: Callable) -> str | None:
    """The shape line in a function's attribute `shapes` or on a line of its docstring; None if there is none."""
    lines = [getattr(function, "shapes", ""), *(inspect.getdoc(function) or "").splitlines()]
    for line in lines:
        try:
            shapes.parse(line.strip())
        except (ValueError, AttributeError):
            continue
        return line.strip()
    return None


def inputs_beside(module: ModuleType) -> list | None:
    """`inputs` of the module: a list or tuple of inputs, or a function without parameters that returns one."""
    inputs = getattr(module, "inputs", None)
    inputs = inputs() if callable(inputs) else inputs
    return list(inputs) if isinstance(inputs, list | tuple) else None
