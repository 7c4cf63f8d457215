"""A table over the named parameters of a whole model: is the gradient of each one right?  The worst comes first.

Each parameter is checked along a random direction, then at a few entries: those with the largest gradient, and others
drawn at random.  The directions come first, so that a short budget still reaches every parameter.

One complex step is enough for each parameter where differences along many of them at once confirm that it is exact: see
together.py.  The others are confirmed one by one.
"""
import copy
import functools
import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllama.errors import counted
from pyllama.testing import passes, trees
from pyllama.testing.calls import Function, described, name_of
from pyllama.testing.diagnosis import Evidence, diagnose
from pyllama.testing.function import require_time, seed_or_new
from pyllama.testing.methods import judge, slopes, together
from pyllama.testing.methods.compare import ROUNDED, Comparison, direction
from pyllama.testing.methods.judge import Case, Line, Values
from pyllama.testing.methods.slopes import EXACT
from pyllama.testing.report import Pair, Report, Verdict
from pyllama.testing.trees import is_float

OUTPUT = "loss"
SMALL = 0.1                                         # the step of an entry near zero, for differences


@dataclass(frozen=True)
class Partials(Report):
    """The report of check_partials: a line for each parameter, the worst first."""

    worst_first = True


def check_partials(f: Any, *arguments: Any, entries: int = 4, seed: int | None = None, budget: float | None = 10.0,
                   **options: Any) -> Partials:
    """Check the gradient of a loss with respect to every named parameter; return a report, the worst parameter first.

    f           a function, f(p) -> (value, back): the loss, a number, and back(dvalue) or back(), which returns the
                gradients, a tree like p; or a model with `params` and `loss(*arguments, **options) -> (value, back)`
    arguments   p, the tree of parameters (dicts and lists of arrays); of a model, what its loss takes: ids, labels
    entries     how many entries of each parameter are checked one by one
    seed        of the directions and of the entries; None: a new one, which the report has
    budget      seconds, after which the rest is skipped, and named in the report; None: no limit
    options     of a model's loss

    Parameters are computed with as float64, unless f refuses that.  Raises TypeError or ValueError if f or back returns
    something of another form.

    >>> import numpy as np
    >>> from pyllama.testing import check_partials
    >>> def loss(p):
    ...     error = p["scale"] * 3.0 + p["shift"] - 1.0
    ...     return error ** 2, lambda dy: {"scale": 6 * error * dy, "shift": error * dy}       # shift: 2 is missing
    >>> report = check_partials(loss, {"scale": np.array(0.5), "shift": np.array(2.0)}, seed=0)
    >>> [(pair.input, pair.wrong) for pair in report.pairs]
    [('shift', True), ('scale', False)]
    """
    name, loss, p = as_function(f, arguments, options)
    seed = seed_or_new(seed)
    require_time(budget)
    function = Function(all_complex(loss), [p])
    function.name = name
    function.leaves, _ = trees.in_precision(function, function.leaves)
    table = Table(function, seed, budget)
    pairs = table.pairs(entries)
    pairs.sort(key=lambda pair: (pair.wrong, pair.worst.severity), reverse=True)
    return Partials(name, tuple(pairs), tuple(table.faults.values()), skipped=tuple(table.skipped), seed=seed,
                    replay=f"check_partials(..., seed={seed}, entries={entries}, budget=None)")


def as_function(f: Any, arguments: tuple, options: dict) -> tuple[str, Callable, Any]:
    """(name, loss(p) -> (value, back(dy)), p)."""
    if hasattr(f, "params") and hasattr(f, "loss"):
        def of_model(p):
            twin = copy.copy(f)
            twin.params = p
            return with_dy(twin.loss(*arguments, **options))

        return f"the loss of {type(f).__name__}", of_model, f.params
    if not callable(f):
        raise TypeError(f"f is {described(f)}; give a function of the parameters, or a model")
    if len(arguments) != 1 or options:
        given = [counted(len(arguments), "argument"), *(f"{name}=" for name in options)]
        raise TypeError(f"check_partials got a function with {', '.join(given)}; give f and p, and bind anything else "
                        f"with functools.partial")
    return name_of(f), lambda p: with_dy(f(p)), arguments[0]


