"""Five kernels compiled by numba, each with a hand-written backward pass."""
import math

import numba
import numpy as np

from bench.checkers.third_party_case import Case, between, normal


@numba.njit
def rms_norm(x, w):
    y = np.empty_like(x)
    for n in range(x.shape[0]):
        r = 1 / math.sqrt((x[n] ** 2).mean() + 1e-3)
        for d in range(x.shape[1]):
            y[n, d] = w[d] * x[n, d] * r
    return y


@numba.njit
def rms_norm_backward(dy, x, w):
    dx, dw = np.empty_like(x), np.zeros_like(w)
    for n in range(x.shape[0]):
        r = 1 / math.sqrt((x[n] ** 2).mean() + 1e-3)
        mean = (dy[n] * w * x[n]).mean() * r * r
        for d in range(x.shape[1]):
            dx[n, d] = r * (w[d] * dy[n, d] - x[n, d] * mean)
            dw[d] += dy[n, d] * x[n, d] * r
    return dx, dw


@numba.njit(["float64[:,::1](float64[:,::1])"])
def softmax(x):
    """Compiled for one type: other precisions and layouts are refused."""
    y = np.empty_like(x)
    for n in range(x.shape[0]):
        e = np.exp(x[n] - x[n].max())
        y[n] = e / e.sum()
    return y


@numba.njit(["float64[:,::1](float64[:,::1], float64[:,::1])"])
def softmax_backward(dy, x):
    y = softmax(x)
    for n in range(x.shape[0]):
        y[n] *= dy[n] - (y[n] * dy[n]).sum()
    return y


@numba.njit
def silu(x):
    return x / (1 + np.exp(-x))


@numba.njit
def silu_backward(dy, x):
    s = 1 / (1 + np.exp(-x))
    return dy * s * (1 + x * (1 - s))


@numba.njit
def causal_mean(x):
    """The mean of x[0], ..., x[t] for each t."""
    y = np.empty_like(x)
    total = np.zeros_like(x[0])
    for t in range(x.shape[0]):
        total += x[t]
        y[t] = total / (t + 1)
    return y


@numba.njit
def causal_mean_backward(dy, x):
    dx = np.empty_like(x)
    total = np.zeros_like(x[0])
    for t in range(x.shape[0] - 1, -1, -1):
        total += dy[t] / (t + 1)
        dx[t] = total
    return dx


@numba.njit
def squared_distances(x, y):
    z = np.empty((x.shape[0], y.shape[0]), x.dtype)
    for i in range(x.shape[0]):
        for j in range(y.shape[0]):
            z[i, j] = ((x[i] - y[j]) ** 2).sum()
    return z


@numba.njit
def squared_distances_backward(dz, x, y):
    dx, dy = np.zeros_like(x), np.zeros_like(y)
    for i in range(x.shape[0]):
        for j in range(y.shape[0]):
            dx[i] += 2 * dz[i, j] * (x[i] - y[j])
            dy[j] -= 2 * dz[i, j] * (x[i] - y[j])
    return dx, dy


KERNELS = [
    ("rms_norm", rms_norm, rms_norm_backward, [normal(3, 5), between(0.5, 2, 5)]),
    ("softmax", softmax, softmax_backward, [normal(3, 5)]),
    ("silu", silu, silu_backward, [normal(3, 5)]),
    ("causal_mean", causal_mean, causal_mean_backward, [normal(4, 3)]),
    ("squared_distances", squared_distances, squared_distances_backward, [normal(3, 4), normal(2, 4)]),
]


def cases():
    for name, forward, backward, inputs in KERNELS:
        yield Case(name, forward, inputs, options={"backward": backward})
