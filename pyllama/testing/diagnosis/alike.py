"""Hypotheses about what claimed and measured have in common: lengths, sums, or the opposite zeros."""
import math
from collections.abc import Iterator

import numpy as np

from pyllama.testing.diagnosis.calls import called
from pyllama.testing.diagnosis.constants import short
from pyllama.testing.diagnosis.evidence import CLEAR, Evidence, largest
from pyllama.testing.diagnosis.terms import product

FEW = 4                                             # entries of each kind, below which a pattern may be chance
PROBES = 3                                          # entries of dy that are tried alone


def sentences(e: Evidence) -> Iterator[str]:
    """What both have in common, the most specific first."""
    yield from inverted(e)
    if e.known.all() and e.x.ndim:
        yield from [*rotated(e)] or misplaced(e)


def inverted(e: Evidence) -> Iterator[str]:
    """Each is zero where the other is not, and their sum is one formula."""
    zero, missing = (np.abs(a[e.known]) <= e.noise for a in (e.claimed, e.measured))
    several = min(zero.sum(), missing.sum()) >= FEW // 2 and zero.size >= FEW
    if np.array_equal(zero, ~missing) and several and product(e, e.claimed + e.measured, short):
        yield (f"Gate inverted: claimed is 0 where measured is not, at {zero.sum()} entries, and not 0 where measured "
               f"is, at {missing.sum()}.")


def rotated(e: Evidence) -> Iterator[str]:
    """Pairs of entries along the last axis, or whole rows, have the right length, but single entries do not."""
    if largest(np.abs(e.claimed) - np.abs(e.measured)) <= CLEAR * e.noise:
        return
    size, *_ = e.x.shape[::-1]
    pairs = (*e.x.shape[:-1], size // 2, 2)
    ways = {}
    if size % 2 == 0 and size:
        ways["pair of neighbors along the last axis"] = lambda a: a.reshape(pairs)
        ways["pair of entries half a row apart"] = lambda a: np.stack([a[..., :size // 2], a[..., size // 2:]], -1)
    ways["row along the last axis"] = lambda a: a
    for what, split in ways.items():
        lengths = [(split(a) ** 2).sum(-1) for a in (e.claimed, e.measured)]
        slack = 2 * e.size * (e.noise + 1e-10 * e.size) * size
        if lengths[0].size >= FEW and largest(lengths[0] - lengths[1]) <= slack and largest(lengths[1]) > CLEAR * slack:
            yield f"Rotated: each {what} has the right length in claimed, and another direction than in measured."
            return


def misplaced(e: Evidence) -> Iterator[str]:
    """The sums along an axis are right, and each entry of dy adds the right numbers, but at wrong indices."""
    for axis, size in enumerate(e.x.shape):
        sums = [a.sum(axis) for a in (e.claimed, e.measured)]
        slack = size * (e.noise + 1e-10 * max(e.size, largest(e.claimed)))
        if size > 1 and sums[0].size and largest(sums[0] - sums[1]) <= slack and moved(e, axis, slack):
            yield (f"Added at the wrong index: what an entry of dy adds to the gradient of {e.input} is right, but at "
                   f"another index of axis {axis}.")
            return


def moved(e: Evidence, axis: int, slack: float) -> bool:
    """Do single entries of dy give the measured numbers in another order along the axis?"""
    if e.slope is None:
        return False
    chosen, apart = np.flatnonzero(e.dy), False
    for place in chosen[::math.ceil(len(chosen) / PROBES) or 1]:
        single = np.zeros(e.dy.shape, e.dy.dtype)
        single.flat[place] = e.dy.flat[place]
        claimed, measured = called(e, single), e.slope(single)
        if claimed is None or not largest(np.sort(claimed, axis) - np.sort(measured, axis)) <= slack:
            return False
        apart |= largest(claimed - measured) > CLEAR * slack
    return bool(apart)
