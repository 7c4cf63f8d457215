"""Integers that name rows of a table: token ids, targets."""


def require_below(ids, bound, what="token id"):
    """IndexError that names the first id outside 0 .. bound-1: NumPy would wrap negative ones silently."""
    wrong = ids[(ids < 0) | (ids >= bound)]
    if wrong.size:
        raise IndexError(f"{what} {int(wrong[0])} is outside the vocabulary of {bound} (0 to {bound - 1})")
