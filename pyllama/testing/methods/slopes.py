"""The slope of a function along a line, for each output: by a complex step where that is exact, else by differences.

    f(x + i h v) = f(x) + i h J v + O(h²)                               a complex step (Squire & Trapp, 1998)
    (f(x + h v) - f(x - h v)) / 2h = J v + O(h²)                        a central difference

The imaginary part divided by h is J v, if f is holomorphic.  No subtraction is involved, so no digits cancel: h can be
as small as 1e-30, and the result is exact up to rounding.

Other functions lose the imaginary part (abs, norm, casts), change it (conj, sign) or refuse it.  They need not say so:
central differences are extrapolated (Richardson's method) from several widths.  An output at which both agree has the
exact slope, another one that of the differences and a bound of its error:

(a) Truncation: how far the extrapolations of neighboring widths are apart.  It is large if a kink or a jump lies
    within the width, so a narrower width is chosen.
(b) Rounding: the noise of f, as the narrowest differences show it, divided by the width.  A function that computes in
    float32 has more noise than the dtype of its results may say.
(c) Contradiction: how far the quotients of narrower widths are from the extrapolation, beyond their noise.  Wide
    differences may agree with each other and miss a kink that is near, or the steep middle of a saturated function.

At a kink itself the differences of all widths agree, but those to the left and to the right do not.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CHAIN = 64                                          # in eps: four standard deviations of 16² independent roundings
EXACT = 1e-11                                       # relative; rounding is less up to a condition of 700, which is this
                                                    # divided by CHAIN eps.  Beyond, it is measured: see compare.py
STEP = 1e-30                                        # of the complex step: its square is lost, its multiples are normal
SHRINK = 3.7                                        # not an integer: else the steps of float32 could be of equal slope
WIDTHS = 0.2 / SHRINK ** np.arange(13)              # of differences, from wide to narrow
FIRST = slice(2, 6)                                 # those that suffice for most functions
NARROW = slice(-7, None)                            # those that show noise, where bends are below it: 8e-5 to 3e-8
KINK = slice(-6, -3)                                # those that show a kink: 2e-5 to 2e-6
COARSE = slice(3, 6)                                # those that do where noise hides it: 4e-3 to 3e-4
FINEST = WIDTHS[0] / SHRINK ** np.arange(0, 25, 3)   # to 5e-15: they show the least change that an output makes
AWAY = 10.0 ** np.arange(0, 8, 2)                   # times as far, for entries that are smaller than the largest
FRESH = WIDTHS[-1] * SHRINK ** (np.arange(0.5, 8) / 8)       # between the two narrowest: random values, of which one in
                                                    # two agrees, agree at all of 8 once in 256 times
STEEPER = 1.05                                      # from width to width: a slope without bound, even that of x^0.95
MIDDLE = slice(-9, -3)                              # where it does so: 6e-4 to 2e-6
TRUST = 1e-6                                        # of the largest slope: four widths show that of most functions so
                                                    # well, and nothing that loses a part of its slope agrees with it
ROUGH = 1e-2                                        # of y: more than any precision rounds, bfloat16 included
GRAIN = 16                                          # in eps of the largest number that may take part: changes of f that
                                                    # are no larger may be rounding, as beside the 1 of 1 + tanh(x)
UNSURE = 1e-3                                       # all widths do so at least where f is noisy, or bends within them
FAR = 10.0                                          # of the typical entry: there f shows whether it depends on an entry
ALIKE = 1e3                                         # times as steep or as flat: a saturated function differs by more


class Slopes(NamedTuple):
    """J v, how far it may be off, and whether f has a kink there; each [M], for M outputs.

    holomorphic     is a complex step right for all outputs?
    exact           what a complex step says, where differences do not contradict it; else NaN
    """
    value: np.ndarray
    error: np.ndarray
    kink: np.ndarray
    holomorphic: bool
    exact: np.ndarray


def slopes(along: Callable, eps: float, size: float = 1.0) -> Slopes:
    """The slopes at t = 0 of along(t), which returns the outputs [M] for a real or complex t.

    eps     of the precision in which the outputs are rounded
    size    of the largest input: numbers as large as it, as 1 or as the outputs may cancel within f
    """
    exact = imaginary(along, step(eps))
    with np.errstate(all="ignore"):
        if exact is not None:
            value, error, _ = differences(along, WIDTHS[FIRST], eps)
            steepest = np.abs(exact).max(initial=0)
            if (agree(exact, value, error) & (error <= TRUST * steepest)).all():
                error = np.where((exact == 0) | (eps > 2.0 ** -52), error, 0)
                return Slopes(exact, error, np.zeros(exact.shape, bool), True, exact)
        value, error, kink = differences(along, WIDTHS, eps, size)
        if exact is None:
            return Slopes(value, error, kink, False, np.full(value.shape, np.nan))
        here = np.abs(along(0.0))
        inside = np.fmax(grain(here, eps, size), GRAIN * eps * furthest(along, size))
        lost = np.where(error == 0, inside / WIDTHS[0], 0)                              # what f rounds away
        most = np.abs(value[np.isfinite(value)]).max(initial=0)
        right = agree(exact, value, error + lost)
        sure = right & (error <= UNSURE * most) & ~kink
    holomorphic = bool(right.all()) and bool(exact.any() or not value.any())
    confirmed = sure & (exact != 0) & (eps <= 2.0 ** -52)           # float32 would not show a part that f lost
    return Slopes(np.where(sure, exact, value), np.where(confirmed, 0, error), kink, holomorphic,
                  np.where(right & ~kink, exact, np.nan))


def grain(values, eps, size) -> float:
    """The largest change of f that may be rounding: that of the largest number that takes part."""
    return GRAIN * eps * max(1.0, size, float(np.abs(values[np.isfinite(values)]).max(initial=0)))


def at_one(along, size, times=1.0) -> np.ndarray:
    """How much each output [M] changes where the inputs, `size` at most, are as large as 1; 0 if they are larger here.

    So large are the numbers that may cancel in it, whatever f multiplies them by: 1e8 in 1e8 (sqrt(1 + x²) - 1).
    """
    here = along(0.0)
    if not 0 < size < 1:
        return np.zeros(here.shape)
    with np.errstate(all="ignore"):
        changes = np.abs([np.real(along(sign * times / size) - here) for sign in (1, -1)])
    return np.where(np.isfinite(changes), changes, 0).max(axis=0)


def furthest(along, size) -> np.ndarray:
    """at_one() for each of several inputs, of which some are much smaller than the largest."""
    return np.max([at_one(along, size, times) for times in AWAY], axis=0)


def inner(along, size, eps) -> np.ndarray:
    """at_one() of those outputs that are made of such numbers: x² has changes finer than their rounding."""
    here = along(0.0)
    if not 0 < size < 1:
        return np.zeros(here.shape)
    with np.errstate(all="ignore"):
        changes = np.abs([np.real(along(sign * h) - here) for h in FINEST for sign in (1, -1)])
    finest = np.where(changes > 0, changes, np.inf).min(axis=0)
    stairs = np.isfinite(finest) & (finest > GRAIN * eps * np.abs(here))
    far = np.fmin(furthest(along, size), 4 * finest / eps) if stairs.any() else 0.0
    return np.where(np.isfinite(finest), np.where(stairs, far, 0), at_one(along, size))


def agree(exact, value, error):
    """May the exact slope be the one that differences measured with this error?"""
    return np.isfinite(exact) & (np.abs(exact - value) <= error + EXACT * np.abs(exact))


def step(eps: float) -> float:
    """The complex step for this precision: its square is lost in rounding, and complex64 has no 1e-30 times x."""
    return STEP if eps <= 2.0 ** -52 else eps / 16


def imaginary(along, step=STEP) -> np.ndarray | None:
    """The slopes [M] by a complex step; None if f refuses complex numbers, in whatever way."""
    try:
        with np.errstate(all="ignore"):
            return np.imag(along(1j * step)) / step
    except Exception:
        return None


def differences(along, widths, eps, size=1.0):
    """(slopes, errors, kinks), each [M], by extrapolated differences; the error is infinite where none is finite."""
    here = along(0.0)
    ahead, behind = (np.array([along(sign * h) for h in widths]) for sign in (1, -1))
    h = widths[:, None]
    plain = unless_rounded_away((ahead - behind) / (2 * h), h, eps)
    best = extrapolated(plain, (2, 4))
    noise = 4 * eps * np.max([np.abs(ahead).max(0), np.abs(behind).max(0)], axis=0)
    if len(widths) < len(WIDTHS):                                       # only two extrapolations: the narrower one
        value, error = best[-1], np.abs(best[-1] - best[-2]) + noise / widths[-1]
        kink = kinks(here, ahead, behind, h, noise)                     # or a bend: narrower widths would show
    else:
        least = grain(here, eps, size)
        most = np.fmax(least, GRAIN * eps * furthest(along, size)) if (ahead == behind).any() else least
        noise = np.fmax(noise, shaken(plain, h, least))
        noise = np.fmax(noise, stair(ahead - behind, np.fmax(1e-5 * noise / eps, most)))
        value, error = sharpest(plain, (2, 4), noise, h)
        error = np.where(jumps((ahead - behind)[NARROW]), np.inf, error)
        near, far = (kinks(here, ahead[at], behind[at], h[at], noise) for at in (KINK, COARSE))
        hidden = 4 * noise / h[KINK][-1] > 0.1 * (np.nan_to_num(np.abs(plain[KINK])).max(axis=0) + noise / h[KINK][-1])
        kink = np.where(hidden, far, near)
        value, error, kink = beneath(ahead - behind, plain, value, error, kink,
                                     noise=np.fmax(4 * eps * np.abs(here), np.fmin(noise, least)))
        bent = stray(lambda h: along(h) + along(-h) - 2 * here, 0, FRESH[::2])
        unseen = drowned(np.fmax(noise, np.fmax(bent, third(ahead + behind - 2 * here))), ahead, behind)
        error, kink = np.where(unseen, np.inf, error), kink & ~unseen
    still = (ahead == here).all(0) & (behind == here).all(0)            # f does not depend on t, or rounds it away
    return np.where(still, 0, value), np.where(still, 0, error), kink


def one_sided(along, sign, eps, size=1.0):
    """(slopes, errors), each [M], ahead of t = 0 (sign 1) or behind (-1), from f on that side alone.

    The error is infinite where f is not defined, or its slope grows without bound, as that of a root at 0.
    """
    here, h = along(0.0), WIDTHS[:, None]
    with np.errstate(all="ignore"):
        there = np.array([along(sign * width) for width in WIDTHS])
        plain = unless_rounded_away(sign * (there - here) / h, h, eps)
        least = grain(here, eps, size)
        noise = np.fmax(4 * eps * np.abs(there).max(0), shaken(extrapolated(plain, (1,)), h[1:], least))
        noise = np.fmax(noise, stair(there - here, least))
        value, error = sharpest(plain, (1, 2), noise, h)
        steeper = (plain[1:] / plain[:-1] > STEEPER) & (np.abs(there - here)[1:] <= np.abs(there - here)[:-1])
        off = stray(lambda h: sign * (along(sign * h) - here), value, FRESH)
        unseen = drowned(np.fmax(noise, np.fmax(off, third(there - here))), there)
    error = np.where(steeper[MIDDLE].all(0) | unseen, np.inf, error)
    still = (there == here).all(0)
    return np.where(still, 0, value), np.where(still, 0, error)


def unless_rounded_away(plain, h, eps):
    """The quotients, but NaN in place of a zero that is no more than a step too small for a low precision."""
    return np.where((plain == 0) & (eps > 2.0 ** -52) & (h < 2 ** 10 * eps), np.nan, plain)


def extrapolated(plain, powers):
    """Difference quotients [K M] at neighboring widths, freed of their error terms in these powers of h."""
    for power in powers:
        plain = plain[1:] + np.diff(plain, axis=0) / (SHRINK ** power - 1)
    return plain


def shaken(plain, h, least):
    """The noise of f [M], as the narrowest quotients show it: the third largest, as a kink may explain two.

    It is the largest if that may be rounding: one that shows once is there at all widths.
    """
    seen = 2 * np.nan_to_num(np.abs(np.diff(plain, axis=0))) * h[1:]
    return np.fmax(np.sort(seen[NARROW][1:], axis=0)[-3], np.fmin(seen[COARSE.start:].max(axis=0), least))


def sharpest(plain, powers, noise, h):
    """(value, error) of the extrapolation whose neighbors agree with it best, and no narrower quotient contradicts.

    Wide ones may agree with each other and be wrong: beyond a kink that is near, or where f is saturated.
    """
    better, best = extrapolated(plain, powers[:1]), extrapolated(plain, powers)
    apart = np.abs(np.diff(best, axis=0))
    errors = apart[:-1] + apart[1:] + 2 * noise / h[3:-1]
    for k in range(len(errors)):
        narrower = np.abs(better[k + 3:] - best[k + 1]) - 8 * noise / h[k + 4:]
        errors[k] = np.where(narrower.max(axis=0) > errors[k], narrower.max(axis=0), errors[k])
    errors[~np.isfinite(errors)] = np.inf
    chosen = errors.argmin(axis=0)[None]
    return np.take_along_axis(best[1:-1], chosen, 0)[0], np.take_along_axis(errors, chosen, 0)[0]


def drowned(noise, *values):
    """Is what looks like noise as large as all that f does?  Then f oscillates faster than the widths can show."""
    values = np.concatenate(values)
    return noise > np.fmax(np.ptp(values, axis=0) / 128, ROUGH * np.abs(values).max(axis=0))


def stray(change, slope, steps):
    """How far the changes at other narrow steps are from this slope: where f oscillates, a few may agree by chance."""
    return np.max([np.nan_to_num(np.abs(change(h) - h * slope)) for h in steps], axis=0)


def third(changes):
    """The third largest change at the narrow widths: it falls with h, unless f oscillates, as sin(1e9 x) does."""
    return np.sort(np.abs(changes)[NARROW], axis=0)[-3]


def stair(changes, most):
    """The height [M] of the steps that rounding makes of a function: the least change but zero.

    A step higher than `most` would be one of f itself, such as round's: then this is zero.
    """
    least = np.where(changes == 0, np.inf, np.abs(changes)).min(axis=0)
    return np.where((changes == 0).any(axis=0) & (least <= most), least, 0)


def bound(errors) -> float:
    """How far the sum of values with these bounds may be off: they are independent, and each is at least twice off."""
    return 4 * norm(errors)


def norm(a) -> float:
    """The Euclidean norm, also of numbers whose squares are too small or too large."""
    a = np.abs(np.asarray(a, float))
    size = float(a.max(initial=0))
    return size * float(np.sqrt(np.sum(np.square(a / size)))) if 0 < size < np.inf else size


def beneath(changes, plain, value, error, kink, noise):
    """Replace the slope by the narrowest quotients where these agree with each other a thousand times better.

    Then a kink is nearer to t = 0 than most widths, and what they show is the function beyond it.
    """
    tail = plain[-3:]
    apart = np.ptp(tail, axis=0)
    off = np.abs(tail[-1] - value)
    nearer = (off > error + noise / WIDTHS[-1]) & (off > 1e3 * apart) & (changes[-3:] != 0).all(axis=0)
    return (np.where(nearer, tail.mean(axis=0), value),
            np.where(nearer, 4 * apart + noise / WIDTHS[-3], error), kink & ~nearer)


def jumps(changes):
    """Are these changes alike, however narrow the step?  Then f jumps at t = 0, or is soon saturated."""
    size = np.abs(changes)
    return (size.min(axis=0) > size.max(axis=0) / 2) & (np.abs(changes.sum(axis=0)) == size.sum(axis=0))


def kinks(here, ahead, behind, h, noise):
    """Does the slope ahead differ from that behind, by as much at each width?  At an extremum that falls as h.

    Jumps are not kinks: their error is infinite.
    """
    right, left = (ahead - here) / h, (here - behind) / h
    apart = np.abs(right - left)
    seen = apart > TRUST * (np.abs(right) + np.abs(left)) + 4 * noise / h
    return seen.all(axis=0) & (apart[1:] * SHRINK ** 0.25 > apart[:-1]).all(axis=0)
