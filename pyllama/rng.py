"""Counter-based random numbers: a draw depends on what it is for, never on what was drawn before it.

So a resumed run, a recomputed activation and another rank draw what the undisturbed run would have drawn.
"""
import operator

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A Philox stream for this key, for example ``generator(seed, "dropout", step, layer)``.

    Every part is an integer or a word.  Equal keys give equal streams on every machine (NumPy's SeedSequence and Philox
    are stable by contract); different keys give independent ones.
    """
    # Not the parts themselves: SeedSequence fills up with zeros, so that (7,) and (7, 0) would be one key.
    text = repr([part if isinstance(part, str) else operator.index(part) for part in key])
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(text.encode(), "little"))))
