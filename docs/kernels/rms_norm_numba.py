"""RMSNorm compiled by numba, and whether it is right:

    pyllama verify docs/kernels/rms_norm_numba.py:rms_norm --op rms_norm
"""
import numba
import numpy as np


@numba.njit
def forward(x, w, y, eps):
    N, D = x.shape
    for n in range(N):
        squares = 0.0
        for d in range(D):
            squares += x[n, d] * x[n, d]
        r = 1 / np.sqrt(squares / D + eps)
        for d in range(D):
            y[n, d] = w[d] * x[n, d] * r


@numba.njit
def backward(dy, x, w, dx, dw, eps):
    N, D = x.shape
    for n in range(N):
        squares, gx = 0.0, 0.0
        for d in range(D):
            squares += x[n, d] * x[n, d]
            gx += w[d] * dy[n, d] * x[n, d]
        r = 1 / np.sqrt(squares / D + eps)
        for d in range(D):
            dx[n, d] = r * (w[d] * dy[n, d] - x[n, d] * r * r * gx / D)
            dw[d] += dy[n, d] * x[n, d] * r


def rows(x):
    """x [... D] as contiguous rows [N D]: numba compiles once more for every other layout."""
    return np.require(x.reshape(-1, x.shape[-1]), requirements=["C", "W", "A"])


def rms_norm(x, w, *, eps=1e-5):
    x2, w1, y = rows(x), rows(w)[0], np.empty(x.shape, x.dtype)
    forward(x2, w1, rows(y), eps)

    def back(dy):
        dx, dw = np.empty_like(x2), np.zeros_like(w1)
        backward(rows(dy), x2, w1, dx, dw, eps)
        return dx.reshape(x.shape), dw

    return y, back
