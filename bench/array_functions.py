"""Correct functions of whole arrays, with their backward passes: reductions, products, losses, sorting.

See functions.py, where they are registered.
"""
import numpy as np

from bench.functions import binary, case, normal, pair, sigmoid, wide

# --- reductions and norms ---------------------------------------------------------------------------------------------

def rows(rng):
    return rng.standard_normal(tuple(int(n) for n in rng.choice([2, 3, 5, 8, 33], 2)))


def far_rows(rng):
    """Rows of a mean much larger than their deviation, of three numbers at least.

    Two numbers have a normalized difference of 2, wherever they are: the gradient is nothing but cancellation, and in
    float32 it has no digits.
    """
    return 30 + rng.standard_normal(tuple(int(n) for n in rng.choice([3, 5, 8, 33], 2)))


@case(rows)
def total(x):
    return x.sum(), lambda dy: (dy + np.zeros_like(x),)


@case(far_rows)
def mean(x):
    return x.mean(-1), lambda dy: (dy[..., None] / x.shape[-1] + np.zeros_like(x),)


@case(far_rows)
def variance(x):
    centered = x - x.mean(-1, keepdims=True)
    return (centered ** 2).mean(-1), lambda dy: (2 * centered * dy[..., None] / x.shape[-1],)


@case(rows)
def product(x):
    y = x.prod(-1)
    return y, lambda dy: ((dy * y)[..., None] / x,)


@case(rows)
def cumulative(x):
    return x.cumsum(-1), lambda dy: (dy[..., ::-1].cumsum(-1)[..., ::-1],)


@case(rows)
def largest(x):
    best = x.argmax(-1)[..., None]
    return np.take_along_axis(x, best, -1)[..., 0], lambda dy: (dy[..., None] * (np.arange(x.shape[-1]) == best),)


@case(lambda rng: np.round(2 * rows(rng)) / 2)
def largest_of_ties(x):
    return largest(x)


@case(rows)
def logsumexp(x):
    top = x.real.max(-1, keepdims=True)
    e = np.exp(x - top)
    return (np.log(e.sum(-1)) + top[..., 0]), lambda dy: (dy[..., None] * e / e.sum(-1, keepdims=True),)


@case(rows)
def norm(x):
    n = np.linalg.norm(x, axis=-1, keepdims=True)
    return n[..., 0], lambda dy: (dy[..., None] * x / n,)


@case(rows)
def unit(x):
    n = np.sqrt((x * x).sum(-1, keepdims=True))
    y = x / n
    return y, lambda dy: ((dy - y * (dy * y).sum(-1, keepdims=True)) / n,)


@case(rows)
def sum_of_abs(x):
    return np.abs(x).sum(-1), lambda dy: (dy[..., None] * np.sign(x),)


@case(far_rows)
def layer_norm(x):
    centered = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((centered ** 2).mean(-1, keepdims=True) + x.dtype.type(1e-5))
    n = centered * r
    return n, lambda dy: (r * (dy - dy.mean(-1, keepdims=True) - n * (dy * n).mean(-1, keepdims=True)),)


@case(rows)
def softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, lambda dy: (p * (dy - (p * dy).sum(-1, keepdims=True)),)


@case(rows)
def total_of_softmax(x):
    """1, whatever x is: its slope is nothing but rounding."""
    p, back = softmax(10 * x)
    return p.sum(-1), lambda dy: (10 * back(dy[..., None] + np.zeros_like(p))[0],)


