"""The derivative of <dy, f> with respect to each entry of an input, with a bound of its error for each.

A complex step is exact and takes one evaluation, where f is holomorphic.  Other entries are measured by extrapolated
differences (slopes.py).  No step fits all entries, so each has its own:

(a) It is relative to the entry: 1e-30 and 1e30 are moved alike.  An entry of 0 moves as far as the others do.
(b) It stays in the domain: on the same side of 0 and, if the whole array lies in [0, 1], within that.  Where f raises
    or returns NaN or infinity, narrower steps are taken; at the border itself, steps to one side.
(c) What a much smaller entry does may drown in what the others do.  Then it makes their steps, away from 0.
"""
import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from pyllama.testing.calls import OutOfTime
from pyllama.testing.methods import kinks, slopes
from pyllama.testing.methods.slopes import CHAIN, EXACT, WIDTHS, bound

PRECISE = 1e-6                              # relative error of a complex step's confirmation, and of quick differences:
                                            # √eps would be 1e-8, and four widths of a tame function reach 1e-7
LEAST = 1e-290                              # imaginary steps, so that no quotient is subnormal
BESIDE = WIDTHS[slopes.KINK][0]             # a small step, 2e-5 of an entry, that is far above rounding
NEAR = WIDTHS[-1]                           # of a scale: other widths, where the usual ones are too wide
HALFWAY = 0.5                               # in [0, 1]: the border at 1 is nearer than that at 0
GRAIN = 16                                  # roundings of an output: less than that does not show
SMALL = 1e-260                              # numbers whose imaginary parts, for the usual step, are subnormal
WIDEST = WIDTHS[slopes.FIRST][0]            # a step, 1 % of an entry, that shows whether an output moves
WIDE = 1e-9                                 # their step: its square is still lost
DROWNED = 1e-3                              # of the typical entry: smaller ones make its steps, too


class Entries(NamedTuple):
    """The derivatives, arrays of x.shape; NaN where nothing was measured.

    value         of <dy, f> with respect to each entry; at a kink, the middle between those on both sides
    error         how far it may be off; at a kink, as far as those on both sides
    kink          is there a kink at this entry?
    holomorphic   were they measured by a complex step?
    stopped       was there no time for some?
    """
    value: np.ndarray
    error: np.ndarray
    kink: np.ndarray
    holomorphic: bool
    stopped: bool = False


def entries(along: Callable, dy: np.ndarray, x: np.ndarray, eps: float = 2.0 ** -52,
            which: Iterable[tuple[int, ...]] | None = None, deadline: float | None = None) -> Entries:
    """Measure the derivative of <dy, f> entry by entry.

    along      along(index, t) is the outputs [M] with t, real or complex, added to x[index]; it may raise
    dy         the weights [M] of the outputs
    eps        of the precision in which f computes
    which      the indices to measure; None: all.  Infinite entries are left out
    deadline   of time.monotonic(), after which no further entry is measured; None: there is time for all

    >>> import numpy as np
    >>> from pyllama.testing.methods.entries import entries
    >>> x = np.array([1e-30, 3.0, 1e30])
    >>> def along(index, t):
    ...     moved = x + 0 * t
    ...     moved[index] += t
    ...     return moved ** 2
    >>> (entries(along, np.ones(3), x).value / x).round(6)
    array([2., 2., 2.])
    """
    indices = [i for i in (np.ndindex(x.shape) if which is None else which) if np.isfinite(x[i])]
    meter = Meter(along, dy, x, eps, deadline)
    with np.errstate(all="ignore"):
        holomorphic = meter.by_complex_steps(indices)
        if not holomorphic:
            meter.forget()
            meter.by_differences(indices)
    return Entries(meter.value, meter.error, meter.kink, holomorphic, meter.stopped)


