"""Output matrices refitted by least squares, so that the parts that stay stand in for those that left.

A text passes through the model and beside it through the pruned one, whose matrices below are already repaired.  At an
output matrix W [E D], with the inputs x [D] of the model, and y [K] of the pruned one's K remaining columns, V [E K]
shall give what W gave:

    minimize    f(V) = E|W x - V y|² + λ‖V - W_K‖²          W_K: the remaining columns of W

The gradient is zero where, with the second moments S = E[y yᵀ] (the normal equations),

    (V - W_K)(S + λI) = E[(W x - W_K y) yᵀ]
                    V = W_K + E[(W x - W_K y) yᵀ] (S + λI)⁻¹

The penalty pulls towards W_K, which is what pruning alone leaves, and not towards zero.  So f(V) ≤ f(W_K) says that
E|W x - V y|² ≤ E|W x - W_K y|² for every λ ≥ 0: the error on the text never rises.  λ is that of moments.py, large for
few rows.  Singular S needs λ > 0.

Axes: E outputs, D inputs, K inputs that remain, n places of the text.
"""
from typing import Any, NamedTuple

import numpy as np

from pyllama import machine
from pyllama.compression.parts import Kept
from pyllama.quantization.moments import Moments, product
from pyllama.quantization.passes import Rows, side_by_side


class Fit(NamedTuple):
    """A matrix that was refitted, and the errors E|W x - V y|² over E|W x|² before and after."""
    weight: np.ndarray                          # V, with zeros at the columns that left
    before: float
    after: float


@machine.one_blas_thread()
def repaired(p: dict, c: Any, kept: Kept, rows: Rows) -> dict[str, Fit]:
    """{name: fit} of the output matrices of the layers that stay.

    p       float32, each leaf with its own memory
    """
    columns = {f"model.layers.{i}.{name}.weight": mask for i in range(c.num_hidden_layers)
               for name, mask in kept.columns(i, c).items()}
    fits: dict[str, Fit] = {}

    def replacement(name, w, x, y):
        if name not in columns:
            return w
        if not columns[name].any():                     # of a layer that leaves, with its biases
            return None
        fits.setdefault(name, fitted(w, x, y, columns[name]))
        return fits[name].weight

    side_by_side(p, c, rows, replacement)
    return fits


def fitted(w: np.ndarray, x: np.ndarray, y: np.ndarray, stays: np.ndarray) -> Fit:
    """V of the columns that stay: w [E D], x and y [n D], stays bool [D].

    >>> import numpy as np
    >>> from pyllama.compression.repair import fitted
    >>> x = np.random.default_rng(0).standard_normal((4000, 2)) @ [[1, 0, 1], [0, 2, 2]]     # the third is their sum
    >>> fit = fitted(np.array([[1.0, 1.0, 1.0]]), x, x, np.array([True, True, False]))
    >>> fit.weight.round(1), round(fit.before, 2), round(fit.after, 2)
    (array([[2., 2., 0.]]), 0.25, 0.0)
    """
    v, target = np.where(stays, w, 0), x @ w.T
    y = y[:, stays]
    error = target - y @ v[:, stays].T
    moments = Moments(y.shape[1])
    moments.add(y)
    v[:, stays] += np.linalg.solve(moments.estimate(), product(y, error) / max(1, len(y))).T
    size = squared(target) or 1.0
    return Fit(v, squared(error) / size, squared(target - y @ v[:, stays].T) / size)


def squared(x: np.ndarray) -> float:
    """The sum of squares."""
    return float(np.square(x, dtype=np.float64).sum())
