"""Judge one gradient: of one output with respect to one leaf, at one point, by each of the methods."""
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing.calls import Function, OutOfTime
from pyllama.testing.methods import compare as comparing
from pyllama.testing.methods import slopes
from pyllama.testing.methods.compare import VAGUE, Comparison, blur, compare, direction, entrywise, inner, norm
from pyllama.testing.methods.entries import Entries, entries
from pyllama.testing.passes import eps_of, flat
from pyllama.testing.report import Verdict
from pyllama.testing.trees import is_float

SHAKE = 1e-6                                # between neighbors that differ in their rounding errors
ROW = 1e-2                                  # between neighbors in a row: 1 + tanh(x) changes by a fifth, at x = -10
ENTRIES = 64                                # that are measured one by one, if nothing is wrong
MOST = 1024                                 # otherwise
NOISE = "the function has a kink or a jump there, or its noise hides its slope"


class Line:
    """All outputs of f, end to end [M], at leaves whose number `place` is moved by t v: line(t).

    Each t is computed once.  Where f refuses a real t, or returns another number of outputs, they are NaN.  For a
    complex t all floating leaves are complex, since f may add them to one another in place; or one, if f refuses that.
    """

    def __init__(self, function: Function, leaves: list, place: int, v: np.ndarray, size: int):
        self.function, self.leaves, self.place, self.v, self.size = function, leaves, place, v, size
        self.known: dict[complex, np.ndarray] = {}
        self.deadline: float | None = None              # after it only complex steps are computed

    def __call__(self, t: complex) -> np.ndarray:
        if t not in self.known:
            if self.deadline is not None and not np.iscomplexobj(t) and time.monotonic() > self.deadline:
                raise OutOfTime
            self.known[t] = self.computed(t)
        return self.known[t]

    def computed(self, t: complex) -> np.ndarray:
        x = self.leaves[self.place]
        dtype = np.result_type(x.dtype, np.complex64) if np.iscomplexobj(t) else x.dtype
        here = np.asarray(x + t * self.v).astype(dtype)
        try:
            outputs = self.called(here, np.iscomplexobj(t))
        except Exception:
            outputs = self.called(here) if np.iscomplexobj(t) else np.empty(0)
        if outputs.shape != (self.size,):
            return np.full(self.size, np.nan)
        return outputs.astype(np.result_type(outputs, float))

    def called(self, here: np.ndarray, all_complex: bool = False) -> np.ndarray:
        """The outputs with `here` in the place of the leaf."""
        self.function.require_time()
        moved = [x if x is None else x.astype(np.result_type(x, np.complex64)) if all_complex and is_float(x) else
                 np.array(x) for x in self.leaves]
        moved[self.place] = here
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            return flat(self.function.values(moved))


class Values:
    """f near one set of leaves: a random direction for each of them, and the outputs along it.

    function    the function
    leaves      the leaves, dense in memory
    outputs     f(leaves)
    rng         rng(place) is the generator of the direction of a leaf
    """

    def __init__(self, function: Function, leaves: list, outputs: tuple, rng: Callable):
        self.function, self.leaves, self.outputs, self.rng = function, leaves, outputs, rng
        self.size = sum(a.size for a in outputs)
        self.lines: dict[int, Line] = {}

    def line(self, place: int) -> Line:
        """The outputs along the leaf's random direction."""
        if place not in self.lines:
            self.lines[place] = self.along(place, direction(self.leaves[place], self.rng(place)))
        return self.lines[place]

    def rounding_explains(self, outputs: tuple) -> bool:
        """Do other outputs at these leaves differ by no more than those right beside them, or by a rounding of 1?

        SIMD rounds the exponential in exp(x) - 1 differently where memory is contiguous.  A function that misreads
        memory takes one number for another, which changes y as much as another order of the numbers does.
        """
        with np.errstate(all="ignore"):
            here = flat(self.outputs)
            off = np.nanmax(np.abs(flat(outputs) - here), initial=0)
            near = [np.abs(flat(self.function.values(near_by(self.leaves, k))) - here) for k in range(3)]
            if off <= 2 * np.nanmax(near, initial=0):
                return True
            eps = max((eps_of(a.dtype) for a in self.outputs if is_float(a)), default=0.0)
            changed = self.reordered()
            return bool(off <= slopes.grain(here, eps, 1.0) and (changed == 0 or off <= VAGUE * changed))

    def reordered(self) -> float:
        """By how much the outputs change if the numbers of each leaf come in reverse order; NaN if f refuses them."""
        reverse = [np.ascontiguousarray(np.flip(x)) if is_float(x) else x for x in self.leaves]
        try:
            return float(np.nanmax(np.abs(flat(self.function.values(reverse)) - flat(self.outputs)), initial=0))
        except Exception:
            return np.nan

    def along(self, place: int, v: np.ndarray) -> Line:
        return Line(self.function, self.leaves, place, v, self.size)

    def entry(self, place: int) -> Callable:
        """along(index, t): the outputs with t added to one entry of the leaf."""
        def along(index, t):
            v = np.zeros(self.leaves[place].shape)
            v[index] = 1.0
            return self.along(place, v).computed(t)
        return along


