"""Does the remainder of a Taylor expansion with the claimed slope vanish as fast as it must?

    R(h) = φ(h) − φ(0) − h s,       φ(t) = <dy, f(x + t v)>,       s = <dx, v>

R is O(h²) if s is the slope of φ at 0, and (φ'(0) − s) h + O(h²) if it is not: order 2 is right, order 1 is wrong.  No
tolerance is involved (as in pyadjoint's taylor_test), but the order shows only in a range of h.  If h is too large, R
follows the next bend, kink or saturation of φ; if h is too small, R is rounding.  dolfinx-adjoint gave up its
third-order test because no fixed h lay in that range (PR #84).  So the range is looked for:

    D(h) = (φ(h) − φ(−h)) / 2           = φ'(0) h + O(h³) + rounding
    E(h) = (φ(h) + φ(−h)) / 2 − φ(0)    = O(h²) + rounding; O(h) at a kink

(a) Rounding.  D and E do not depend on s.  What does not fall with h as it must is rounding, so it is measured.  The
    largest of n samples is below a quarter of their bound with probability 4⁻ⁿ, so R is visible above FLOOR = 4 of it.
(b) Order.  It is that of |R(h)| + |R(−h)| at the narrow end of the visible range, over more than a decade.
(c) Kinks.  R(h) and −R(−h) must be of one sign and size: at a kink they differ, and both are of order 1.  And no
    narrower h may contradict: a kink inside the range makes R vanish at once when h gets below its distance.
"""
from collections.abc import Callable

import numpy as np

from pyllama.testing.methods.slopes import SHRINK, WIDTHS
from pyllama.testing.report import Verdict

FLOOR = 4
SPAN = 3                                            # widths that an order is measured over: 1.1 decades
NARROWER = WIDTHS[-1] / SHRINK ** np.arange(1, 12)  # to 2e-14: for functions that oscillate or bend close to x
BETWEEN = 1.4                                       # the mean, by factors, of the orders 1 and 2
STEADY = 0.1                                        # R/h of an order-1 remainder varies by less
STAIRS = 6                                          # widths, three decades, between a step that moves one entry by its
                                                    # last place, and one that moves each by many of these
VAGUE = 1e-2                                        # a resolution of fewer than two digits decides nothing


def order(phi: Callable[[float], float], claimed: float, eps: float = 2.0 ** -52, size: float = 0.0,
          kink: float = 0.0, blur: float = 0.0, grain: float = 0.0) -> Verdict:
    """The verdict of the Taylor remainder's order; "undecided", with the reason, where it has none.

    phi      phi(t) is <dy, f(x + t v)>; it may be NaN or raise where f is not defined
    claimed  <dx, v>, the slope of phi at 0 that back says
    eps      of the precision in which f computes
    size     the sum of |dy y|, whose rounding phi contains; |phi(0)| if that is larger
    kink     half of the interval of slopes, if f has kinks at x: see kinks.py
    blur     how far `claimed` may be off by rounding
    grain    changes of phi up to this may be rounding: then they are so at all widths, even where they do not show

    >>> import math
    >>> from pyllama.testing.methods.order import order
    >>> order(math.exp, 1.0).status, order(math.exp, 1.001).status
    ('passed', 'wrong')
    """
    here = value(phi, 0.0)
    if not np.isfinite(claimed):
        beside = all(np.isfinite(value(phi, h)) for h in (*WIDTHS[:1], *-WIDTHS[:1]))
        return Verdict("order", "wrong" if beside else "undecided", claimed, why=f"the gradient says {claimed}")
    if not np.isfinite(here):
        return Verdict("order", "undecided", claimed, why=f"f is {here} at the inputs")
    size, sides = max(size, abs(here)), np.empty((2, 0))
    for widths in (WIDTHS, NARROWER):
        added = [[value(phi, sign * h) - here for h in widths] for sign in (1, -1)]
        sides = np.append(sides, added, axis=1)
        h = np.append(WIDTHS, NARROWER)[:sides.shape[1]]
        with np.errstate(all="ignore"):
            verdict = Remainder(h, sides[0], sides[1], claimed, eps, size, kink + blur, grain).verdict()
        if verdict.status != "undecided":
            break
    return verdict


def value(phi, t) -> float:
    """phi(t), NaN where it is not defined."""
    try:
        with np.errstate(all="ignore"):
            return float(phi(t))
    except Exception:
        return float("nan")


