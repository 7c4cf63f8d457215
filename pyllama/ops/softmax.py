"""Softmax over the last axis (Bridle, 1990), and the log-sum-exp that attention and cross-entropy share.

Forward     m = max_j x_j              lse = m + log Σ_j exp(x_j - m)          no exponent above 0: no overflow
            y_j = exp(x_j - lse)

            An entry of -∞ has y_j = 0.  A row of nothing but -∞ sees nothing: lse is set to 0, so that y = 0.

Backward    From log y_i = x_i - lse and ∂lse/∂x_j = y_j:   ∂y_i/∂x_j = y_i (δ_ij - y_j), so

            dx_j = Σ_i dy_i y_i (δ_ij - y_j)  =  y_j (dy_j - Σ_i dy_i y_i)

Saved       y.
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