class Case(NamedTuple):
    """The gradient of the weighted outputs <dy, f> with respect to one leaf.

    values          f near the leaves
    place           the number of the leaf
    dx              its gradient, as back returned it
    dys             the weights of the outputs
    gradient_at     gradient_at(leaves, dys) is dx at other leaves and for other weights
    """
    values: Values
    place: int
    dx: np.ndarray
    dys: tuple
    gradient_at: Callable

    @property
    def dy(self) -> np.ndarray:
        """The weights of all outputs, end to end [M]."""
        return flat(self.dys)

    @property
    def x(self) -> np.ndarray:
        return self.values.leaves[self.place]

    @property
    def largest(self) -> float:
        """The size of the largest number of the leaf."""
        return float(np.abs(self.x[np.isfinite(self.x)]).max(initial=0))

    @property
    def eps(self) -> float:
        """Of the coarsest precision that takes part."""
        return max(eps_of(a.dtype) for a in (self.dx, np.zeros(1), *self.values.outputs) if is_float(a))


def shaken(x: Any, rng: np.random.Generator) -> Any:
    """The array with other rounding errors, in float32 or float64."""
    return np.asarray(x * (1 + SHAKE * rng.standard_normal(x.shape)), x.dtype) if is_float(x) else x


def near_by(leaves: list, k: int) -> list:
    """Leaves right beside these, others for each k; from NEIGHBORS on in a row, ever more distant."""
    if k < comparing.NEIGHBORS:
        rng = np.random.default_rng(k)
        return [shaken(x, rng) for x in leaves]
    rng, far = np.random.default_rng(comparing.NEIGHBORS), (k - comparing.NEIGHBORS + 1) * ROW
    return [np.asarray(x * (1 + far * rng.choice([-1, 1], x.shape)), x.dtype) if is_float(x) else x for x in leaves]


def inequality(claimed: float, measured: float, error: float, tolerance: float) -> str:
    """The comparison in numbers: what back claims, what f does, and what the tolerance applies to."""
    sign = "≤" if error <= tolerance else ">"
    return f"back says {claimed:.9g}, f does {measured:.9g}; |difference| {error:.2g} {sign} {tolerance:.2g}"


# --- the methods ------------------------------------------------------------------------------------------------------

def by_direction(case: Case, line: Line | None = None) -> Comparison | None:
    """Compare <dx, v> with <dy, J v>; None if f has a kink there, or its noise hides its slope."""
    line = line or case.values.line(case.place)

    def neighbor(k):
        near = near_by(case.values.leaves, k)
        return case.gradient_at(near, case.dys), Line(line.function, near, line.place, line.v, line.size)

    return compare("", line, case.dx, line.v, case.dy, case.values.outputs, neighbor, case.largest)


def in_time(case: Case, deadline: float | None) -> tuple[Comparison | None, bool]:
    """(by_direction(), true); after the deadline (what a complex step alone says, false) if that confirms dx."""
    line = case.values.line(case.place)
    line.deadline = deadline
    try:
        return by_direction(case), True
    except OutOfTime:
        exact = slopes.imaginary(line, slopes.step(case.eps))
    finally:
        line.deadline = None
    if exact is not None:
        terms = case.dy * exact
        slope, claimed = float(terms.sum()), inner(case.dx, line.v)
        size = max(float(np.abs(terms).sum()), float(np.abs(case.dx * line.v).sum(dtype=float)))
        if abs(slope - claimed) <= slopes.EXACT * size and case.dx.any():
            error = abs(slope - claimed) / size
            return Comparison("", slope, claimed, error, slopes.EXACT, "complex step"), False
    return by_direction(case), True


