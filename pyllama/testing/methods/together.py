"""Along which lines is a complex step exact?  Differences along many of them at once show it.

A loss may lose a part of the imaginary number, as by np.real.  Differences do not, but they take 8 evaluations for each
line.  The slope along a sum of directions is the sum of the slopes, so differences along the sum confirm

(a) every slope of which their error is less than LOST, if they agree with the sum;
(b) the smaller slopes among themselves, and so on;
(c) slopes that are no more than rounding, if the loss stays as it is along all of these lines at once.

Could what is lost along one line hide behind the others?  The directions are random and independent, so what the others
lose in (a) is normal, of some variance.  At the distance d from 0 no normal density exceeds 1 / (√(2πe) d) < 1 / 4d.
A part λ of a slope is therefore unseen with a probability below LOST / 2λ, and never if nothing else is lost.  In (c)
the sum is normal with a larger variance than that of one line: it is within the error less often than one line alone.
"""
from collections.abc import Callable, Collection

from pyllama.testing.methods import slopes
from pyllama.testing.methods.slopes import EXACT, WIDTHS

EPS = 2.0 ** -52
NEARER = 1, 2.0 ** -4, 2.0 ** -8                    # of the widths: in a large model with ReLUs there is a kink within
                                                    # the wide ones
LOST = 1e-4                                         # of a slope: four widths show 1e-6 of the sum, and better if narrow
Lines = Callable[[Collection[int]], Callable]       # lines(numbers)(t): the loss with t along all of these lines


def confirmed(exact: dict[int, float], lines: Lines, rounding: float, still: float, late: Callable) -> set[int]:
    """The numbers of the lines whose slope by a complex step is exact.

    exact       the slope by a complex step along each line
    lines       lines(numbers)(t) is the loss [1] with t, real or complex, along all of these lines
    rounding    a slope that is not larger is no more than rounding of the loss
    still       the largest error of differences along which the loss stays as it is
    late        late(): is there no time for more?
    """
    left = set(exact)
    while len(left) > 1 and not late() and (sure := shown({i: exact[i] for i in left}, lines(left))):
        left -= sure
    idle = {i for i in left if abs(exact[i]) <= rounding}
    if len(idle) > 1 and not late() and stays(lines(idle), still):
        left -= idle
    return set(exact) - left


def shown(exact: dict[int, float], along: Callable) -> set[int]:
    """(a) The lines with slopes far above the error of differences along all of them, if these confirm the sum."""
    total = sum(exact.values())
    for nearer in NEARER:
        value, error, kink = slopes.differences(along, nearer * WIDTHS[slopes.FIRST], EPS)
        if slopes.agree(total, value, error).all() and not kink.any():
            off = float(error[0]) + EXACT * abs(total)
            if sure := {i for i, slope in exact.items() if off < LOST * abs(slope)}:
                return sure
    return set()


def stays(along: Callable, still: float) -> bool:
    """(c) Does the loss stay as it is along all of the lines at once?"""
    found = slopes.slopes(along, EPS)
    return found.holomorphic and not found.kink.any() and slopes.bound(found.error) <= still
