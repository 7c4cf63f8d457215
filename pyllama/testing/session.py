"""One run of gradcheck: the gradient of every output with respect to every leaf, judged at every point."""
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing import low, passes, points
from pyllama.testing.calls import Function, OutOfTime
from pyllama.testing.methods import judge
from pyllama.testing.methods.compare import direction
from pyllama.testing.methods.judge import Case, Values
from pyllama.testing.named import reason
from pyllama.testing.points import GIVEN, Point
from pyllama.testing.report import Pair, Report, Verdict
from pyllama.testing.report.explain import explained
from pyllama.testing.report.pasted import of_callable
from pyllama.testing.trees import is_float

BESIDE = 10                                 # points beside the given one, if a gradient is judged nowhere
ASIDE = 1e-2                                # how far those are, relative to the inputs
BUDGET = 2.0                                # seconds, unless the user says otherwise
EXTRA = 2.0                                 # seconds: who has a wrong gradient can wait for the reason
METHODS = ("complex step", "differences", "order", "dot product", "rounding")


@dataclass(frozen=True)
class Options:
    """What gradcheck was asked to do; see there."""
    eps: float | None = None
    atol: float | None = None
    rtol: float | None = None
    nondet_tol: float = 0.0
    fast_mode: bool = False
    kinks: str = "accept"
    budget: float | None = None
    methods: tuple[str, ...] = METHODS
    other_values: bool = True
    explain: bool = True

    @property
    def plain(self) -> tuple[float, float, float] | None:
        """(eps, atol, rtol) of plain differences, if the user set one of them; the others are torch's."""
        if self.eps is self.atol is self.rtol is None:
            return None
        return (1e-6 if self.eps is None else self.eps, 1e-5 if self.atol is None else self.atol,
                1e-3 if self.rtol is None else self.rtol)

    def set_by_user(self) -> dict[str, Any]:
        """The options that decide the verdicts, if they are not the defaults."""
        return {name: value for name, value in vars(self).items()
                if value != getattr(Options, name) and name not in ("budget", "explain")}


class Found(NamedTuple):
    """A verdict, the point and the case that it belongs to, and an entry of the leaf or None."""
    point: Point
    verdict: Verdict
    case: Case
    entry: tuple[int, ...] | None = None

    @property
    def rank(self) -> tuple:
        """The higher, the worse."""
        return judge.rank(self.verdict)