class Remainder:
    """R at all widths, from wide to narrow, where f is defined on both sides."""

    def __init__(self, h, ahead, behind, claimed, eps, size, kink, grain=0.0):
        defined = np.isfinite(ahead) & np.isfinite(behind)
        near = slice(np.flatnonzero(~defined).max(initial=-1) + 1, None)
        self.h, self.odd, self.even = h[near], (ahead - behind)[near] / 2, (ahead + behind)[near] / 2
        self.claimed, self.kink, self.size, self.eps = claimed, kink, size, eps
        self.values = size + np.abs(self.odd) + np.abs(self.even)
        self.grain, seen = grain, noise(self.odd, self.even)
        seen = np.fmax(seen, min(grain, max(seen.max(initial=0), least_change(ahead[near], behind[near]))))
        self.floor = FLOOR * np.fmax(eps * self.values, seen)
        self.off = self.odd / self.h - claimed                          # φ'(0) − s, as each width shows it
        self.largest = np.abs(self.odd - self.h * claimed) + np.abs(self.even)
        self.resolved = (self.largest + self.floor) / self.h            # no larger slope error fits the width

    def verdict(self) -> Verdict:
        if len(self.h) < SPAN:
            return self.undecided("f is not defined on both sides of the inputs")
        moved = (self.odd != 0) | (self.even != 0)
        if not moved.any():
            return self.of_a_constant()
        if not self.claimed and not moved[-1]:
            return self.undecided("f is a staircase, and its slope is zero on each stair")
        for times in (1 / STEADY, 1):                                   # first where rounding is small beside R
            visible = self.largest > times * self.floor
            last = int(np.flatnonzero(visible).max(initial=-1))
            run = slice(max(last + 1 - SPAN, 0), last + 1)
            if last + 1 < SPAN or not visible[run].all():
                fall = f"the remainder is rounding below h = {self.h[max(last, 0)]:.0e}"
                continue
            p = np.log(self.largest[run][0] / self.largest[last]) / np.log(self.h[run][0] / self.h[last])
            fall = f"the remainder falls as h^{p:.2f} from h = {self.h[run][0]:.0e} to {self.h[last]:.0e}"
            if p < BETWEEN and self.resolved[last:].min() >= abs(self.off[last]) / 2:
                if self.linear(run):
                    return self.found("wrong", last, fall + "; that of a right gradient falls as h^2")
                if times == 1:
                    return self.undecided(fall + ", but not alike on both sides of the inputs")
        return self.by_resolution(fall)

    def linear(self, run) -> bool:
        """Is the remainder (φ'(0) − s) h at these widths, on both sides?"""
        off, blur = np.abs(self.off[run]), (self.floor / self.h)[run]
        one_side = off > np.abs(self.even / self.h)[run] + blur + self.kink
        steady = np.ptp(self.off[run]) <= STEADY * off.max() + blur.max()
        measured = (np.abs(self.odd) > self.floor)[run] | (self.floor <= FLOOR * np.sqrt(self.eps) * self.values)[run]
        return bool(one_side.all() and steady and measured.all())

    def of_a_constant(self) -> Verdict:
        if 0 < abs(self.claimed) * self.h[0] <= max(self.floor[0], self.grain):
            return self.undecided("the claimed slope is less than the rounding of f")
        return self.found("wrong" if self.claimed else "passed", 0, "f is constant along the direction")

    def by_resolution(self, why) -> Verdict:
        """Passed, if the widths of the narrow end would have shown an error of a percent.

        That is a percent of the slope or, where that is zero, of the steepest one at any width.
        """
        last = int(np.flatnonzero(self.largest > self.floor).max(initial=0))
        best = last + int(self.resolved[last:].argmin())
        seen, slope = self.resolved[best], max(abs(self.claimed), abs(self.odd[best] / self.h[best]))
        change = np.abs(self.odd) + np.abs(self.even)
        steepest = np.where(change > self.floor, change / self.h, 0).max()
        if seen > max(VAGUE * slope, VAGUE * steepest if abs(self.claimed) <= VAGUE * seen else 0):
            return self.undecided(f"only errors above {seen:.1e} would show")
        return self.found("passed", best, why)

    def found(self, status, at, why) -> Verdict:
        measured = float(self.odd[at] / self.h[at])
        return Verdict("order", status, self.claimed, measured, abs(measured - self.claimed),
                       float((self.floor if status == "wrong" else self.resolved * self.h)[at] / self.h[at]), why)

    def undecided(self, why) -> Verdict:
        return Verdict("order", "undecided", self.claimed, why=f"no converging range: {why}")


def least_change(ahead, behind) -> float:
    """The least change but zero, if f is flat between its steps; else 0."""
    changes = np.abs([ahead, behind])
    return float(changes[changes > 0].min(initial=np.inf)) if (changes == 0).any() and changes.any() else 0.0


def noise(odd, even) -> np.ndarray:
    """The rounding in odd and even at each width: that of the narrower widths, too, since it does not fall with h.

    Of a smooth function, even falls as h² and so does, as h³, odd without its linear part; both as h if it has kinks.
    A value that is not below √h of the two before it is rounding.
    """
    samples = np.zeros(len(odd))
    for part in (np.abs(even), np.abs(odd - np.append(0, odd[:-1]) / SHRINK)):
        before = np.maximum(np.append(np.inf, part)[:-1], np.append([0, 0], part / SHRINK)[:-2])
        samples = np.fmax(samples, np.where(part > before / np.sqrt(SHRINK), part, 0))
    moved = np.flatnonzero((odd != 0) | (even != 0)).max(initial=-1) + 1
    if 0 < moved < len(odd):                            # f rounds narrower steps away, and some of those just above
        samples[-1] = samples[max(moved - STAIRS, 0):].max()
    return np.maximum.accumulate(samples[::-1])[::-1]
