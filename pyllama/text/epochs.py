"""The order of an epoch: which rows a step learns from.  It depends on the seed, the epoch and the step alone."""
import functools

import numpy as np

from pyllama import rng


@functools.lru_cache(maxsize=2)                     # a step reaches into two epochs, unless there are very few rows
def shuffled(count: int, *key: int | str, phases: int = 1) -> tuple[int, np.ndarray]:
    """(phase, order): a number below `phases`, and the numbers 0 ... count - 1 in the order of their visit.

    key      names the random numbers, as in rng.generator: the seed, a word, the epoch
    """
    draw = rng.generator(*key)
    phase = int(draw.integers(phases)) if phases > 1 else 0
    return phase, draw.permutation(count)


def step_rows(count: int, size: int, seed: int, step: int, phases: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(rows, phases), int64 [size] both: which of `count` rows a step (0, 1, ...) of `size` rows visits, and in which
    phase their epochs are.

    Epochs lie end to end, so that a step may reach into the next one.  Each visits every row once.
    """
    rows, phase_of_row = [], []
    for number in range(step * size, (step + 1) * size):
        epoch, turn = divmod(number, count)
        phase, order = shuffled(count, seed, "epoch", epoch, phases=phases)
        rows.append(order[turn])
        phase_of_row.append(phase)
    return np.array(rows, np.int64), np.array(phase_of_row, np.int64)
