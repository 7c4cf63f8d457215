"""Inputs of float32, float16 and bfloat16 in a run of gradcheck.

The run converts them to float64, so that rounding hides no mistake.  Then it compares the results in low precision with
those in float64, or in float32 if the function refuses float64.  A function that accepts float16 or bfloat16 alone is
judged in that precision: see methods/integral.py.
"""
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pyllama.testing import passes
from pyllama.testing.calls import OutOfTime
from pyllama.testing.methods.judge import Case
from pyllama.testing.named import cause, reason
from pyllama.testing.points import Point
from pyllama.testing.report import Verdict
from pyllama.testing.trees import in_precision

if TYPE_CHECKING:
    from pyllama.testing.session import Session

REFUSALS = TypeError, ValueError, AssertionError        # raised by functions that do not support a precision
LEFT_OUT = "was left out"
LINES = 4                                   # of random direction: along one, errors of several entries may cancel
ENTRIES = 16                                # that have a line of their own


def start(session: "Session") -> list:
    """The leaves in float64; in float32 or as given if func refuses that.  A note says so."""
    function = session.function
    if session.precisions == {np.dtype(np.float64)}:
        return function.leaves
    wide, error = in_precision(function, function.leaves)
    if error is None:
        return wide
    because = f"because it refuses float64: {reason(error)}"
    if session.eps > passes.eps_of(np.float32):
        wide, refused = in_precision(function, function.leaves, np.float32)
        session.wide, session.alone = np.float32, refused is not None
        if not session.alone:
            session.note(f"{function.name} was checked in float32, {because}")
            return wide
    session.note(f"{function.name} was checked in {names(session)} alone, whose rounding hides mistakes, {because}")
    return function.leaves


def names(session: "Session") -> str:
    """The precisions of the inputs, by name."""
    return ", ".join(sorted(dtype.name for dtype in session.precisions))


# --- float16 and bfloat16 alone ---------------------------------------------------------------------------------------

def by_integral(session: "Session", case: Case, point: Point, entries: int = 0) -> Verdict:
    """The verdict on a case in a precision in which narrow steps show nothing but rounding."""
    from pyllama.testing.methods import integral
    rng = session.rng("line", case.place, point.name, entries)
    lines = 0 if entries else 1 if point.base else LINES                # the same numbers in another layout: 1
    return integral.by_integral(case, session.eps, rng, lines, entries)


def note_what_is_hidden(session: "Session") -> None:
    """Note the largest error that may not show along any line."""
    from pyllama.testing.methods.integral import hidden
    passed = [[hidden(one.verdict) for one in found if one.verdict.status == "passed"]
              for found in session.found.values()]
    if most := max((min(errors) for errors in passed if errors), default=0.0):
        session.note(f"in {names(session)} alone, an error of less than {max(1, round(100 * most))} % of a gradient "
                     f"may not show")


# --- the rounding of a low precision ----------------------------------------------------------------------------------

def roundings(session: "Session") -> Iterator[tuple[Point, tuple[str, str], Verdict]]:
    """(point, (leaf, output), verdict) of the rounding of each gradient, if func accepts a higher precision."""
    function = session.function
    low = sorted((dtype.name for dtype in session.precisions if dtype != np.float64), key=str)
    if not low or session.start is function.leaves or "rounding" not in session.options.methods:
        return
    point = Point(f"in {low[0]}", function.leaves)
    for j, output in enumerate(session.outputs):
        try:
            function.require_time()
            of_y, verdicts = roundings_of(session, point, j)
        except OutOfTime:
            session.skipped.append(f"the rounding of {low[0]} of {output}")
            return
        except REFUSALS as error:
            session.note(f"the point {point.name!r} {LEFT_OUT}: {reason(error)}")
            return
        except Exception as error:
            session.faults.add(f"fails {point.name}", f"{function.name} raised {cause(error)} {point.name}, but not in "
                                                      f"float64; fix that, or refuse it with a TypeError")
            return
        if of_y.status == "wrong":
            session.faults.add("loses digits", f"{output} loses digits in {low[0]}: {of_y.why}", output)
        elif of_y.status == "undecided":
            session.note(f"{output} may lose digits in {low[0]}: {of_y.why}")
        for i, verdict in verdicts.items():
            yield point, (function.names[i], output), verdict


def roundings_of(session: "Session", point: Point, j: int) -> tuple[Verdict, dict[int, Verdict]]:
    """The verdicts on the rounding of one output and, {i: verdict}, of its gradient with respect to leaf i."""
    from pyllama.testing.methods import precision
    function, faults, precisions = session.function, session.faults, session.precisions

    def run(leaves, dys):
        outputs, back = passes.forward(function, leaves, faults)
        dys = tuple(d.astype(a.dtype) for d, a in zip(dys, outputs, strict=True))
        return outputs, passes.gradients(function, back, dys, outputs, leaves, precisions, faults)

    outputs, _ = passes.forward(function, point.leaves, faults)
    dys = alone(j, session.drawn(outputs, point))
    _, grads = run(point.leaves, dys)
    verdicts = precision.check(run, point.leaves, dys, session.seed, session.wide)
    leaves = [i for i, dx in enumerate(grads) if dx is not None]
    return verdicts[j], dict(zip(leaves, verdicts[len(outputs):], strict=True))


def alone(number: int, dys: tuple) -> tuple:
    """The dy of one output, and zeros for the others."""
    return tuple(d if k == number else np.zeros_like(d) for k, d in enumerate(dys))
