"""Magnitude pruning while training: a share of each matrix is zero, and stays zero.

    mask = Mask(matrices, size, sparsity=0.5)
    mask.renew(0, p)                # the smallest half of each matrix becomes zero
    mask.hold(g)                    # before each step: no gradient where the mask is
    mask.renew(t, p, [m, v])        # after step t: more of it, while the share grows

A weight whose gradient, means and value are zero is not moved by any update, and weight decay keeps it at zero.  So the
mask is held by its gradients alone, and the rounded copies of bfloat16 are zero where the weights are.

With `steps`, the share grows from 0 to its final value s: after t of n steps it is s (1 - (1 - t/n)³).  It grows in
STAGES equal intervals of time.  Weights that are zero stay so.

Sources: Han et al., "Learning both weights and connections", 2015, for magnitudes; Zhu & Gupta, "To prune, or not to
prune", 2017, equation 1, with an initial sparsity of 0.
"""
import math

import numpy as np

STAGES = 20


class Mask:
    """Which entries of a vector [size] are held at zero.

    matrices    the slices in each of which a share is zero
    dropped     bool [size], on the device of the vector
    """

    def __init__(self, matrices: list[slice], size: int, sparsity: float, steps: int = 0, like=None):
        self.matrices, self.sparsity, self.steps = matrices, sparsity, steps
        self.dropped = np.zeros(size, bool, like=like)

    def share(self, t: int) -> float:
        """The share of a matrix that is zero after t steps.

        >>> from pyllama.training.masks import Mask
        >>> [round(Mask([], 0, sparsity=0.8, steps=100).share(t), 9) for t in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]
        """
        return self.sparsity * (1 - (1 - min(1.0, t / self.steps)) ** 3) if self.steps else self.sparsity

    def due(self, t: int) -> bool:
        """Does the share grow after step t?  It starts at step 0."""
        return t == 0 or (t <= self.steps and (t == self.steps or t % math.ceil(self.steps / STAGES) == 0))

    def renew(self, t: int, p, state=(), rounded=None) -> None:
        """After step t, if the share grows, set the smallest entries of each matrix to zero, in all these vectors."""
        if not self.due(t):
            return
        for where in self.matrices:
            drop_smallest(p[where], self.dropped[where], round(self.share(t) * (where.stop - where.start)))
        for x in (p, *state, *(() if rounded is None else (rounded,))):
            self.hold(x)

    def hold(self, x) -> None:
        """Set a vector to zero where the mask is."""
        np.putmask(x, self.dropped, 0)

    def state(self) -> dict[str, np.ndarray]:
        """{"dropped": uint8 [size/8]}: a bit for each entry."""
        return {"dropped": np.packbits(self.dropped)}

    def load(self, state) -> None:
        """Continue with a saved state(), of this size."""
        bits = np.unpackbits(np.asarray(state["dropped"]), count=self.dropped.size)
        self.dropped[:] = np.asarray(bits.astype(bool), like=self.dropped)


def drop_smallest(x, dropped, count: int) -> None:
    """Make `count` entries of dropped [n] True: those that are already, then those of the smallest |x|, in order."""
    if not count:
        return
    size = np.abs(x)
    size[dropped] = -1                                      # before other zeros
    largest = np.partition(size, count - 1)[count - 1]
    below = size < largest
    dropped |= below
    dropped[np.flatnonzero(size == largest)[:count - int(below.sum())]] = True
