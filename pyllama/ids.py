"""Token ids and targets: integers that select rows of a table."""


def require_below(ids, bound, what="token id"):
    """Raise IndexError if an id lies outside 0 .. bound-1; the message names the first one.

    ids      an integer array of any shape
    what     what the message calls an id

    NumPy itself would let negative ids count from the end.

    >>> import numpy as np
    >>> from pyllama.ids import require_below
    >>> require_below(np.array([3, 7]), 5)
    Traceback (most recent call last):
    IndexError: token id 7 is outside the vocabulary of 5 (0 to 4)
    """
    wrong = ids[(ids < 0) | (ids >= bound)]
    if wrong.size:
        raise IndexError(f"{what} {int(wrong[0])} is outside the vocabulary of {bound} (0 to {bound - 1})")
