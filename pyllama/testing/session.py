"""One run of gradcheck: every pair of a leaf and an output, judged at every point."""
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllama.testing import judge, passes, points
from pyllama.testing.calls import Function
from pyllama.testing.compare import direction
from pyllama.testing.points import GIVEN, Point
from pyllama.testing.report import Pair, Report, Verdict
from pyllama.testing.trees import is_float

BESIDE = 10                                 # points beside the given one, if a pair is judged nowhere
ASIDE = 1e-2                                # how far those are, relative to the inputs


class Session:
    """One run of gradcheck over the points of one function."""

    def __init__(self, function: Function, seed: int, budget: float | None, nondet_tol: float = 0.0):
        self.function, self.seed, self.nondet_tol = function, seed, nondet_tol
        self.deadline = time.monotonic() + budget if budget is not None else None
        self.faults = passes.Faults()
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self.verdicts: dict[tuple[str, str], list[tuple[str, Verdict]]] = {}
        self.floats = [i for i, x in enumerate(function.leaves) if is_float(x)]
        if not self.floats:
            raise TypeError("no input is floating, so there is no gradient to check; convert one, such as "
                            "x.astype(float)")
        self.precisions = frozenset(function.leaves[i].dtype for i in self.floats)            # type: ignore[union-attr]
        self.start = self.in_precision()

    def rng(self, *key: Any) -> np.random.Generator:
        """A generator for this purpose, whatever else was drawn or skipped."""
        return np.random.default_rng([self.seed, zlib.crc32(repr(key).encode())])

    def in_precision(self) -> list:
        """The leaves in float64, or as given if func accepts only these."""
        given = self.function.leaves
        wide = [x.astype(np.float64) if x is not None and is_float(x) else x for x in given]
        if self.precisions == {np.dtype(np.float64)}:
            return given
        try:
            self.function([x if x is None else x.copy() for x in wide])
        except Exception:
            return given
        return wide

    def report(self) -> Report:
        self.at(Point(GIVEN, self.start), first=True)
        self.other_points()
        for k in range(BESIDE):
            if all(self.judged(key) for key in self.verdicts):
                break
            rng = self.rng("beside", k)
            self.at(Point(f"beside {k}", [aside(x, rng) for x in self.start]))
        pairs = [self.pair(key, found) for key, found in self.verdicts.items()]
        pairs.sort(key=lambda pair: (pair.wrong, pair.worst.severity))
        return Report(self.function.name, tuple(pairs), tuple(self.faults.values()), tuple(self.notes),
                      tuple(self.skipped), self.seed)

    def points(self) -> Iterator[Point]:
        """The points but for the one that is given."""
        yield Point("another dy", self.start)
        yield from points.layout_points(self.start)
        yield from points.value_points(self.start, self.rng("values"))

    def judged(self, key) -> bool:
        return any(verdict.status != "undecided" for _, verdict in self.verdicts[key])

    def other_points(self) -> None:
        """Every other point, as long as there is time."""
        for point in self.points():
            if self.deadline is not None and time.monotonic() > self.deadline:
                self.skipped.append(f"the point {point.name!r}")
                continue
            try:
                self.at(point)
            except (KeyboardInterrupt, SystemExit):
                raise
            except Exception as error:
                self.notes.append(f"{point.name} was left out: {error}")

    def at(self, point: Point, first: bool = False) -> None:
        """Judge every pair at this point."""
        leaves = point.leaves
        outputs, back = passes.forward(self.function, leaves, self.faults)
        if first:
            passes.require_same_again(self.function, leaves, outputs, self.nondet_tol, self.faults)
        rng = self.rng("dy", point.name if not point.same else GIVEN)
        drawn = [draw(a, rng) for a in outputs]
        for j, d in enumerate(drawn):
            if not is_float(outputs[j]):
                continue
            dys = tuple(points.laid_out(point.layout, d) if k == j and point.layout else d if k == j else
                        np.zeros_like(d) for k, d in enumerate(drawn))
            output = f"output {j}" if len(drawn) > 1 else "y"
            grads = passes.gradients(self.function, back, dys, outputs, leaves, self.precisions, self.faults, first)
            for i in self.floats:
                key = self.function.names[i], output
                if grads[i] is not None:
                    self.verdicts.setdefault(key, []).append((point.name, self.judge(point, i, grads[i], dys,
                                                                                     outputs)))

    def judge(self, point: Point, i: int, dx: np.ndarray, dys: tuple, outputs: tuple) -> Verdict:
        v = direction(point.leaves[i], self.rng("v", point.name, i))
        line = judge.Line(self.function, point.leaves, i, v, sum(a.size for a in outputs))

        def gradient_at(leaves):
            near, back = passes.forward(self.function, leaves, self.faults)
            return passes.gradients(self.function, back, dys, near, leaves, self.precisions, self.faults)[i]

        found = judge.along_a_direction(self.function, line, dx, passes.flat(dys), outputs, gradient_at)
        return found or Verdict("differences", "undecided",
                                why="the function has a kink or a jump there, or its noise hides its slope")

    def pair(self, key: tuple[str, str], found: list) -> Pair:
        worst: dict[str, tuple[str, Verdict]] = {}
        for where, verdict in found:
            if verdict.method not in worst or rank(verdict) > rank(worst[verdict.method][1]):
                worst[verdict.method] = where, verdict
        ordered = sorted(worst.values(), key=lambda entry: rank(entry[1]), reverse=True)
        return Pair(*key, tuple(verdict for _, verdict in ordered), ordered[0][0])


def rank(verdict: Verdict) -> tuple:
    return verdict.status == "wrong", verdict.status != "undecided", verdict.severity


def draw(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random dy for the output a, 0 where a is infinite or integer."""
    if not is_float(a):
        return np.zeros(a.shape)
    return np.asarray(np.where(np.isfinite(a), rng.standard_normal(a.shape), 0.0)).astype(a.dtype)


def aside(x: Any, rng: np.random.Generator) -> Any:
    """The array, or random numbers close to it."""
    return np.asarray(x + ASIDE * direction(x, rng), x.dtype) if is_float(x) else x