@case(rows)
def log_softmax(x):
    shifted = x - x.real.max(-1, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return y, lambda dy: (dy - np.exp(y) * dy.sum(-1, keepdims=True),)


# --- products ---------------------------------------------------------------------------------------------------------

def matrices(rng):
    N, D, F = rng.choice([1, 2, 3, 5, 16], 3)
    return [normal(rng, N, D), normal(rng, D, F)]


@case(matrices)
def matmul(x, w):
    return x @ w, lambda dy: (dy @ w.T, x.T @ dy)


def heads(rng):
    T, S, K = rng.choice([1, 2, 3, 6], 3)
    return [normal(rng, 2, T, K), normal(rng, 2, S, K), normal(rng, 2, S, K)]


@case(heads)
def attention(q, k, v):
    scale = q.dtype.type(q.shape[-1] ** -0.5)
    p, back = softmax(scale * q @ k.swapaxes(1, 2))

    def backward(dy):
        d, = back(dy @ v.swapaxes(1, 2))
        return scale * d @ k, scale * d.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ dy
    return p @ v, backward


def hilbert(rng):
    n = int(rng.integers(2, 6))
    i = np.arange(n)
    return [1 / (1 + i + i[:, None]) * (1 + 0.01 * normal(rng, n, n)), normal(rng, n)]


@case(hilbert)
def ill_conditioned_solve(a, b):
    y = np.linalg.solve(a, b)

    def back(dy):
        db = np.linalg.solve(a.T, dy)
        return -db[:, None] * y, db
    return y, back


@case(lambda rng: normal(rng, 3, 3) + 3 * np.eye(3))
def log_determinant(a):
    return np.linalg.slogdet(a)[1], lambda dy: (dy * np.linalg.inv(a).T,)


# --- losses -----------------------------------------------------------------------------------------------------------

def labelled(rng):
    x = rows(rng)
    return [4 * x, rng.integers(0, x.shape[1], len(x))]


@case(labelled)
def cross_entropy(x, ids):
    y, back = log_softmax(x)
    picked = (np.arange(x.shape[1]) == ids[:, None]) / x.dtype.type(len(x))
    return -(picked * y).sum(), lambda dy: (back(-dy * picked)[0], None)


@case(pair)
def absolute_error(x, w):
    return binary(lambda x, w: np.abs(x - w), lambda x, w: np.sign(x - w), lambda x, w: np.sign(w - x))(x, w)


@case(wide)
def logistic_loss(x):
    return np.logaddexp(0, -x), lambda dy: (-dy * sigmoid(-x),)


# --- moved, sorted, gathered ------------------------------------------------------------------------------------------

@case(rows)
def sort(x):
    order = x.argsort(-1)
    return np.take_along_axis(x, order, -1), lambda dy: (np.take_along_axis(dy, order.argsort(-1), -1),)


@case(rows)
def median(x):
    order = x.argsort(-1)[..., (x.shape[-1] - 1) // 2][..., None]
    return np.take_along_axis(x, order, -1)[..., 0], lambda dy: (dy[..., None] * (np.arange(x.shape[-1]) == order),)


@case(lambda rng: [rows(rng), rng.integers(0, 2, 7)])
def gather(x, ids):
    def back(dy):
        dx = np.zeros_like(x, dtype=dy.dtype)
        np.add.at(dx, ids, dy)
        return dx, None
    return x[ids], back


@case(lambda rng: [normal(rng, 7, 3), rng.integers(0, 4, 7)])
def scatter(x, ids):
    y = np.zeros((4, 3), x.dtype)
    np.add.at(y, ids, x)
    return y, lambda dy: (dy[ids], None)


@case(rows)
def flipped_and_transposed(x):
    return x[::-1].T, lambda dy: (dy.T[::-1],)


@case(rows)
def lower_triangle(x):
    return np.tril(x), lambda dy: (np.tril(dy),)


@case(lambda rng: [normal(rng, 2, 9), normal(rng, 3)])
def convolution(x, w):
    windows = np.lib.stride_tricks.sliding_window_view(x, len(w), -1)

    def back(dy):
        dx = sum(np.pad(dy, ((0, 0), (i, len(w) - 1 - i))) * w[i] for i in range(len(w)))
        return dx, np.einsum("nt,ntk->k", dy, windows)
    return windows @ w, back


@case(lambda rng: normal(rng, 3, 8))
def largest_of_windows(x):
    best = x.reshape(3, 4, 2).argmax(-1)[..., None]
    hot = np.arange(2) == best
    return (x.reshape(3, 4, 2) * hot).sum(-1), lambda dy: ((dy[..., None] * hot).reshape(3, 8),)


@case(rows)
def two_outputs(x):
    return (np.sin(x), (x * x).sum()), lambda dy: (np.cos(x) * dy[0] + 2 * x * dy[1],)