def verdict_of(found: Comparison) -> Verdict:
    """A comparison, whose error and tolerance are relative, as a verdict, where they are absolute."""
    gap = abs(found.slope - found.claimed)
    size = gap / found.error if found.error else max(abs(found.slope), abs(found.claimed))
    tolerance = found.tolerance * (size if np.isfinite(size) else 1.0)
    why = f"along a random direction v {inequality(found.claimed, found.slope, gap, tolerance)}"
    return Verdict(found.method, "wrong" if found.wrong else "passed", found.claimed, found.slope, gap, tolerance, why)


def has_kink(case: Case) -> bool:
    """Do the slopes of an output that counts differ between both sides, along the random direction?"""
    with np.errstate(all="ignore"):
        return bool((slopes.slopes(case.values.line(case.place), case.eps, case.largest).kink & (case.dy != 0)).any())


def by_subgradients(case: Case, rng: np.random.Generator | None) -> Verdict:
    """At a kink: <dx, v> must lie between the slopes of both sides, along several directions v; None: the line's."""
    from pyllama.testing.methods import kinks
    lines = [case.values.line(case.place)]
    lines += [case.values.along(case.place, v) for v in (kinks.directions(case.x, rng) if rng else ())]
    return max((by_sides(case, line) for line in lines), key=rank)


def by_sides(case: Case, line: Line) -> Verdict:
    """<dx, v> must lie between the slopes of both sides, unless all of these may be rounding."""
    from pyllama.testing.methods import kinks
    verdict = kinks.verdict(line, case.dy, inner(case.dx, line.v), case.eps, blur(case.dx, line.v, case.eps),
                            case.largest)
    steep = max(abs(verdict.claimed), abs(verdict.measured))
    if verdict.status == "wrong" and steep <= comparing.floor_of(line, case.dy, comparing.unit_of(line.v)):
        return replace(verdict, status="undecided", why=NOISE)
    return verdict


def by_order(case: Case) -> Verdict:
    """The order of the Taylor remainder along the random direction."""
    line, found = case.values.line(case.place), by_direction(case)
    unit, rounding = comparing.unit_of(line.v), found.rounding if found else blur(case.dx, line.v, case.eps)
    grain = norm(case.dy) * slopes.grain(line(0.0), case.eps, case.largest)
    verdict = order_of(case, line, rounding, grain)
    if verdict.status == "wrong":                           # unless larger numbers than 1 cancel in y
        inside = slopes.GRAIN * case.eps * norm(case.dy * slopes.inner(line, unit, case.eps))
        verdict = order_of(case, line, rounding, max(grain, inside))
    if verdict.status == "undecided" and case.eps > 2.0 ** -52 and 0 < unit < 1:
        verdict = order_of(case, line, rounding, grain, 1 / unit)       # steps far above the rounding of float32
    size = weight(case)
    least = case.eps * norm(case.dy) * norm(line.v)
    if verdict.status == "wrong" and size == 0 and verdict.error <= least:          # terms of this size may cancel
        return replace(verdict, status="undecided", why="y is 0, and its changes are those of rounding")
    return verdict


def weight(case: Case) -> float:
    """The sum of |dy y|, whose rounding <dy, y> contains."""
    counted = case.dy != 0
    return float(np.abs(case.dy[counted] * flat(case.values.outputs)[counted]).sum())


def order_of(case: Case, line: Line, rounding: float, grain: float, times: float = 1.0) -> Verdict:
    """The order of the Taylor remainder along the line, whose steps are so many times as wide."""
    from pyllama.testing.methods.order import order
    counted = case.dy != 0

    def phi(t):
        return float((case.dy[counted] * line(t * times)[counted]).sum())

    found = order(phi, times * inner(case.dx, line.v), case.eps, weight(case), blur=times * rounding, grain=grain)
    return replace(found, claimed=found.claimed / times, measured=found.measured / times, error=found.error / times,
                   tolerance=found.tolerance / times)


def by_entries(case: Case, which: Iterable, deadline: float | None) -> tuple[Verdict, tuple[int, ...] | None, bool]:
    """The verdict on the entry that is most off, its index, and whether there was no time for other entries."""
    def again(k, index):
        near = near_by(case.values.leaves, k)
        values = Values(case.values.function, near, case.values.outputs, case.values.rng)
        moved = case._replace(values=values, dx=case.gradient_at(near, case.dys))
        return moved.dx[index], measured(moved, [index], None).value[index]

    def floor_at(index):
        along, unit = case.values.entry(case.place), abs(case.x[index]) or case.largest or 1.0
        return comparing.floor_of(lambda t: along(index, t * unit), case.dy, unit) / unit

    found = measured(case, which, deadline)
    verdict, index = entrywise(found, case.dx, case.eps, again, floor_at)
    sizes = np.abs(case.dx, dtype=float)
    if verdict.status == "passed" and verdict.tolerance > VAGUE * max(sizes.max(initial=0), abs(verdict.measured)) > 0:
        return Verdict(verdict.method, "undecided", why=NOISE), None, found.stopped
    if index is not None:
        numbers = inequality(verdict.claimed, verdict.measured, verdict.error, verdict.tolerance)
        verdict = replace(verdict, why=f"at entry {list(index)} {numbers}")
    return verdict, index, found.stopped