class Meter:
    """Measures entries one after the other."""

    def __init__(self, along, dy, x, eps, deadline):
        self.along, self.x, self.eps, self.deadline = along, x, eps, deadline
        self.counted = np.asarray(dy) != 0
        self.dy = np.asarray(dy, float)[self.counted]
        self.here: np.ndarray | None = None                         # the outputs that count, at x
        finite = np.abs(x[np.isfinite(x)], dtype=float)
        self.typical = float(np.median(finite[finite > 0])) if finite.any() else 1.0
        self.size, self.stopped = float(finite.max(initial=0)), False
        self.unit = bool(finite.size) and bool(((x >= 0) & (x <= 1)).all())
        self.forget()

    def forget(self):
        self.value, self.error = np.full(self.x.shape, np.nan), np.full(self.x.shape, np.nan)
        self.kink = np.zeros(self.x.shape, bool)

    def late(self) -> bool:
        self.stopped |= self.deadline is not None and time.monotonic() >= self.deadline
        return self.stopped

    def line(self, index, scale) -> Callable:
        """The outputs that count, when x[index] is moved by t scales."""
        @functools.cache
        def along(t):
            if t == 0.0 and self.here is not None:
                return self.here
            try:
                return np.asarray(self.along(index, t * scale))[self.counted]
            except Exception:
                if isinstance(t, complex):
                    raise
                return np.full(len(self.dy), np.nan)
        self.here = along(0.0)
        return along

    def moves(self, index) -> tuple[float, ...]:
        """Steps, in scales of the entry, that make quite another number of it."""
        x, scale = float(self.x[index]), abs(self.x[index]) or self.typical
        return -2 * x / scale, slopes.FAR * self.typical / scale, -slopes.FAR * self.typical / scale

    def far(self, along, index) -> np.ndarray:
        """How much each output changes far from the entry, where f is defined there."""
        changes = np.abs([np.real(along(t)) - np.real(along(0.0)) for t in self.moves(index)])
        beside = np.where(np.isfinite(changes), changes, 0).max(axis=0)
        return np.fmax(beside, slopes.inner(along, abs(self.x[index]) or self.typical, self.eps))

    def alike(self, along, index, exact) -> np.ndarray:
        """Which outputs have slopes of the same size far from the entry?  Others may be saturated here."""
        step, scale = slopes.step(self.eps), abs(self.x[index]) or self.typical
        there = np.abs([np.imag(along(t + 1j * step)) / step / scale for t in self.moves(index)])
        return ((there <= slopes.ALIKE * np.abs(exact)) & (there >= np.abs(exact) / slopes.ALIKE)).all(axis=0)

    def rounding(self, along, index, exact=0) -> float:
        """What a rounding of the outputs that move would be as a slope: nothing smaller is a fault.

        Only numbers that the entry takes part in count: a large sum has other terms, too.
        """
        here = along(0.0)
        stays = (along(BESIDE) == here) & (along(-BESIDE) == here)
        moved = ~stays | (exact != 0)
        if not moved.any() and self.eps > 2.0 ** -52 and \
                (np.abs(along(WIDTHS[0]) - here) <= CHAIN * self.eps * np.abs(here)).all():
            return np.inf                                           # of an inner number, which may be larger than y
        size, distance = np.abs(here), max(abs(self.x[index]), self.typical)
        change = WIDEST * (abs(self.x[index]) or self.typical) * np.abs(exact)
        hidden = (change > GRAIN * self.eps * np.abs(here)) & stays     # beside an inner number larger than y
        hidden &= bool(hidden.any()) and still(along, 0)
        vague = CHAIN * self.eps * np.abs(here) > PRECISE * distance * np.abs(exact)
        if self.eps <= 2.0 ** -52 and ((hidden | vague) & (exact != 0)).any():
            far = self.far(along, index)
            size = np.where(self.alike(along, index, exact), np.fmin(size, far), size)
            size = np.where(hidden, np.fmax(size, far), size)
        size = np.abs(self.dy * size)[moved if moved.any() else slice(None)].sum()
        return CHAIN * self.eps * float(size) / distance

    def suspicious(self, along, exact) -> bool:
        """May f have a kink here, or have lost an imaginary part?  Both show in two small real steps."""
        ahead, behind = along(BESIDE) - along(0.0), along(-BESIDE) - along(0.0)
        dropped = (exact == 0) & (np.abs(ahead - behind) > self.noise(along))
        return self.bent(along, BESIDE) or bool(dropped.any())

    def bent(self, along, step) -> bool:
        """Do the changes on both sides differ, as at a kink, a jump or an extremum, or where f oscillates?"""
        ahead, behind = along(step) - along(0.0), along(-step) - along(0.0)
        return bool((np.abs(ahead + behind) > 0.01 * (np.abs(ahead) + np.abs(behind)) + self.noise(along)).any())

    def noise(self, along) -> np.ndarray:
        return GRAIN * self.eps * np.abs(along(0.0))

    # --- complex steps ------------------------------------------------------------------------------------------------

    def by_complex_steps(self, indices) -> bool:
        """Measure by complex steps; false if differences contradict one of them, or confirm none."""
        doubtful = []
        for index in indices:
            if self.late():
                break
            exact, along = self.imaginary(index), self.line(index, abs(self.x[index]) or self.typical)
            if exact is None or not np.isfinite(exact).all():
                return False
            terms = self.dy * exact
            self.value[index] = terms.sum()
            self.error[index] = EXACT * np.abs(terms).sum() + self.rounding(along, index, exact)
            if not self.x[index]:                                   # a complex step has no scale there, so try two
                self.error[index] += np.abs(self.dy * (self.imaginary(index, 8.0) - exact)).sum()
            if not self.x[index] or self.suspicious(along, exact):
                doubtful.append(index)
        asked, verdicts = [*dict.fromkeys([*self.extremes(indices), *doubtful])], []
        with contextlib.suppress(OutOfTime):
            for index in asked:
                verdicts.append(self.confirmed(index))
        for index in asked[len(verdicts):]:                         # there was no time to confirm them
            self.value[index], self.error[index], self.stopped = np.nan, np.nan, True
        return False not in verdicts and (True in verdicts or not indices)

    def imaginary(self, index, times=1.0) -> np.ndarray | None:
        """The derivatives of the outputs by one complex step, relative to the entry."""
        scale = abs(self.x[index]) or self.typical
        step = max(times * slopes.step(self.eps), min(LEAST / scale, 1e-9))     # its square is lost in rounding
        along = self.line(index, scale)
        exact = slopes.imaginary(along, step)
        if exact is None:
            return None
        here, wide = np.abs(along(0.0)), None
        if (((here < SMALL) & (here > 0)) | ((exact != 0) & (np.abs(exact) < SMALL))).any():
            wide = slopes.imaginary(along, max(step, WIDE))         # so that the imaginary parts are normal
        return (exact if wide is None else np.where(np.abs(exact) < SMALL, wide, exact)) / scale

    def extremes(self, indices):
        """The entries of largest derivative and effect, the largest and the smallest one."""
        done = [i for i in indices if np.isfinite(self.value[i])]
        x, value = self.x, self.value
        by = (lambda i: abs(value[i]), lambda i: abs(value[i] * x[i]), lambda i: x[i], lambda i: -x[i])
        return [max(done, key=key) for key in by if done]

    def confirmed(self, index) -> bool | None:
        """Do differences agree with the complex step?  None if they say nothing."""
        seen = self.without_lost(index)
        value, error, kink = seen.difference(index)
        exact = self.value[index] if seen is self else (seen.dy * seen.imaginary(index)).sum()
        if not np.isfinite(error):
            if self.error[index] > PRECISE * abs(self.value[index]):            # such as a root at 0
                self.value[index], self.error[index] = np.nan, np.nan
            return None
        if kink or not abs(value - exact) <= error + self.error[index]:
            return False
        return error <= PRECISE * abs(value) or value == self.value[index] == 0 or None

    def without_lost(self, index) -> "Meter":
        """A meter of the outputs whose change is not lost in their own rounding: differences say nothing of others."""
        scale = abs(self.x[index]) or self.typical
        along = self.line(index, scale)
        slope = self.imaginary(index)
        if slope is None:
            return self
        exact = scale * np.abs(slope)
        lost = (exact != 0) & still(along, np.fmax(exact * WIDEST, GRAIN * self.eps * np.abs(along(0.0))))
        lost &= exact * WIDEST <= GRAIN * self.eps * np.fmax(np.abs(along(0.0)), self.far(along, index))
        if not lost.any():
            return self
        weights = self.counted.astype(float)
        weights[self.counted] = np.where(lost, 0, self.dy)
        return Meter(self.along, weights, self.x, self.eps, self.deadline)

    # --- differences --------------------------------------------------------------------------------------------------

    def by_differences(self, indices):
        for index in indices:
            if self.late():
                return
            value, error, kink = self.difference(index)
            if np.isfinite(error) and (value or not self.hidden(index)):
                self.value[index], self.error[index], self.kink[index] = value, error, kink

    def hidden(self, index) -> bool:
        """Does a complex step see a slope that numbers of size one would hide, as 1 - cos(x) has at 1e-9?"""
        exact = self.imaginary(index)
        if exact is None or not np.isfinite(exact).all():
            return False
        moved = (abs(self.x[index]) or self.typical) * np.abs(exact)
        return bool(exact.any()) and bool((BESIDE * moved <= GRAIN * self.eps).all())

    def difference(self, index) -> tuple[float, float, bool]:
        """(value, error, kink) of one entry, by the steps that suit it best."""
        x = float(self.x[index])
        scale, inward = abs(x) or self.typical, -1.0 if x < 0 else 1.0
        if self.unit and x > HALFWAY:
            scale, inward = 1 - x or x, -1.0
        found = self.central(index, scale)
        if not np.isfinite(found[1]):                               # f is not defined on both sides, or only very near
            near = self.central(index, NEAR * scale)
            sides = [self.beside(index, scale, sign) for sign in (1.0, -1.0)]
            if not self.defined(index, scale):
                found = min(*sides, near, key=lambda one: one[1])
            elif near[1] <= slopes.UNSURE * abs(near[0]):                     # f oscillates fast
                sides = [side for side in sides if abs(side[0] - near[0]) <= side[1] + near[1]]
                lost = abs(near[0]) * self.eps / 4 * abs(x) / (NEAR * scale * WIDTHS[slopes.FIRST][-1])     # of x + t
                found = min((near[0], near[1] + lost, near[2]), *sides, key=lambda one: one[1])
            elif not all(np.isfinite(error) for _, error, _ in sides):
                return np.nan, np.inf, False                            # such as x log x at 0: its slope is infinite
            else:
                found = min(*sides, near, key=lambda one: one[1])
        if x and scale < DROWNED * self.typical and not found[1] <= PRECISE * abs(found[0]):
            found = min(found, self.beside(index, self.typical, inward), key=lambda one: one[1])
        return found

    def defined(self, index, scale) -> bool:
        """Is f defined on both sides of the entry?"""
        along = self.line(index, scale)
        return bool(np.isfinite(along(BESIDE)).all() and np.isfinite(along(-BESIDE)).all())

    def central(self, index, scale) -> tuple[float, float, bool]:
        along = self.line(index, scale)
        value, error, kink = slopes.differences(along, WIDTHS[slopes.FIRST], self.eps)
        slope, off = self.total(value, error)
        if kink.any() or not off <= PRECISE * abs(slope) or any(self.bent(along, step) for step in (BESIDE, NEAR)):
            value, error, kink = slopes.differences(along, WIDTHS, self.eps, self.size)
            if kink.any():
                low, high, error = kinks.sides(along, self.eps, kink, value, error, self.size)
                value, error = (low + high) / 2, error + (high - low) / 2
            slope, off = self.total(value, error, kink)
        silent = (value == 0) & (error == 0)
        if silent.any():                                             # does f depend on the entry, but rounds it away?
            far = self.far(along, index)
            lost = np.where(silent & (far != 0), 4 * self.eps * np.fmax(np.abs(along(0.0)), far) / WIDTHS[0], 0)
            off += self.total(value, lost)[1]
        return slope / scale, off / scale + self.rounding(along, index), bool(kink.any())

    def beside(self, index, scale, sign) -> tuple[float, float, bool]:
        along = self.line(index, scale)
        slope, off = self.total(*slopes.one_sided(along, sign, self.eps, self.size))
        return slope / scale, off / scale + self.rounding(along, index), False

    def total(self, value, error, kink=False) -> tuple[float, float]:
        """(slope, error) of <dy, f>: errors are independent, but the intervals of kinks add up."""
        terms, errors = self.dy * value, np.abs(self.dy) * error
        return float(terms.sum()), float(np.where(kink, errors, 0).sum()) + bound(np.where(kink, 0, errors))


def still(along, noise):
    """Does an output change by no more than this noise?"""
    here = along(0.0)
    return (np.abs(along(WIDEST) - here) <= noise) & (np.abs(along(-WIDEST) - here) <= noise)
