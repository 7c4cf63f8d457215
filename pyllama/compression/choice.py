"""Which parts of a model leave: those of the lowest scores, in all layers together or in each."""
import math

import numpy as np

from pyllama.errors import UserError


def lasting(scores: list[np.ndarray], share: float, even: bool, name: str) -> list[np.ndarray]:
    """The parts of each layer that stay: scores [n] of each layer -> bool [n] of each.

    share   of all parts that leave, rounded down; a layer keeps at least one
    even    every layer loses this share of its own parts, so that equal layers stay equal
    name    of the share, for messages

    Raises UserError if the share is less than one part, or so large that a layer would keep none.

    >>> import numpy as np
    >>> from pyllama.compression.choice import lasting
    >>> [mask.tolist() for mask in lasting([np.array([1.0, 5.0, 6.0]), np.array([2.0, 3.0, 4.0])], 0.5, False, "heads")]
    [[False, True, True], [False, False, True]]
    """
    counts = [len(each) for each in scores]
    if even:
        leaving = [whole_share(share, count, name, "a layer's ") for count in counts]
        return [~lowest(each, count) for each, count in zip(scores, leaving, strict=True)]
    total = sum(counts)
    left, masks = whole_share(share, total, name, "the model's ", len(counts)), [np.ones(n, bool) for n in counts]
    places = [(i, j) for i, n in enumerate(counts) for j in range(n)]
    for k in np.argsort(np.concatenate(scores), kind="stable"):
        i, j = places[k]
        if left and masks[i].sum() > 1:
            masks[i][j] = False
            left -= 1
    return masks


def whole_share(share: float, total: int, name: str, whose: str, least: int = 1) -> int:
    """The number of parts that a share is.  Raises UserError if it is none, or leaves fewer than `least`."""
    count = math.floor(share * total + 1e-9)            # of 100 parts, 0.29 are 29, and not 28
    if share and total == least:
        raise UserError(f"{name} is {share}, but a layer has only one of them, and every layer keeps one; set it to 0")
    if share and not count:
        raise UserError(f"{name} is {share}, less than one of {whose}{total} {name}; make it at least "
                        f"{math.ceil(1000 / total) / 1000}")
    if count > total - least:
        raise UserError(f"{name} is {share}, {count} of {whose}{total} {name}, but every layer keeps one; make it "
                        f"smaller")
    return count


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """bool [n]: the `count` lowest scores; of equal ones the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(scores, kind="stable")[:count]] = True
    return mask


def relative(scores: list[np.ndarray]) -> list[np.ndarray]:
    """Each layer's scores over their mean, because weights and inputs of layers differ in size."""
    return [each / mean if (mean := each.mean()) else each for each in scores]
