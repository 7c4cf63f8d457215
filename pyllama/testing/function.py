"""gradcheck: is the hand-written gradient of any function right?"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllama.testing.calls import brought
from pyllama.testing.report import GradcheckError, Report
from pyllama.testing.session import METHODS, Options, Session

KINKS = ("accept", "skip", "raise")


def gradcheck(func: Callable, inputs: Any, *, eps: float | None = None, atol: float | None = None,
              rtol: float | None = None, raise_exception: bool = True, nondet_tol: float = 0.0,
              fast_mode: bool = False, backward: Callable | None = None, saved: bool = False,
              jvp: Callable | None = None, kinks: str = "accept", seed: int | None = None,
              budget: float | None = 2.0, names: Sequence[str] | None = None,
              methods: Sequence[str] | None = None, other_values: bool = True, explain: bool = True) -> Report:
    """Compare the gradients of a function with its derivative; return a report that is true if they are right.

    >>> import numpy as np
    >>> from pyllama.testing import gradcheck
    >>> def square(x):
    ...     return x * x, lambda dy: 2 * x * dy
    >>> bool(gradcheck(square, [np.array([1.0, -2.0, 3.0])]))
    True
    """
    if kinks not in KINKS:
        raise ValueError(f"kinks is {kinks!r}; give one of {', '.join(map(repr, KINKS))}")
    if eps is not None and not eps > 0:
        raise ValueError(f"eps is {eps}; give a positive step, or None to let gradcheck choose it")
    seed = int(np.random.SeedSequence().entropy % 2 ** 32) if seed is None else seed        # type: ignore[operator]
    if unknown := {*(methods or ())} - {*METHODS}:
        raise ValueError(f"there is no method {min(unknown)!r}; the methods are {', '.join(METHODS)}")
    chosen = METHODS if methods is None else tuple(methods)
    options = Options(eps, atol, rtol, nondet_tol, fast_mode, kinks, budget, chosen, other_values, explain)
    session = Session(brought(func, inputs, backward, saved, jvp, names), seed, options)
    session.run()
    report = session.report()
    if raise_exception and not report:
        raise GradcheckError(report)
    return report
