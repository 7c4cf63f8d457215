"""Hypotheses about a gradient that is nearly right: low precision, a forgotten eps, an approximation."""
from collections.abc import Iterator

import numpy as np

from pyllama.testing.diagnosis.evidence import Evidence, largest

NEARLY = 1e-2                                       # relative to the largest entry
VAGUE = 1e-4                                        # a tolerance, relative to the largest entry
PRECISIONS = {name: np.finfo(name) for name in ("float32", "float16")}
SEVERAL = 4                                         # numbers that happen to be short are few


def sentences(e: Evidence) -> Iterator[str]:
    error = largest((e.claimed - e.measured)[e.known])
    if e.size and error <= NEARLY * e.size:
        yield in_low_precision(e) or (
            f"Nearly right: the error is {error / e.size:.1e} of the largest entry; a forgotten or misplaced eps, a "
            f"constant or a table in low precision, or another approximation of the function?")
    if e.size and largest(e.tolerance[e.known]) > VAGUE * e.size:
        digits = int(-np.log10(min(1.0, largest(e.tolerance[e.known]) / e.size)))
        yield f"Ill-conditioned: {digits} digit{'s' * (digits != 1)} of the derivative are left."


def in_low_precision(e: Evidence) -> str:
    """The sentence if every claimed number is one of a lower precision than the inputs have."""
    claimed, measured = e.claimed[e.known], e.measured[e.known]
    several = np.count_nonzero(claimed) >= SEVERAL and np.unique(claimed).size >= SEVERAL
    for name, precision in PRECISIONS.items():
        short = claimed.astype(name).astype(float) == claimed
        near = np.abs(claimed - measured) <= 64 * float(precision.eps) * e.size
        if e.x.dtype.itemsize > precision.dtype.itemsize and several and short.all() and near.all():
            return f"Computed in {name}: every claimed number is a {name} number, but {e.input} is {e.x.dtype}."
    return ""
