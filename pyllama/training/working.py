"""The parameters that a model computes with: the master itself, or in bfloat16 a copy of its matrices.

Training in bfloat16 keeps its parameters, the master, in float32.  In bfloat16 an update would be lost if it is smaller
than half a unit in the last place, and most are.  The model reads a copy, which is rounded anew after each update.
Norms and biases are read from the master: they are small, and the ops take them in float32.  A matrix that does not
train needs no master: it is rounded once, and the model and its checkpoints have it in bfloat16.

Source: Micikevicius et al., "Mixed precision training", 2018, section 3.1.
"""
from collections.abc import Container

import ml_dtypes
import numpy as np

from pyllama import params
from pyllama.low import widened
from pyllama.quantization import decoded_tree
from pyllama.training.optim import is_matrix, round_into

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Working:
    """The parameters that a model computes with, a tree.

    flat, p   the master: the vector [N], and the tree with views into it
    dtype     of the computation: that of the master, or "bfloat16"
    trained   the names of the leaves that flat holds; None: all.  The others are read as they are.
    tree      p itself; in bfloat16 a tree of the same form, whose matrices are rounded to nearest, ties to even
    copy      in bfloat16 the vector [N] that they are in, which the optimizer writes; else None

    >>> import numpy as np
    >>> from pyllama import params
    >>> from pyllama.training.working import Working
    >>> flat, p = params.flatten({"weight": np.float32([[1.003]]), "bias": np.float32([1.003])})
    >>> working = Working(flat, p, "bfloat16")
    >>> float(working.tree["weight"][0, 0]), working.tree["bias"] is p["bias"]
    (1.0, True)
    """

    def __init__(self, flat: np.ndarray, p: dict, dtype: str, trained: Container[str] | None = None):
        self.tree, self._flat = p, flat
        self.copy: np.ndarray | None = None
        if dtype == "bfloat16":
            self.copy = np.empty(flat.size, BFLOAT16)
            leaves = zip(params.leaves(p), params.leaves(params.over(self.copy, p, trained)), strict=True)
            self.tree = params.rebuild(p, (copy if is_matrix(name, master) else master
                                           for (name, master), (_, copy) in leaves))
        self.update()

    def update(self) -> None:
        """Round the matrices again, after a change of the master by anything but the optimizer."""
        if self.copy is not None:
            round_into(self.copy, self._flat)


def rounded_tree(tree: dict, but: Container[str] = ()) -> dict:
    """The tree with its matrices in bfloat16, as a model that trains in bfloat16 reads them; other leaves are kept.

    but     names of matrices to keep, too; encoded matrices are kept
    """
    return params.rebuild(tree, (params.cast(leaf, BFLOAT16) if hasattr(leaf, "dtype") and is_matrix(name, leaf)
                                 and name not in but else leaf for name, leaf in params.leaves(tree)))


def widened_tree(tree: dict, dtype: np.dtype) -> dict:
    """The tree with its matrices of bfloat16 in float32 and, if dtype is float64, the encoded ones decoded."""
    tree = decoded_tree(tree, dtype) if dtype == np.float64 else tree
    return params.rebuild(tree, (widened(leaf) for _, leaf in params.leaves(tree)))
