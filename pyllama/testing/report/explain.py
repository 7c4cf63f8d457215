"""The pairs of a report: the worst verdicts, and for a wrong gradient what is wrong, in words and as a small case."""
import contextlib
from typing import TYPE_CHECKING

import numpy as np

from pyllama.testing.calls import OutOfTime
from pyllama.testing.methods import judge
from pyllama.testing.report import Pair, Verdict

if TYPE_CHECKING:
    from pyllama.testing.diagnosis import Evidence
    from pyllama.testing.session import Found, Session

EXACTNESS = ("complex step", "dot product", "differences", "order", "rounding")
FEW = 8                                     # wrong entries: another input's gradient must agree at these first
LONGEST = 400                               # numbers in a case that a reader may want to paste
NOTHING = Verdict("differences", "undecided", why="none of the methods asked for can judge it")


def explained(session: "Session") -> tuple[tuple[Pair, ...], str]:
    """(the pairs, the worst last; the smallest failing case as Python)."""
    pairs = [pair(session, key) for key in session.found]
    pairs.sort(key=lambda pair: (pair.wrong, pair.worst.severity))
    if not pairs or not pairs[-1].wrong or not session.options.explain:
        return tuple(pairs), ""
    return tuple(pairs), smallest_case(session, (pairs[-1].input, pairs[-1].output))


def pair(session: "Session", key: tuple[str, str]) -> Pair:
    """The worst verdict of each method; and, if it is wrong, why."""
    worst: dict[str, Found] = {}
    for found in session.found[key]:
        method = found.verdict.method
        worst[method] = max(worst.get(method, found), found, key=lambda found: found.rank)
    ordered = sorted(worst.values(), key=shown_first)
    if not ordered:
        return Pair(*key, (NOTHING,))
    verdicts = tuple(found.verdict for found in ordered)
    if not ordered[0].rank[0] or not session.options.explain:
        return Pair(*key, verdicts, ordered[0].point.name)
    shown = simplest(session, key)
    index, diagnoses = diagnosed(session, key, shown)
    return Pair(*key, verdicts, shown.point.name, index, diagnoses)


def shown_first(found: "Found") -> tuple:
    """The order of a pair's verdicts: the wrong ones, the worst first; then the others, the most exact first."""
    wrong, decided, severity = found.rank
    return not wrong, not decided, -severity if wrong else EXACTNESS.index(found.verdict.method)


def simplest(session: "Session", key: tuple[str, str]) -> "Found":
    """The first wrong verdict: points are tried in the order of their simplicity."""
    return next(found for found in session.found[key] if found.rank[0])


def outcomes(session: "Session", key: tuple[str, str]) -> dict[str, bool]:
    """For each point: is the gradient wrong there?"""
    result: dict[str, bool] = {}
    for found in session.found[key]:
        if found.verdict.status != "undecided":
            result[found.point.name] = result.get(found.point.name, False) or found.rank[0]
    return result


def diagnosed(session: "Session", key: tuple[str, str], found: "Found") -> tuple[tuple | None, tuple[str, ...]]:
    """(the entry that is most off, what is wrong in sentences)."""
    from pyllama.testing.diagnosis import Evidence, diagnose
    case, names = found.case, session.function.names
    which = session.sample(case, judge.MOST)
    try:
        measured = judge.measured(case, which, session.halfway())
    except OutOfTime:
        return None, ()
    verdict, index = judge.entrywise(measured, case.dx, case.eps)
    output = session.outputs.index(key[1])

    def dys(dy):
        return *case.dys[:output], dy, *case.dys[output + 1:]

    def gradient(dy):
        try:
            return case.gradient_at(case.values.leaves, dys(dy))
        except OutOfTime:
            raise TimeoutError from None                    # a diagnosis does without

    def slope(dy):
        try:
            return judge.measured(case._replace(dys=dys(dy)), which, session.halfway()).value
        except OutOfTime:
            return np.full(case.x.shape, np.nan)

    inputs = {name: x for name, x in zip(names, case.values.leaves, strict=True) if x is not None}
    evidence = Evidence(*key, inputs, case.x, case.values.outputs[output], case.dys[output], case.dx, measured.value,
                        measured.error, gradient, {}, outcomes(session, key), kink=measured.kink,
                        deadline=session.deadline, slope=slope)
    evidence.others.update(of_others(session, case, which, evidence))
    return index if verdict.status == "wrong" else None, diagnose(evidence)


def of_others(session: "Session", case: judge.Case, which: list, evidence: "Evidence") -> dict[str, np.ndarray]:
    """The measured gradients of those other inputs that agree with the claimed one at a few of its wrong entries."""
    from pyllama.testing.diagnosis.evidence import ROUNDING
    wrong = [tuple(index) for index in np.argwhere(evidence.bad)]
    few = wrong[::len(wrong) // FEW + 1]
    near = 2 * (evidence.noise + ROUNDING * np.abs(case.dx).max(initial=0))     # at least what a diagnosis allows
    found: dict[str, np.ndarray] = {}
    with contextlib.suppress(OutOfTime):
        for i, x in enumerate(case.values.leaves):
            if not few or i not in session.floats or i == case.place or x.shape != case.x.shape:
                continue
            other = case._replace(place=i)
            there = judge.measured(other, few, session.deadline).value
            if not (np.abs(there - case.dx) > near).any():
                found[session.function.names[i]] = judge.measured(other, which, session.halfway()).value
    return found


def smallest_case(session: "Session", key: tuple[str, str]) -> str:
    """The smallest inputs at which this gradient is wrong, as Python to paste."""
    from pyllama.testing.report.smallest import as_python, smallest
    found, output = simplest(session, key), session.outputs.index(key[1])

    def fails(leaves: list) -> bool:
        try:
            compared = judge.by_direction(session.case_at(leaves, found.point, found.case.place, output))
        except Exception:
            return False
        return compared is not None and compared.wrong

    function = session.function
    if found.verdict.method == "rounding":                  # only in the precision of the inputs is it wrong
        leaves = function.leaves
    else:
        leaves = smallest(fails, found.case.values.leaves, session.deadline)
    if sum(x.size for x in leaves if x is not None) > LONGEST:
        return ""
    inputs = dict(zip(function.heads, function.arguments(leaves), strict=True))
    text = as_python(function.original, inputs, function.keywords | session.keywords() | {"seed": session.seed})
    if not function.foreign:
        return text
    *lines, _ = text.splitlines()                       # func may take constants, too, which are not among the inputs
    return "\n".join([*lines, f"# call gradcheck({function.name}, ...) with arrays of its library that hold these"])

