"""check(op): the backward pass of a registered op, on random problems drawn from its shape line."""
import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pyllama.op import Op
from pyllama.testing import passes, points
from pyllama.testing.calls import Function
from pyllama.testing.methods.compare import inner, norm
from pyllama.testing.methods.judge import Case
from pyllama.testing.methods.slopes import WIDTHS
from pyllama.testing.points import Point
from pyllama.testing.problems import MOST, Problem, Small, choose_by, problem
from pyllama.testing.report import Report, Verdict
from pyllama.testing.session import Found, Options, Session
from pyllama.testing.trees import is_float

FEW = 4                                     # roundings of numbers of size one that may be left of terms that cancel
EXPLAINED = 4                               # wrong problems whose cause is looked for
SPEAKING = 12                               # numbers: a problem of one row and one column looks right in many ways
LARGE = 256                                 # numbers: a wrong problem of more is drawn again, smaller
REDRAWN = 20                                # times at most

# Where an op may be defined if it is not everywhere: maps of standard normal numbers.
DOMAINS = (lambda x: x, np.abs, np.tanh, lambda x: (1 + np.tanh(x)) / 2, lambda x: 1 + np.abs(x))


class OpFunction(Function):
    """A call of an op with its options: its current backend runs both passes, the reference gives the derivative."""

    def __init__(self, op: Op, inputs: list, options: dict[str, Any]):
        names = [x.name for x in op.inputs[:len(inputs)]]
        super().__init__(lambda *arrays: op(*arrays, **options), inputs, names=names)
        self.op, self.options = op, options
        self.output_names = [y.name for y in op.outputs]
        self.name, self.reference = op.name, lambda *arrays: op.forward(*arrays, **options)[0]
        self.original = functools.partial(op if op.has_kernels else op.forward, **options)
        if not op.has_kernels:
            self.keywords = {"backward": op.backward, "saved": True}

    def values(self, leaves: list) -> tuple:
        return tuple(map(np.asarray, passes.each(self.reference(*leaves))))


class OpSession(Session):
    """A problem as it was drawn, and one other layout of its arrays.

    The numbers of a problem are of size one, unlike a user's.  So both sides are zero if they are rounding beside one,
    as of the loss of a single class, whose gradient is zero.
    """

    function: OpFunction

    def __init__(self, function: OpFunction, seed: int, number: int, problems: int = 1):
        super().__init__(function, seed, Options(fast_mode=True, methods=("complex step", "differences")))
        self.number, self.problems = number, problems
        self.size = sum(x.size for x in function.leaves if x is not None)

    def add(self, key: tuple[str, str], found: Found) -> None:
        if found.verdict.status != "passed" and (verdict := zero(found.case)):
            found = found._replace(verdict=verdict)
        super().add(key, found)

    def keywords(self) -> dict[str, Any]:
        return {}

    def replay(self) -> str:
        return f"check({self.function.name}, seed={self.seed}, problems={self.problems})"

    @property
    def rank(self) -> tuple:
        """The higher, the worse; of wrong problems a small one, because it says most about the cause."""
        size = self.size if self.size >= SPEAKING else MOST * SPEAKING // max(self.size, 1)
        severity = max((found.rank for judged in self.found.values() for found in judged), default=(False,))
        return self.wrong, -size if self.wrong else 0, severity

    def points(self) -> Iterator[Point]:
        layouts = [*points.layout_points(self.start, self.values[points.GIVEN].outputs)]
        yield from layouts[self.number % len(layouts):][:1] if layouts else ()


def zero(case: Case) -> Verdict | None:
    """The verdict that both sides are zero but for rounding beside numbers of size one; None if they are not."""
    line, h, counted = case.values.line(case.place), WIDTHS[0], case.dy != 0
    claimed, change = inner(case.dx, line.v), (line(h) - line(-h))[counted] / (2 * h)
    measured, tolerance = float((case.dy[counted] * change).sum()), FEW * case.eps * norm(case.dy) * norm(line.v)
    if not max(abs(claimed), float(np.abs(case.dy[counted] * change).sum())) <= tolerance:
        return None
    return Verdict("differences", "passed", claimed, measured, abs(claimed - measured), tolerance,
                   "both sides are zero")


