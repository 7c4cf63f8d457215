"""Layer normalisation (Ba, Kiros & Hinton, 2016).

Forward     c = x - mean(x)        r = (mean(c²) + ε)^-½       one number per row
            n = c r                y = w n + b

Backward    Let g = w dy, the gradient of n.  From n_i = c_i r and ∂r/∂c_j = -r³ c_j / D,

            dc_j = g_j r - r³ c_j (Σ_i g_i c_i) / D  =  r (g_j - n_j mean(g n))

            c = x - mean(x) subtracts the mean, a symmetric projection, and so does its transpose.  The mean of n is
            zero, so only g has a mean to lose:

            dx = dc - mean(dc)  =  r (g - mean(g) - n mean(g n))
            dw = Σ_rows dy n           db = Σ_rows dy

Saved       n, w, r.
"""
import numpy as np

from pyllama.op import between, op


def forward(x, w, b, *, eps=1e-5):
    c = x - np.mean(x, axis=-1, keepdims=True)
    r = (np.mean(c * c, axis=-1, keepdims=True) + eps) ** -0.5
    n = c * r
    return w * n + b, (n, w, r)


def backward(dy, n, w, r, *, eps=1e-5):
    g, rows = w * dy, tuple(range(dy.ndim - 1))
    dx = r * (g - np.mean(g, axis=-1, keepdims=True) - n * np.mean(g * n, axis=-1, keepdims=True))
    return dx, np.sum(dy * n, axis=rows), np.sum(dy, axis=rows)


layer_norm = op("x[... D], w[D], b[D] -> y[... D]", forward, backward, eps=between(1e-3, 1.0))
