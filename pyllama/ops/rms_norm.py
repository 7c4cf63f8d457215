"""Root-mean-square normalization (Zhang & Sennrich, 2019, equation 4).

Arrays      x [... D], w [D] in; y [... D] out; all float32 or all float64.
            A row is one vector of length D.
Options     eps=1e-5: ε, which keeps a row of zeros from dividing by zero.

Forward     r = (mean_j x_j² + ε)^-½                          one number per row
            n_j = x_j r
            y_j = w_j n_j

Backward    g_j = w_j dy_j                                the gradient of n_j

            By the chain rule:

            ∂r/∂x_j = -½ r³ · 2 x_j / D = -r³ x_j / D

            dx_j = Σ_i g_i ∂(x_i r)/∂x_j
                 = g_j r - r³ x_j (Σ_i g_i x_i) / D
                 = r (g_j - n_j mean_i g_i n_i)
            dw_j = Σ_rows dy_j n_j

            w stays inside the mean, because it differs from column to column.

Saved       x, w, r.  n is recomputed: one multiplication costs less than a
            store and a load.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     The mean square of (1, 7) is 25, so r is 1/5.

            >>> import numpy as np
            >>> from pyllama.ops import rms_norm
            >>> x, w = np.array([1.0, 7.0]), np.array([1.0, 2.0])
            >>> y, back = rms_norm(x, w)
            >>> y.round(4)
            array([0.2, 2.8])
            >>> dx, dw = back(np.array([1.0, 0.0]))
            >>> dx.round(4)
            array([ 0.196, -0.028])
            >>> dw.round(4)
            array([0.2, 0. ])
"""
import numpy as np

from pyllama.op import between, op


def forward(x, w, *, eps=1e-5):
    r = (np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5
    return w * x * r, (x, w, r)


def backward(dy, x, w, r, *, eps=1e-5):
    n, g = x * r, w * dy
    dx = r * (g - n * np.mean(g * n, axis=-1, keepdims=True))
    dw = np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))
    return dx, dw


rms_norm = op("x[... D], w[D] -> y[... D]", forward, backward, weights=("w",), eps=between(1e-3, 1.0))
