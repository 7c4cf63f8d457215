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

At a kink itself the differences of all widths agree, but those to the left and to the right do not.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

EXACT = 1e-11                                       # a relative error above this is not rounding
STEP = 1e-30                                        # of the complex step
SHRINK = 3.7                                        # no integer: else the steps of float32 could be of equal slope
WIDTHS = 0.2 / SHRINK ** np.arange(13)              # of differences, from wide to narrow
FIRST = slice(2, 6)                                 # those that suffice for most functions
NARROW = slice(-7, None)                            # those that show noise: 8e-5 to 3e-8
KINK = slice(-6, -3)                                # those that show a kink: 2e-5 to 2e-6
TRUST, UNSURE = 1e-6, 1e-3                          # errors relative to the largest slope: see slopes()


class Slopes(NamedTuple):
    """J v, how far it may be off, and whether f has a kink there; each [M], for M outputs.

    holomorphic     is a complex step right for all outputs?
    """
    value: np.ndarray
    error: np.ndarray
    kink: np.ndarray
    holomorphic: bool


def slopes(along: Callable, eps: float) -> Slopes:
    """The slopes at t = 0 of along(t), which returns the outputs [M] for a real or complex t.

    eps     of the precision in which the outputs are rounded
    """
    exact = imaginary(along)
    with np.errstate(all="ignore"):
        if exact is not None:
            value, error, _ = differences(along, WIDTHS[FIRST], eps)
            size = np.abs(exact).max(initial=0)
            if (agree(exact, value, error) & (error <= TRUST * size)).all():
                return Slopes(exact, np.where(exact == 0, error, 0), np.zeros(exact.shape, bool), True)
        value, error, kink = differences(along, WIDTHS, eps)
        if exact is None:
            return Slopes(value, error, kink, False)
        size = np.abs(value[np.isfinite(value)]).max(initial=0)
        right = agree(exact, value, error)
        sure = right & (error <= UNSURE * size)
    holomorphic = bool(right.all()) and bool(exact.any() or not value.any())
    return Slopes(np.where(sure, exact, value), np.where(sure & (exact != 0), 0, error), kink & ~sure, holomorphic)


def agree(exact, value, error):
    """May the exact slope be the one that differences measured with this error?"""
    return np.isfinite(exact) & (np.abs(exact - value) <= error + EXACT * np.abs(exact))


def imaginary(along) -> np.ndarray | None:
    """The slopes [M] by a complex step; None if f refuses complex numbers, in whatever way."""
    try:
        with np.errstate(all="ignore"):
            return np.imag(along(1j * STEP)) / STEP
    except Exception:
        return None


def differences(along, widths, eps):
    """(slopes, errors, kinks), each [M], by extrapolated differences; the error is infinite where none is finite."""
    here = along(0.0)
    ahead, behind = (np.array([along(sign * h) for h in widths]) for sign in (1, -1))
    h = widths[:, None]
    plain = (ahead - behind) / (2 * h)
    better = (SHRINK ** 2 * plain[1:] - plain[:-1]) / (SHRINK ** 2 - 1)             # without the term in h²
    best = (SHRINK ** 4 * better[1:] - better[:-1]) / (SHRINK ** 4 - 1)             # nor that in h⁴
    apart = np.abs(np.diff(best, axis=0))
    noise = 4 * eps * np.max([np.abs(ahead).max(0), np.abs(behind).max(0)], axis=0)
    if len(widths) < len(WIDTHS):                                       # only two extrapolations: the narrower one
        value, error = best[-1], apart[-1] + noise / widths[-1]
        kink = np.zeros(here.shape, bool)
    else:
        shaken = np.sort(np.abs(np.diff(plain[NARROW], axis=0)) * h[NARROW][1:], axis=0)
        noise = np.fmax(noise, 2 * shaken[-3])                          # a kink within may explain the two largest
        noise = np.fmax(noise, stair(ahead - behind, noise / eps))
        errors = apart[:-1] + apart[1:] + 2 * noise / h[3:-1]
        errors[~np.isfinite(errors)] = np.inf
        chosen = errors.argmin(axis=0)[None]
        value, error = np.take_along_axis(best[1:-1], chosen, 0)[0], np.take_along_axis(errors, chosen, 0)[0]
        kink = kinks(here, ahead[KINK], behind[KINK], h[KINK], noise)
    still = (ahead == here).all(0) & (behind == here).all(0)            # f does not depend on t
    return np.where(still, 0, value), np.where(still, 0, error), kink


def stair(changes, size):
    """The height [M] of the steps of a function that is computed in low precision: the least change but zero.

    A wide step would be one of f itself, such as round's: then this is zero.
    """
    least = np.where(changes == 0, np.inf, np.abs(changes)).min(axis=0)
    return np.where((changes == 0).any(axis=0) & (least < 1e-5 * size), least, 0)


def kinks(here, ahead, behind, h, noise):
    """Does the slope ahead differ from that behind at every width?  Jumps are no kinks: their error is infinite."""
    right, left = (ahead - here) / h, (here - behind) / h
    return (np.abs(right - left) > 0.01 * (np.abs(right) + np.abs(left)) + 4 * noise / h).all(axis=0)