def measured(case: Case, which: Iterable | None, deadline: float | None) -> Entries:
    """The derivative of single entries."""
    return entries(case.values.entry(case.place), case.dy, case.x, case.eps, which, deadline)


def beside_one(case: Case, verdict: Verdict, index: tuple[int, ...] | None = None) -> Verdict:
    """The verdict; but undecided if one side, or y, is 0 and the other may be the rounding of numbers of size one.

    An example is 1 - σ(x) at x = 40.  The inputs must be of ordinary size, because tiny ones may be the only numbers in
    f.  And the outputs must change by such roundings, not by less.
    """
    ordinary = 1 / comparing.ORDINARY <= case.largest <= comparing.ORDINARY
    if verdict.status != "wrong" or not ordinary:
        return verdict
    line = case.values.line(case.place)
    y, width = float(np.abs(case.dy * flat(case.values.outputs)).sum()), slopes.WIDTHS[0]

    def may_be_rounding(dy):
        least = slopes.GRAIN * case.eps * norm(dy) * norm(np.ones(1) if index else line.v)
        none = min(abs(verdict.claimed), abs(verdict.measured)) == 0 or y <= least / width
        return none and verdict.error * width <= least

    if may_be_rounding(case.dy) and may_be_rounding(case.dy[~changes_finely(line, case.eps)]):
        return replace(verdict, status="undecided", why="no more than rounding beside numbers of size one")
    return verdict


def changes_finely(line: Line, eps: float) -> np.ndarray:
    """Which outputs [M] change by less than a rounding of one, but change?"""
    changes = np.abs([line(t) - line(0.0) for h in slopes.WIDTHS[slopes.NARROW] for t in (h, -h)])
    return np.asarray(((changes > 0) & (changes < eps / 4)).any(axis=0))


def rank(verdict: Verdict) -> tuple:
    """The higher, the worse."""
    return verdict.status == "wrong", verdict.status != "undecided", verdict.severity


def by_jvp(case: Case, tangent: Callable) -> Verdict:
    """The dot-product identity <dx, v> = <dy, J v>, where tangent(place, v) is J v [M] by the user's own jvp."""
    v = case.values.line(case.place).v
    terms = case.dy * tangent(case.place, v)
    claimed, measured = inner(case.dx, v), float(terms.sum())
    size = max(np.abs(terms).sum(), np.abs(case.dx * v).sum(dtype=float))
    error, tolerance = abs(claimed - measured), float(max(slopes.EXACT, 64 * case.eps) * size)
    why = f"of jvp and back, one is not the transpose of the other: {inequality(claimed, measured, error, tolerance)}"
    return Verdict("dot product", "passed" if error <= tolerance else "wrong", claimed, measured, error, tolerance,
                   "" if error <= tolerance else why)


def index_of(number: Any, a: np.ndarray) -> tuple[int, ...]:
    """The index of the entry with this number in C order."""
    return tuple(int(i) for i in np.unravel_index(number, a.shape))


def by_plain_differences(case: Case, which: list, eps: float, atol: float, rtol: float) -> tuple[Verdict, tuple]:
    """torch's rule, entry by entry: |a − n| ≤ atol + rtol |n|, where n is a central difference of width eps."""
    along = case.values.entry(case.place)
    worst = None
    for index in which:
        n = float((case.dy * (along(index, eps) - along(index, -eps))).sum()) / (2 * eps)
        a = float(case.dx[index])
        error, tolerance = abs(a - n), atol + rtol * abs(n)
        ratio = error / tolerance if tolerance else np.inf if error else 0.0
        if worst is None or not ratio <= worst[0]:
            worst = ratio, index, a, n, error, tolerance
    if worst is None:
        return Verdict("differences", "undecided", why="the input is empty"), ()
    _, index, a, n, error, tolerance = worst
    why = (f"at entry {list(index)} {inequality(a, n, error, tolerance)} = atol + rtol |n|, as you set them, for a "
           f"central difference of width {eps:g}")
    return Verdict("differences", "passed" if error <= tolerance else "wrong", a, n, error, tolerance, why), index
