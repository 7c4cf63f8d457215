"""Check the gradients of a function on random inputs of a shape line, or on inputs that are written beside it.

    >>> import numpy as np
    >>> from pyllama.testing.shaped import check_shapes
    >>> def scale(x, w):
    ...     return x * w, lambda dy: (dy * w, (dy * x).reshape(-1, w.size).sum(0))
    >>> bool(check_shapes(scale, "x[... D], w[D] -> y[... D]", seed=0))
    True
"""
import contextlib
import dataclasses
import inspect
import re
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from pyllama import shapes
from pyllama.errors import counted
from pyllama.testing.calls import name_of
from pyllama.testing.function import gradcheck, require_time, seed_or_new
from pyllama.testing.low import LEFT_OUT, REFUSALS
from pyllama.testing.named import cause, line_in
from pyllama.testing.ops import LARGE, SPEAKING, inside
from pyllama.testing.problems import Small, choose_by, problem
from pyllama.testing.promised import broken
from pyllama.testing.report import Report
from pyllama.testing.trees import copies, is_float

REFUSED = f"the point 'in float32' {LEFT_OUT}"                   # how the note begins
MORE = 10                                                       # small problems after a wrong one that tells little
SHORTEST = 1e-9                                                 # seconds: the budget of a problem that comes too late
LIKE_A_LINE = re.compile(r"\w+\??\s*\[.*->.*\[")


def check_shapes(function: Callable, line: str, *, backward: Callable | None = None, saved: bool = False,
                 problems: int = 50, seed: int | None = None, budget: float | None = 2.0) -> Report:
    """Check a function on random problems of a shape line; return the report of the first that is wrong, or the worst.

    function, backward, saved       as in gradcheck; inputs are passed in the line's order, or in that of the function's
                                    parameters if these have the line's names
    line        "x[... D], w[D] -> y[... D]": see pyllama/shapes.py
    problems    how many, at most
    seed        of the problems, and of everything random in gradcheck; None: a new one, which the report has
    budget      seconds for all problems; the report names those that were skipped.  None: no limit

    Inputs are standard normal or, where the function is NaN there, in a part of that range; in float64 and float32 by
    turns.  The outputs must be those of the line: their number, shapes and precision, which is that of the inputs.

    Raises ValueError for a line that is not a shape line, if the function is not defined for any problem, or if it
    fails without an input that the line calls optional; what gradcheck raises for wrong use.
    """
    declared, outputs = shapes.parse(line)
    names = in_order_of([x.name for x in declared], function)
    seed = seed_or_new(seed)
    require_time(budget)
    rng, end = np.random.default_rng(seed), time.monotonic() + (np.inf if budget is None else budget)
    drawn_of: Any = SimpleNamespace(inputs=declared, outputs=outputs, options={})
    worst: Report | None = None
    refused: dict[str, None] = {}
    tried, last = 0, problems
    for number in range(problems):
        if worst is not None and time.monotonic() > end:
            break
        tried += 1
        choose = choose_by(rng)
        sizes = Small(choose) if worst is not None and not worst else None
        drawn = dict(zip([x.name for x in declared], problem(drawn_of, choose, sizes=sizes).inputs, strict=False))
        inputs = inside(values_of(function), [drawn.get(name) for name in names], {})
        if inputs is None and any(x is not None and x.size == 0 for x in drawn.values()):
            continue                                            # such as the mean of no numbers
        inputs = in_turn(number, inputs or [drawn.get(name) for name in names])
        left = None if budget is None else max(end - time.monotonic(), SHORTEST)
        with blamed_on_none(name_of(function), names, inputs):
            report = gradcheck(function, inputs, backward=backward, saved=saved, seed=seed, budget=left, names=names,
                               output_names=[y.name for y in outputs], raise_exception=False)
            ordered = dict(zip(names, inputs, strict=True))
            crashed = any(fault.kind.startswith("fails in") for fault in report.faults)
            y = None if crashed else returned(function, inputs, plain=backward is not None and not saved)
        faults = () if y is None else broken(report.function, (declared, outputs),
                                             [ordered[x.name] for x in declared], y)
        report = dataclasses.replace(report, faults=(*report.faults, *faults))
        refused.update(dict.fromkeys(note for note in report.notes if note.startswith(REFUSED)))
        if worst is None or not report or (worst and report.error > worst.error):
            worst = report
        if not report and is_telling(inputs):
            break
        if not worst:
            last = min(last, tried + MORE)
        if tried >= last:
            break
    if worst is None:
        raise ValueError(f"the function is not defined for any of {problems} random problems of {line!r}; give inputs")
    skipped = [f"{problems - tried} of {problems} random problems"] * bool(worst and tried < problems)
    notes = dict.fromkeys([*worst.notes, *refused, f"{counted(tried, 'random problem')} of {line}"])
    return dataclasses.replace(worst, notes=tuple(notes),
                               skipped=(*worst.skipped, *skipped),
                               replay=f"check_shapes({worst.function}, {line!r}, seed={seed}, budget=None)")


def is_telling(inputs: list) -> bool:
    """Does a wrong gradient show its cause here?  A sum over an axis of length 1 shows nothing, nor do many numbers."""
    arrays = [np.asarray(x) for x in inputs if is_float(x)]
    return all(n > 1 for x in arrays for n in x.shape) and SPEAKING <= sum(x.size for x in arrays) <= LARGE


def in_turn(number: int, inputs: list) -> list:
    """The inputs of problem `number` in its precision."""
    return inputs if number % 2 == 0 else [x.astype(np.float32) if is_float(x) else x for x in inputs]


def returned(function: Callable, inputs: list, plain: bool) -> Any:
    """y alone; None if the function refuses the precision of the inputs."""
    try:
        result = function(*copies(inputs))
    except REFUSALS:
        return None
    return result if plain else result[0]


@contextlib.contextmanager
def blamed_on_none(name: str, names: list[str], inputs: list):
    """An error of the user's own code says that an optional input was left out, if one was."""
    try:
        yield
    except Exception as error:
        absent = [name for name, x in zip(names, inputs, strict=True) if x is None]
        if not absent or not line_in(error):
            raise
        raise ValueError(f"{name} raised {cause(error)} where {absent[0]} is None; its shape line says that "
                         f"{absent[0]} is optional: let {name} take None, or leave out the ?") from error


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
    """The shape line in a function's attribute `shapes` or on a line of its docstring; None if there is none.

    Raises ValueError if none of these lines can be read, but one looks like it.
    """
    attribute = getattr(function, "shapes", None)
    lines = [attribute] if isinstance(attribute, str) else (inspect.getdoc(function) or "").splitlines()
    wrong: list[ValueError] = []
    for line in map(str.strip, lines):
        try:
            shapes.parse(line)
        except ValueError as error:
            wrong += [error] * bool(LIKE_A_LINE.match(line))
        else:
            return line
    if wrong:
        raise wrong[0]
    return None


def inputs_beside(module: ModuleType) -> list | None:
    """`inputs` of the module: a list or tuple of inputs, or a function without parameters that returns one."""
    inputs = getattr(module, "inputs", None)
    inputs = inputs() if callable(inputs) else inputs
    return list(inputs) if isinstance(inputs, list | tuple) else None
