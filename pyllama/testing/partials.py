"""A table over the named parameters of a whole model: is the gradient of each one right?  The worst comes first.

Each parameter is checked along a random direction, then at a few entries: those with the largest gradient, and others
drawn at random.  The directions come first, so that a short budget still reaches every parameter.

Differences along a direction of all parameters at once confirm that a complex step is exact.  Then one step is enough
for each parameter with a share in that slope; the others are confirmed one by one.
"""
import copy
import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllama.errors import counted
from pyllama.testing import passes, trees
from pyllama.testing.calls import Function, described, name_of
from pyllama.testing.diagnosis import Evidence, diagnose
from pyllama.testing.function import require_time, seed_or_new
from pyllama.testing.methods import judge, slopes
from pyllama.testing.methods.compare import ROUNDED, Comparison, by_complex_step, direction
from pyllama.testing.methods.judge import Case, Line, Values
from pyllama.testing.methods.slopes import EXACT, TRUST, WIDTHS
from pyllama.testing.report import Pair, Report, Verdict
from pyllama.testing.trees import is_float

OUTPUT = "loss"
SMALL = 0.1                                         # the step of an entry near zero, for differences
NEARER = 1, 2.0 ** -4, 2.0 ** -8                    # of the widths along all parameters: in a large model with ReLUs
                                                    # there is a kink within the wide ones
SHARE = 1e-2                                        # of the slope along all parameters: a smaller one may have lost its
                                                    # imaginary part without a trace there


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
            p = trees.mapped(lambda x: x.astype(complex) if is_float(x) else x, p)
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
        passes.require_same_again(function, self.leaves, self.outputs, 0.0, self.faults)
        self.grads = self.gradients(self.leaves, first=True)

    def gradients(self, leaves: list, first: bool = False) -> list:
        outputs, back = (self.outputs, self.back) if first else passes.forward(self.function, leaves, self.faults)
        return passes.gradients(self.function, back, (self.dy,), outputs, leaves, self.precisions, self.faults, first)

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def pairs(self, entries: int) -> list[Pair]:
        """A row for each parameter that has a gradient."""
        self.joint, along = self.confirmed(), {}
        for i in (i for i, dx in enumerate(self.grads) if dx is not None):
            rng = np.random.default_rng([self.seed, i])
            along[i] = self.along(i, direction(self.leaves[i], rng), rng)
        return [self.row(i, verdict, entries) for i, verdict in along.items()]

    def confirmed(self) -> float:
        """The slope along a direction of all parameters, if a complex step is right there; else infinity."""
        rng = np.random.default_rng([self.seed, len(self.leaves)])
        vs = [None if dx is None else direction(x, rng) for x, dx in zip(self.leaves, self.grads, strict=True)]
        if self.precisions != {np.dtype(np.float64)}:
            return np.inf

        @functools.cache
        def along(t):
            return passes.flat(self.function.values([np.array(x) if v is None else x + t * v
                                                     for x, v in zip(self.leaves, vs, strict=True)]))

        exact = slopes.imaginary(along)
        if exact is None:
            return np.inf
        for nearer in NEARER:
            value, error, kink = slopes.differences(along, nearer * WIDTHS[slopes.FIRST], 2.0 ** -52)
            right = slopes.agree(exact, value, error) & (error <= TRUST * np.abs(exact)) & ~kink
            if right.all():
                return float(np.abs(self.dy * exact)[0])
        return np.inf

    def along(self, i: int, v: np.ndarray, rng: np.random.Generator | None = None) -> Verdict:
        """The verdict along a direction of parameter i; at a kink along others, too, if they can be drawn."""
        if self.late():
            self.skipped.append(self.names[i])
            return Verdict("differences", "undecided", why="the budget left no time for it")
        line = Line(self.function, self.leaves, i, v, 1)
        if compared := self.by_share(line, i):
            return judge.verdict_of(compared)
        values = Values(self.function, self.leaves, self.outputs, np.random.default_rng)
        values.lines[i] = line
        case = Case(values, i, self.grads[i], (self.dy,), lambda leaves, _: self.gradients(leaves)[i])
        if compared := judge.by_direction(case, line):
            return judge.verdict_of(compared)
        if judge.has_kink(case):
            return judge.by_subgradients(case, rng)
        return Verdict("differences", "undecided", why=judge.NOISE)

    def by_share(self, line: Line, i: int) -> Comparison | None:
        """The verdict of one complex step, if it has a share in the slope that is confirmed, and agrees; else None."""
        exact = slopes.imaginary(line) if self.joint < np.inf else None
        if exact is None or abs(self.dy * exact[0]) < SHARE * self.joint:
            return None
        return by_complex_step("", exact, self.grads[i], line.v, self.dy.reshape(1), 2.0 ** -52)

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
        if along.method != "complex step":
            return self.along(i, step)
        line = Line(self.function, self.leaves, i, step, 1)
        exact = slopes.imaginary(line)
        measured = float(self.dy * exact[0]) if exact is not None else np.nan
        claimed = float(self.grads[i][index])
        error = abs(claimed - measured)
        tolerance = EXACT * max(abs(measured), self.rounding(i))
        return Verdict("complex step", "passed" if error <= tolerance else "wrong", claimed, measured, error, tolerance)

    def rounding(self, i: int) -> float:
        """The size of an entry's gradient below which rounding of the whole counts: that of the largest, or of loss."""
        return max(float(np.abs(self.grads[i]).max(initial=0)), ROUNDED * abs(float(self.dy * self.outputs[0])))

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
