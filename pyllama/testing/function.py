"""gradcheck: is the hand-written gradient of any function right?"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllama.testing.calls import brought
from pyllama.testing.report import GradcheckError, Report
from pyllama.testing.session import BUDGET, METHODS, Options, Session

KINKS = ("accept", "skip", "raise")
NUMBER = int | float | np.number


def gradcheck(func: Callable, inputs: Any, *, eps: float | None = None, atol: float | None = None,
              rtol: float | None = None, raise_exception: bool = True, nondet_tol: float = 0.0,
              fast_mode: bool = False, backward: Callable | None = None, saved: bool = False,
              jvp: Callable | None = None, kinks: str = "accept", seed: int | None = None,
              budget: float | None = BUDGET, names: Sequence[str] | None = None,
              output_names: Sequence[str] | None = None,
              methods: Sequence[str] | None = None, other_values: bool = True, explain: bool = True) -> Report:
    """Compare the gradients of a function with its derivative; return a report that is true if they are right.

    func        func(*inputs) -> (y, back), and back(dy) -> gradients.  With `backward`: func(*inputs) -> y, and
                backward(dy, *inputs) -> gradients; with `saved=True`, too: func(*inputs) -> (y, saved), and
                backward(dy, *saved) -> gradients.  A backward with a parameter `out` gets arrays of zeros there, one
                for each input, and fills them.  Also a torch.autograd.Function, and functions of torch's or JAX's
                arrays, if the inputs are such arrays.
                y is a floating array, a number or a tuple of these; dy has its form.  The gradients are one for each
                input, of its shape and precision, None for integers; that of a single input may stand alone.
    inputs      a list of inputs; one array alone is one input.  An input is an array, a number, or a tree of these: a
                dict, list, tuple or dataclass.  They stay as they are; func gets copies, plain arrays for subclasses of
                arrays.
    eps, atol, rtol
                None: derived from precision, condition and measured errors.  If one is given, it replaces the rule of
                differences alone: |a - n| <= atol + rtol |n| for each entry, where n is a central difference of width
                eps (1e-6, 1e-5 and 1e-3 where they are None).  The other methods stay, and a note says so.
    raise_exception
                False: return a report of wrong gradients instead of raising it
    nondet_tol  by how much the outputs of two calls with the same inputs may differ
    fast_mode   random directions only, no single entries
    jvp         jvp(inputs, tangents) -> tangent of y; adds the dot-product identity <dx, v> = <dy, J v>
    kinks       where f has a kink at the inputs: "accept" every subgradient, "skip" these inputs, or "raise"
    seed        of dy, directions and other inputs; None: a new one each time, which the report prints
    budget      seconds; the report names what was skipped.  None: no limit, so that a seed gives one report
    names       of the inputs; None: those of func's parameters
    output_names
                of the outputs, where their number is as expected; None: "y", or "output 0", ...
    methods     "complex step", "differences", "order", "dot product", "rounding"; None: all of them
    other_values
                False: check at the given values of the inputs alone
    explain     False: do not look for the cause and the smallest case of a wrong gradient
    returns     Report: true if every gradient of every output with respect to every input is right

    The function is also checked with another dy, with dy and inputs in other memory layouts, and at other values:
    zeros, ones and equal numbers hide mistakes.  Inputs of float32, float16 and bfloat16 are computed with as float64,
    unless func refuses that; then the rounding of the low precision is judged.

    Raises GradcheckError, which has the report, if a gradient is wrong, or if a pass changes arrays that are not its
    own, depends on what was called before, or returns something that is not a gradient.  Raises TypeError or ValueError
    if there is nothing to check: func returns something of another form, is random, or returns NaN.

    Complex step: Squire & Trapp, SIAM Review 40 (1998).  Differences: Richardson (1911), with measured errors.

    >>> import numpy as np
    >>> from pyllama.testing import gradcheck
    >>> def square(x):
    ...     return x * x, lambda dy: 2 * x * dy
    >>> bool(gradcheck(square, [np.array([1.0, -2.0, 3.0])]))
    True

    A gradient that lacks a factor:

    >>> report = gradcheck(np.sin, [np.array([0.5, 1.0])], backward=lambda dy, x: dy, raise_exception=False, seed=0)
    >>> bool(report), report.pairs[0].worst.status
    (False, 'wrong')
    """
    methods = (methods,) if isinstance(methods, str) else METHODS if methods is None else tuple(methods)
    options = Options(eps, atol, rtol, nondet_tol, fast_mode, kinks, budget, methods, other_values, explain)
    require_valid(options)
    function = brought(func, inputs, backward, saved, jvp, names)
    function.output_names = list(output_names or function.output_names)
    session = Session(function, seed_or_new(seed), options)
    session.run()
    report = session.report()
    if raise_exception and not report:
        raise GradcheckError(report)
    return report


def require_valid(options: Options) -> None:
    """Raise ValueError for an option with a value that it cannot have."""
    if options.kinks not in KINKS:
        raise ValueError(f"kinks is {options.kinks!r}; give one of {', '.join(map(repr, KINKS))}")
    if options.eps is not None and not (isinstance(options.eps, NUMBER) and options.eps > 0):
        raise ValueError(f"eps is {options.eps!r}; give a positive step, or None to let gradcheck choose it")
    require_time(options.budget)
    for name in ("atol", "rtol", "nondet_tol"):
        value = getattr(options, name)
        if value is not None and not (isinstance(value, NUMBER) and value >= 0):
            raise ValueError(f"{name} is {value!r}; give a number that is not negative")
    if unknown := {*options.methods} - {*METHODS}:
        raise ValueError(f"there is no method {min(unknown)!r}; the methods are {', '.join(METHODS)}")


def require_time(budget: float | None) -> None:
    """Raise ValueError for a budget in which nothing can be checked."""
    if budget is not None and not (isinstance(budget, NUMBER) and budget > 0):
        raise ValueError(f"budget is {budget!r}; give a positive number of seconds, or None for no limit")


def seed_or_new(seed: int | None) -> int:
    """The seed, or a new one of 32 bits for None.  Raises ValueError for what is not a seed."""
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed is {seed!r}; give an integer that is not negative, or None for a new one")
    return int(seed)