class Session:
    """One run of gradcheck over the points of one function."""

    def __init__(self, function: Function, seed: int, options: Options):
        self.function, self.seed, self.options = function, seed, options
        self.deadline = None if options.budget is None else time.monotonic() + options.budget
        self.faults = passes.Faults()
        self.notes: dict[str, None] = {}
        self.skipped: list[str] = []
        self.found: dict[tuple[str, str], list[Found]] = {}
        self.values: dict[str, Values] = {}
        self.floats = [i for i, x in enumerate(function.leaves) if is_float(x)]
        if not self.floats:
            raise TypeError("no input is floating, so there is no gradient to check; convert one, such as "
                            "x.astype(float)")
        self.precisions = frozenset(function.leaves[i].dtype for i in self.floats)            # type: ignore[union-attr]
        self.eps = max(map(passes.eps_of, self.precisions))
        self.wide: type = np.float64                            # the precision beside which a lower one is judged
        self.alone = False                                      # is it float16 or bfloat16, and func refuses float32?
        self.start = low.start(self)

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        count = len(self.values[GIVEN].outputs)
        if len(self.function.output_names) == count:
            return self.function.output_names
        return [f"output {j}" for j in range(count)] if count > 1 else ["y"]

    def rng(self, *key: Any) -> np.random.Generator:
        """A generator for this purpose, whatever else was drawn or skipped."""
        return np.random.default_rng([self.seed, zlib.crc32(repr(key).encode())])

    @property
    def wrong(self) -> bool:
        return bool(self.faults) or self.has_wrong_gradient

    @property
    def has_wrong_gradient(self) -> bool:
        """A fault of the passes alone may not show in one."""
        return any(found.rank[0] for judged in self.found.values() for found in judged)

    def halfway(self) -> float | None:
        """The middle of the time left: what is measured until then must also be confirmed."""
        return None if self.deadline is None else (time.monotonic() + self.deadline) / 2

    def note(self, sentence: str) -> None:
        self.notes[sentence] = None

    def run(self) -> None:
        """Judge every gradient at every point."""
        self.given = Point(GIVEN, self.start)
        cases = self.at(self.given, first=True)
        self.function.deadline = self.deadline              # the given point is judged, however long that takes
        for point in self.points():
            self.visit(point)
        for key, case in cases.items():
            try:
                self.function.require_time()
                self.in_depth(key, case)
            except OutOfTime:
                self.skipped.append(f"some entries of {key[0]}, or the order")
        for point, key, verdict in low.roundings(self):
            if key in cases:
                self.add(key, Found(point, verdict, cases[key]))
        for k in range(BESIDE):
            if all(map(self.judged, self.found)):
                break
            rng = self.rng("beside", k)
            self.visit(Point(f"beside the inputs ({k + 1})", [aside(x, rng) for x in self.start]))
        if self.alone:
            low.note_what_is_hidden(self)

    def report(self) -> Report:
        """What was found; of a wrong gradient also why."""
        self.deadline = None if self.deadline is None else self.deadline + EXTRA
        self.function.deadline = self.deadline
        pairs, smallest = explained(self)
        for pair in filter(self.is_by_differences, pairs):
            self.note(f"{pair.output} is not holomorphic in {pair.input}, or refuses complex numbers: differences "
                      f"judge it, not a complex step")
        notes = (*self.notes, *dict.fromkeys(self.function.notes))
        return Report(self.function.name, pairs, tuple(self.faults.values()), notes, tuple(self.skipped), self.seed,
                      smallest, self.replay())

    def is_by_differences(self, pair: Pair) -> bool:
        """Is the gradient wrong by differences, where a complex step was asked for, too, and does not apply?"""
        methods = {verdict.method for verdict in pair.verdicts}
        return pair.wrong and "complex step" in self.options.methods and "complex step" not in methods \
            and "differences" in methods

    # --- points -------------------------------------------------------------------------------------------------------

    def points(self) -> Iterator[Point]:
        """The points but for the one that is given."""
        yield Point("another dy", self.start, base=GIVEN)
        yield from points.layout_points(self.start, self.values[GIVEN].outputs)
        if self.options.other_values:
            yield from points.value_points(self.start, self.rng("values"))

    def visit(self, point: Point) -> None:
        """Judge at another point, if there is time, and if f is defined there."""
        try:
            self.function.require_time()
            self.at(point)
        except OutOfTime:
            self.skipped.append(f"the point {point.name!r}")
        except Exception as error:
            self.note(f"the point {point.name!r} was left out: {reason(error)}")

    def at(self, point: Point, first: bool = False) -> dict[tuple[str, str], Case]:
        """Judge every gradient at this point along a random direction.  Returns the cases."""
        outputs, back = passes.forward(self.function, point.arranged(point.leaves), self.faults)
        values = self.near(point, outputs)
        if first:
            passes.require_same_again(self.function, point.leaves, outputs, self.options.nondet_tol, self.faults)
            self.look_for_aliases(outputs)
        drawn = self.drawn(outputs, point)
        cases: dict[tuple[str, str], Case] = {}
        for j, name in enumerate(self.outputs):
            if is_float(outputs[j]):
                found = self.cases(point, back, low.alone(j, drawn), values, self.faults, again=first)
                cases |= {(self.function.names[i], name): case for i, case in found}
        for key, case in cases.items():
            self.judge(key, case, point)
        if first:
            self.require_linear(back, drawn, values)
            self.look_for_shared_state(back, drawn, values)
        return cases

    def near(self, point: Point, outputs: tuple) -> Values:
        """f near the values of the point: one object for all layouts of them."""
        base = point.base or point.name
        values = self.values.setdefault(base, Values(self.function, point.leaves, outputs,
                                                     lambda place: self.rng("v", base, place)))
        if any(passes.differ(a, b, self.eps) for a, b in zip(values.outputs, outputs, strict=True)) \
                and not values.rounding_explains(outputs):
            self.faults.add("layout", f"{self.function.name} returns another y for {point.name}: it reads memory as if "
                                      f"it were contiguous; use the strides, or copy", point.name)
        return values

    def drawn(self, outputs: tuple, point: Point) -> tuple:
        """A random dy of each output, in the layout of the point; 0 where the output is infinite or integer."""
        rng = self.rng("dy", point.name)
        dys = [np.where(np.isfinite(a), rng.standard_normal(a.shape), 0.0).astype(a.dtype) if is_float(a) else
               np.zeros(a.shape) for a in outputs]
        return tuple(point.of_dy(d) if point.of_dy and d.ndim else d for d in dys)

    def cases(self, point: Point, back: Callable, dys: tuple, values: Values, faults: passes.Faults,
              again: bool = False) -> Iterator[tuple[int, Case]]:
        """(i, case) for each floating leaf that back returned a gradient of."""
        function, precisions = self.function, self.precisions
        grads = passes.gradients(function, back, dys, values.outputs, values.leaves, precisions, faults, again)
        for i, dx in enumerate(grads):
            def gradient_at(leaves, dys, i=i):
                unseen = passes.Faults()
                leaves = point.arranged(leaves)
                outputs, near = passes.forward(function, leaves, unseen)
                return passes.gradients(function, near, dys, outputs, leaves, precisions, unseen)[i]

            if dx is not None:
                yield i, Case(values, i, dx, dys, gradient_at)

    def case_at(self, leaves: list, point: Point, place: int, output: int) -> Case:
        """The case of this leaf and output at other leaves.  Raises KeyError if there is no gradient."""
        unseen = passes.Faults()
        outputs, back = passes.forward(self.function, point.arranged(leaves), unseen)
        values = Values(self.function, leaves, outputs, np.random.default_rng)
        return dict(self.cases(point, back, low.alone(output, self.drawn(outputs, point)), values, unseen))[place]

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def add(self, key: tuple[str, str], found: Found) -> None:
        if found.verdict.method in self.options.methods:
            if found.verdict.method in ("complex step", "differences", "order") and not self.alone:
                found = found._replace(verdict=judge.beside_one(found.case, found.verdict, found.entry))
            self.found.setdefault(key, []).append(found)

    def judge(self, key: tuple[str, str], case: Case, point: Point) -> None:
        """Judge a case along a random direction."""
        self.found.setdefault(key, [])
        if self.alone:
            return self.add(key, Found(point, low.by_integral(self, case, point), case))
        compared, confirmed = judge.in_time(case, self.deadline)
        if not confirmed:
            self.skipped.append(f"the differences that confirm the complex step of {key[0]}")
        verdict = judge.verdict_of(compared) if compared else None
        if verdict is None and judge.has_kink(case):
            self.note(f"{key[1]} has a kink in {key[0]}")
            if self.options.kinks == "raise":
                self.faults.add("kink", f"{key[1]} has a kink in {key[0]}, where its gradient is not unique; give "
                                        f"other inputs, or kinks='accept'", key[0])
            if self.options.kinks == "accept":
                verdict = judge.by_subgradients(case, self.rng("kinks", point.name, key))
        verdict = verdict or Verdict("differences", "undecided", why=judge.NOISE)
        if not (self.options.plain and verdict.method == "differences"):
            self.add(key, Found(point, verdict, case))

    def judged(self, key: tuple[str, str]) -> bool:
        return any(found.verdict.status != "undecided" for found in self.found[key])

    def in_depth(self, key: tuple[str, str], case: Case) -> None:
        """The methods that are used at the given point alone."""
        point = self.given
        if "order" in self.options.methods and not self.alone and not judge.has_kink(case):
            self.add(key, Found(point, judge.by_order(case), case))
        if self.function.jvp:
            self.add(key, Found(point, judge.by_jvp(case, self.tangent), case))
        which = self.sample(case, judge.ENTRIES)
        if self.options.plain:
            verdict, index = judge.by_plain_differences(case, which, *self.options.plain)
            self.add(key, Found(point, verdict, case, index))
            self.note("eps, atol and rtol apply to the differences alone: other methods derive their tolerances")
        if not self.options.fast_mode:
            self.one_by_one(key, case, which)

    def one_by_one(self, key: tuple[str, str], case: Case, which: list) -> None:
        """Judge some entries, each for itself, unless the gradient is wrong anyway."""
        if any(found.verdict.status == "wrong" and found.point is self.given for found in self.found[key]):
            return
        if self.alone:
            return self.add(key, Found(self.given, low.by_integral(self, case, self.given, low.ENTRIES), case))
        verdict, entry, stopped = judge.by_entries(case, which, self.halfway())
        if not (self.options.plain and verdict.method == "differences"):
            self.add(key, Found(self.given, verdict, case, entry))
        if stopped:
            self.skipped.append(f"some entries of {key[0]}")

    def sample(self, case: Case, most: int) -> list:
        """The indices of all entries of the leaf, or of so many drawn at random."""
        size = case.x.size
        numbers = self.rng("entries", case.place).choice(size, most, replace=False) if size > most else range(size)
        return [judge.index_of(number, case.x) for number in sorted(numbers)]

    def tangent(self, place: int, v: np.ndarray) -> np.ndarray:
        """J v [M] by the user's jvp."""
        leaves = self.start
        moves = [v if i == place else x if x is None else np.zeros(x.shape) for i, x in enumerate(leaves)]
        return passes.flat(self.function.tangents(leaves, moves, self.values[GIVEN].outputs))

    # --- contracts ----------------------------------------------------------------------------------------------------

    def look_for_aliases(self, outputs: tuple) -> None:
        for name, x in zip(self.function.names, self.start, strict=True):
            if x is not None and any(np.may_share_memory(a, x) for a in outputs):
                self.note(f"the output shares memory with {name}: a write to one changes the other")

    def look_for_shared_state(self, back: Callable, dys: tuple, values: Values) -> None:
        """A note if the gradient of one call changes when func is called again: it is that of the last call then."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        if late or self.function.form == "plain":               # whose backward gets the inputs
            return
        first = dict(self.cases(self.given, back, dys, values, passes.Faults()))
        rng = self.rng("shared state")
        try:
            self.function([points.away(x, rng) if is_float(x) else x for x in self.start])
        except Exception:                                       # func is not defined there
            return
        for i, case in self.cases(self.given, back, dys, values, passes.Faults()):
            name = self.function.names[i]
            if not self.faults.of(name) and passes.differ(first[i].dx, case.dx, self.eps):
                self.note(f"back gives another gradient of {name} once {self.function.name} was called again: let each "
                          f"call keep what its own back needs")

    def require_linear(self, back: Callable, drawn: tuple, values: Values) -> None:
        """back(0) is 0, and the gradients of several outputs together are the sum of those of each."""
        names = self.function.names
        for i, case in self.cases(self.given, back, tuple(np.zeros_like(d) for d in drawn), values, passes.Faults()):
            if np.where(np.isfinite(case.dx), case.dx, 0).any():            # 0 times infinity is NaN
                self.faults.add("not linear in dy", f"the gradient of {names[i]} for dy = 0 is not 0; let every term "
                                                    f"of it be a multiple of dy", names[i])
        if len(drawn) == 1:
            return
        for i, case in self.cases(self.given, back, drawn, values, passes.Faults()):
            wrong = low.by_integral(self, case, self.given).status == "wrong" if self.alone else \
                (compared := judge.in_time(case, self.deadline)[0]) is not None and compared.wrong
            alone_wrong = any(found.rank[0] for key in self.found if key[0] == names[i] for found in self.found[key])
            if wrong and not alone_wrong:
                self.faults.add("outputs not added", f"the gradient of {names[i]} is right for each output alone, but "
                                                     f"not for all together; add up what each contributes", names[i])

    def keywords(self) -> dict[str, Any]:
        """The keywords of gradcheck that give the same verdicts."""
        return self.options.set_by_user()

    def replay(self) -> str:
        words = {} if self.function.foreign else self.function.keywords         # jvp is the library's
        words = words | self.keywords() | ({} if self.options.budget == BUDGET else {"budget": self.options.budget})
        options = [f"{name}={of_callable(value, name)[1] if callable(value) else repr(value)}"
                   for name, value in words.items()]
        return f"gradcheck({', '.join([self.function.name, 'inputs', *options, f'seed={self.seed}'])})"


def aside(x: Any, rng: np.random.Generator) -> Any:
    """The array, or random numbers close to it."""
    return np.asarray(x + ASIDE * direction(x, rng), x.dtype) if is_float(x) else x
