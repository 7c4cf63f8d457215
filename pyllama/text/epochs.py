"""The order of the rows in an epoch.  It depends on the seed, the epoch and the step alone."""
import functools

import numpy as np

from pyllama import rng


@functools.lru_cache(maxsize=2)                     # a step spans at most two epochs, unless there are very few rows
def shuffled(count: int, *key: int | str, phases: int = 1) -> tuple[int, np.ndarray]:
    """Draw (phase, order): a number below `phases`, and a permutation of 0 ... count - 1.

    key      of the random numbers, as for rng.generator(): the seed, a word, the epoch
    """
    draw = rng.generator(*key)
    phase = int(draw.integers(phases)) if phases > 1 else 0
    return phase, draw.permutation(count)


def step_rows(count: int, size: int, seed: int, step: int, phases: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(rows, phases), both int64 [size]: the rows, of `count`, that a step (0, 1, ...) visits; their epochs' phases.

    Each epoch visits every row once.  Epochs lie end to end, and a step may continue in the next one.
    """
    rows, phase_of_row = [], []
    for number in range(step * size, (step + 1) * size):
        epoch, position = divmod(number, count)
        phase, order = shuffled(count, seed, "epoch", epoch, phases=phases)
        rows.append(order[position])
        phase_of_row.append(phase)
    return np.array(rows, np.int64), np.array(phase_of_row, np.int64)