def with_dy(result: Any) -> Any:
    """y, back of which back takes dy, even if the user's does not."""
    if not (isinstance(result, tuple) and len(result) == 2 and callable(result[1])):
        raise TypeError("the loss returned no value, back; return the number and a function that returns gradients")
    value, back = result
    if np.ndim(value):
        raise TypeError(f"the loss has the shape {np.shape(value)}; return one number, such as its mean")
    if inspect.signature(back).parameters:
        return value, back
    return value, lambda dy: trees.mapped(lambda dx: None if dx is None else dy * dx, back())


def all_complex(loss: Callable) -> Callable:
    """The loss, of which all parameters are complex if one is: a model may add them to one another in place."""
    def f(p):
        leaves = [x for _, x in trees.leaves(p)]
        if any(np.iscomplexobj(x) for x in leaves):
            p = trees.mapped(lambda x: x.astype(complex, copy=False) if is_float(x) else x, p)
        return loss(p)

    return f


class Table:
    """The checks of one model, a parameter after the other."""

    def __init__(self, function: Function, seed: int, budget: float | None):
        self.function, self.seed, self.faults = function, seed, passes.Faults()
        self.deadline = None if budget is None else time.monotonic() + budget
        self.skipped: list[str] = []
        self.leaves: list[Any] = function.leaves
        self.names = function.names = [path or "p" for path, _ in trees.leaves(function.inputs[0])]
        self.precisions = frozenset(x.dtype for x in self.leaves if x is not None and is_float(x))
        self.dy = np.asarray(np.random.default_rng(seed).uniform(0.5, 1.5))
        if not self.precisions:
            raise TypeError("no parameter is floating, so there is no gradient to check; give the tree of parameters")
        self.outputs, self.back = passes.forward(function, self.leaves, self.faults)
        self.loss = abs(float(self.dy * self.outputs[0]))
        passes.require_same_again(function, self.leaves, self.outputs, 0.0, self.faults)
        self.grads = self.gradients(self.leaves, first=True)

    def gradients(self, leaves: list, first: bool = False) -> list:
        outputs, back = (self.outputs, self.back) if first else passes.forward(self.function, leaves, self.faults)
        return passes.gradients(self.function, back, (self.dy,), outputs, leaves, self.precisions, self.faults, first)

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def pairs(self, entries: int) -> list[Pair]:
        """A row for each parameter that has a gradient."""
        rngs = {i: np.random.default_rng([self.seed, i]) for i, dx in enumerate(self.grads) if dx is not None}
        lines = {i: self.line(i, direction(self.leaves[i], rng)) for i, rng in rngs.items()}
        exact = self.confirmed(lines)
        along = {i: self.by_step(line, exact.get(i)) or self.along(line, rngs[i]) for i, line in lines.items()}
        return [self.row(i, verdict, entries) for i, verdict in along.items()]

    def line(self, i: int, v: np.ndarray) -> Line:
        return Line(self.function, self.leaves, i, v, 1)

    def along(self, line: Line, rng: np.random.Generator | None = None) -> Verdict:
        """The verdict along a line; at a kink along others, too, if they can be drawn."""
        i = line.place
        if self.late():
            self.skipped.append(self.names[i])
            return Verdict("differences", "undecided", why="the budget left no time for it")
        values = Values(self.function, self.leaves, self.outputs, np.random.default_rng)
        values.lines[i] = line
        case = Case(values, i, self.grads[i], (self.dy,), lambda leaves, _: self.gradients(leaves)[i])
        if compared := judge.by_direction(case, line):
            return judge.verdict_of(compared)
        if judge.has_kink(case):
            return judge.by_subgradients(case, rng)
        return Verdict("differences", "undecided", why=judge.NOISE)

    def by_step(self, line: Line, exact: float | None) -> Verdict | None:
        """The verdict of a complex step that was confirmed; None if it was not, or contradicts the gradient."""
        if exact is None:
            return None
        terms = self.grads[line.place] * line.v
        claimed, least = float(terms.sum()), ROUNDED * self.loss
        gap, size = abs(exact - claimed), max(abs(exact), float(np.abs(terms).sum()), least)
        if not gap <= EXACT * size:
            return None
        return judge.verdict_of(Comparison("", exact, claimed, gap / size if gap else 0.0, EXACT, "complex step"))

    def confirmed(self, lines: dict[int, Line]) -> dict[int, float]:
        """The slope by a complex step along each line where differences confirm it."""
        def lines_at(places):
            return self.together([lines[i] for i in places])

        exact = self.complex_steps(lines)
        sure = together.confirmed(exact, lines_at, EXACT * ROUNDED * self.loss, EXACT * self.loss, self.late)
        return {i: exact[i] for i in sure}

    def complex_steps(self, lines: dict[int, Line]) -> dict[int, float]:
        """The slope along each line that there is time for; none if the loss refuses complex numbers."""
        exact: dict[int, float] = {}
        if self.precisions != {np.dtype(np.float64)}:
            return exact
        for i, line in lines.items():
            if self.late():
                break
            slope = slopes.imaginary(line)
            if slope is None:
                return {}
            exact[i] = float((self.dy * slope)[0])
        return exact

    def together(self, lines: list[Line]) -> Callable:
        """along(t): the loss, times dy, with t along all of these lines."""
        @functools.cache
        def along(t):
            leaves = trees.copies(self.leaves)
            for line in lines:
                leaves[line.place] = leaves[line.place] + t * line.v
            with warnings.catch_warnings(action="ignore"):
                try:
                    return self.dy * passes.flat(self.function.values(leaves))
                except Exception:                           # the loss is not defined there
                    if np.iscomplexobj(t):
                        raise
                    return np.full(1, np.nan)

        return along

    def row(self, i: int, along: Verdict, entries: int) -> Pair:
        """The pair of a parameter, with its worst entry."""
        checked: dict[tuple, Verdict] = {}
        for index in self.chosen(i, entries) if along.status != "undecided" else ():
            if self.late():
                self.skipped.append(f"entries of {self.names[i]}")
                break
            checked[index] = self.entry(i, index, along)
        worst = max(checked, key=lambda index: judge.rank(checked[index]), default=None)
        verdicts = (along,) if worst is None else (along, checked[worst])
        if not any(verdict.status == "wrong" for verdict in verdicts):
            return Pair(self.names[i], OUTPUT, (max(verdicts, key=judge.rank),))
        place = worst if worst is not None and checked[worst].status == "wrong" else None
        return Pair(self.names[i], OUTPUT, verdicts, index=place, diagnoses=self.diagnoses(i, checked))

    def chosen(self, i: int, count: int) -> list[tuple]:
        """The entries with the largest gradient, and as many at random."""
        sizes = np.abs(self.grads[i].ravel())
        largest = np.argsort(-sizes, kind="stable")[:(count + 1) // 2]
        others = np.random.default_rng([self.seed, i, 1]).permutation(sizes.size)
        flat = list(dict.fromkeys([*largest.tolist(), *others.tolist()]))[:count]
        return [tuple(map(int, np.unravel_index(n, self.grads[i].shape))) for n in flat]

    def entry(self, i: int, index: tuple, along: Verdict) -> Verdict:
        """The verdict on one entry: by one complex step if the direction showed that these are exact."""
        step = np.zeros(self.leaves[i].shape)
        step[index] = 1.0 if along.method == "complex step" else max(abs(float(self.leaves[i][index])), SMALL)
        line = self.line(i, step)
        if along.method != "complex step":
            return self.along(line)
        exact = slopes.imaginary(line)
        measured = float(self.dy * exact[0]) if exact is not None else np.nan
        claimed = float(self.grads[i][index])
        error = abs(claimed - measured)
        tolerance = EXACT * max(abs(measured), self.rounding(i))
        return Verdict("complex step", "passed" if error <= tolerance else "wrong", claimed, measured, error, tolerance)

    def rounding(self, i: int) -> float:
        """The size of an entry's gradient below which rounding of the whole counts: that of the largest, or of loss."""
        return max(float(np.abs(self.grads[i]).max(initial=0)), ROUNDED * self.loss)

    def diagnoses(self, i: int, checked: dict[tuple, Verdict]) -> tuple[str, ...]:
        """What the entries that were looked at have in common."""
        x, dx = self.leaves[i], self.grads[i]
        measured, tolerance = np.full(x.shape, np.nan), np.zeros(x.shape)
        for index, verdict in checked.items():
            if verdict.method == "complex step":
                measured[index], tolerance[index] = verdict.measured, verdict.tolerance

        def gradient(dy):
            return passes.gradients(self.function, self.back, (dy,), self.outputs, self.leaves, self.precisions,
                                    self.faults)[i]

        return diagnose(Evidence(self.names[i], OUTPUT, {}, x, self.outputs[0], self.dy, dx, measured, tolerance,
                                 gradient, deadline=self.deadline))
