"""Root-mean-square normalisation (Zhang & Sennrich, 2019, equation 4).

Forward     r = (mean_j x_j² + ε)^-½                          one number per row
            y_j = w_j x_j r

Backward    Let n = x r and g = w dy.  By the chain rule ∂r/∂x_j = -½ r³ · 2 x_j / D = -r³ x_j / D, so

            dx_j = Σ_i g_i ∂(x_i r)/∂x_j
                 = g_j r - r³ x_j (Σ_i g_i x_i) / D
                 = r (g_j - n_j mean(g n))                    w stands inside the mean: it differs from column to column
            dw_j = Σ_rows dy_j n_j

Saved       x, w, r.   n is recomputed: one multiply is cheaper than a store and a load.
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


rms_norm = op("x[... D], w[D] -> y[... D]", forward, backward, eps=between(1e-3, 1.0))