def check(op: Op, seed: int = 0, problems: int = 50) -> Report:
    """Compare an op's backward pass with exact derivatives on random problems; return the report of the worst.

    op        a registered op; its current backend runs forward and backward, the reference gives the derivative
    seed      of the problems, dy and the directions
    problems  how many, in float64

    Inputs are standard normal or, where forward is NaN there, in a part of that range.

    Raises TypeError for what is not an op; TypeError or ValueError if a pass returns something of another form, or if
    no problem can be judged.

    >>> from pyllama import ops
    >>> from pyllama.testing import check
    >>> bool(check(ops.tanh, problems=5))
    True
    """
    if not isinstance(op, Op):
        raise TypeError(f"op is {op!r}; give an op, such as pyllama.ops.rms_norm, and a function to gradcheck")
    rng, faults = np.random.default_rng(seed), passes.Faults()
    worst: list[OpSession] = []
    for number in range(problems):
        function = drawn(op, problem(op, choose_by(rng)))
        if function is None:
            continue
        session = OpSession(function, seed, number, problems)
        session.run()
        faults |= session.faults
        worst = sorted([*worst, session], key=lambda one: one.rank, reverse=True)[:EXPLAINED]
    if not worst:
        raise ValueError(f"{op.name} cannot be checked: none of its {problems} random problems has a floating input "
                         f"and is defined; check it with gradcheck and inputs of your own")
    return most_telling(map(smaller, worst), faults)


def drawn(op: Op, one: Problem) -> OpFunction | None:
    """The call of a problem at inputs where forward is defined; None if no gradient can be checked there."""
    inputs = inside(op, one.inputs, one.options)
    if inputs is None and any(x is not None and x.size == 0 for x in one.inputs):
        return None                                             # such as the mean of no numbers
    return OpFunction(op, inputs or one.inputs, one.options) if any(map(is_float, one.inputs)) else None


def smaller(session: OpSession) -> OpSession:
    """A session of few numbers that has a wrong gradient with the same options; the given one if there is none.

    Each entry costs a few calls to measure, and what a reader should see is easier to see in few.
    """
    op, options = session.function.op, session.function.options
    choose = choose_by(session.rng("smaller", session.number))
    for _ in range(REDRAWN if session.has_wrong_gradient and session.size > LARGE else 0):
        function = drawn(op, problem(op, choose, sizes=Small(choose), options=options))
        if function is None:
            continue
        other = OpSession(function, session.seed, session.number, session.problems)
        if SPEAKING <= other.size < session.size:
            with contextlib.suppress(Exception):                # what fails here is not the problem that was asked for
                other.run()
            if other.has_wrong_gradient:
                return other
    return session


def most_telling(worst: Iterable[OpSession], faults: passes.Faults) -> Report:
    """The report of the first problem, or of the first wrong one whose cause is named."""
    first: Report | None = None
    for session in worst:
        session.faults = faults
        if first and not session.wrong:
            break
        report = session.report()
        if report or any(pair.diagnoses for pair in report.pairs):
            return report
        first = first or report
    assert first is not None
    return first


def inside(op, inputs, options):
    """The inputs, mapped to where forward is defined; None if no such maps are found.

    One map for all inputs is tried first; then, input after input, the map that leaves the fewest NaN.
    """
    floating = [i for i, x in enumerate(inputs) if is_float(x)]

    def mapped(maps):
        chosen = list(inputs)
        for i, number in zip(floating, maps, strict=True):
            chosen[i] = DOMAINS[number](inputs[i])
        return chosen

    for first in range(len(DOMAINS)):
        maps = [first] * len(floating)
        lost = undefined(op, mapped(maps), options)
        for place in [*range(len(floating))] * 2:
            if not lost:
                break
            tries = [[*maps[:place], number, *maps[place + 1:]] for number in range(len(DOMAINS))]
            losses = [undefined(op, mapped(other), options) for other in tries]
            lost, maps = min(losses), tries[int(np.argmin(losses))]
        if not lost:
            return mapped(maps)
    return None


def undefined(op, inputs, options) -> float:
    """How many outputs are NaN; infinity if forward raises."""
    with contextlib.suppress(Exception), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(np.isnan(passes.flat(op(*inputs, **options)[0])).sum())
    return float("inf")
