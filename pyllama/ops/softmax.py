"""Softmax over the last axis (Bridle, 1990).

Arrays      x [... D] in; y [... D] out; float32 or float64.  A row is one
            vector of length D.  Attention and cross-entropy use the same
            log_sum_exp.

Forward     m = max_j x_j
            lse = m + log Σ_j exp(x_j - m)
            y_j = exp(x_j - lse)

            No exponent is above 0, so nothing overflows.  The y of an entry
            of -∞ is 0.  If a whole row is -∞, its lse is set to 0, so that
            its y is 0.

Backward    δ_ij is 1 where i and j are equal and 0 elsewhere.

            log y_i = x_i - lse
            ∂lse/∂x_j = y_j
            ∂y_i/∂x_j = y_i (δ_ij - y_j)

            dx_j = Σ_i dy_i y_i (δ_ij - y_j)
                 = y_j (dy_j - Σ_i dy_i y_i)

Saved       y.

Raises      TypeError: x or dy not floating.

Example     exp x is (1, 3), so y is (1/4, 3/4).

            >>> import numpy as np
            >>> from pyllama.ops import softmax
            >>> y, back = softmax(np.log([1.0, 3.0]))
            >>> y.round(4)
            array([0.25, 0.75])
            >>> dx, = back(np.array([1.0, 0.0]))
            >>> dx.round(4)
            array([ 0.1875, -0.1875])

            Masked entries are -∞:

            >>> y, back = softmax(np.array([0.0, -np.inf]))
            >>> y
            array([1., 0.])
"""
import numpy as np

from pyllama.op import op


def log_sum_exp(x):
    """log Σ_j exp x_j of each row, the row axis kept; 0 for a row without a finite entry."""
    m = np.max(x.real, axis=-1, keepdims=True) if x.shape[-1] else np.zeros_like(x.real, shape=(*x.shape[:-1], 1))
    m = np.where(m > -np.inf, m, 0)
    total = np.sum(np.exp(x - m), axis=-1, keepdims=True)
    return m + np.log(np.where(total == 0, 1, total))


def forward(x):
    y = np.exp(x - log_sum_exp(x))
    return y, (y,)


def backward(dy, y):
    return (y * (dy - np.sum(dy * y, axis=-1, keepdims=True)),)


softmax = op("x[... D] -> y[... D]", forward, backward)
