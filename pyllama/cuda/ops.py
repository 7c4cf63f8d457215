"""The ops that have kernels, except attention, in alphabetical order."""
from functools import lru_cache

import cupy
import numpy as np

from pyllama import cuda_text
from pyllama.cuda.launching import THREADS, aligned, dense, elementwise, launch, number, threads_for
from pyllama.rng import generator
from pyllama.rotary import items, tables

SHARES = 512                                            # groups of rows with a partial sum each, added in order: four
                                                        # blocks for each multiprocessor of a large device


def indices(a):
    """The ids as C-contiguous int64, the integer type of the kernels."""
    return cupy.ascontiguousarray(a, dtype=np.int64)


# --- add_rms_norm -----------------------------------------------------------------------------------------------------

def add_rms_norm(x, a, w, *, eps=1e-5):
    (x, a, w), D = dense(x, a, w), w.size
    s, y, r = cupy.empty_like(x), cupy.empty_like(x), cupy.empty((*x.shape[:-1], 1), x.dtype)
    launch("add_rms_norm", r.size, s, y, r, x, a, w, float(eps), D, aligned(D, s, y, x, a, w),
           threads=threads_for(D, x))
    return (s, y), (s, w, r)


def add_rms_norm_backward(dys, s, w, r, *, eps=None):
    (ds, dy, s, w, r), N, D = dense(*dys, s, w, r), r.size, w.size
    dx, parts = cupy.empty_like(s), cupy.empty((min(N, SHARES), D), s.dtype)
    launch("add_rms_norm_backward", len(parts), dx, parts, ds, dy, s, w, r, N, D, aligned(D, dx, parts, ds, dy, s, w),
           threads=threads_for(D, s))
    return dx, dx, parts.sum(axis=0)


# --- cross_entropy ----------------------------------------------------------------------------------------------------

def denominator(t, ignore_index, count, dtype):
    """C, as a 0-d array on the device: `count`, or the number of targets that are not ignored, at least 1."""
    return cupy.maximum(number((t != ignore_index).sum() if count is None else count, dtype), 1)


def cross_entropy(z, t, *, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, count=None):
    (z,), t, (N, V) = dense(z), indices(t), z.shape
    lse, losses = cupy.empty((N, 1), z.dtype), cupy.empty(N, z.dtype)
    launch("cross_entropy", N, lse, losses, z, t, ignore_index, float(label_smoothing), float(z_loss), V,
           aligned(V, z), threads=threads_for(V, z))
    return losses.sum() / denominator(t, ignore_index, count, z.dtype), (z, t, lse)


def cross_entropy_backward(dloss, z, t, lse, *, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, count=None):
    (z, lse), t, (N, V) = dense(z, lse), indices(t), z.shape
    dz, scale = cupy.empty_like(z), number(dloss / denominator(t, ignore_index, count, z.dtype), z.dtype)
    launch("cross_entropy_backward", N, dz, z, t, lse, scale, ignore_index, float(label_smoothing), float(z_loss), V,
           aligned(V, dz, z), threads=threads_for(V, z))
    return dz, None


# --- dropout ----------------------------------------------------------------------------------------------------------

DRAWS = 8                                               # a thread draws: a block of Philox


def dropped(x, rate, key, start):
    """Drop and scale: the forward pass on x and, with the same random numbers, the backward pass on dy."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate is {rate}; it must lie in 0 <= rate < 1")
    (x,), n = dense(x), x.size
    y, words = cupy.empty_like(x), generator(*key).bit_generator.state["state"]["key"].view(np.int64).tolist()
    # A draw is 24 bits / 2^24, a float32; compared with a Python float, NumPy rounds that to float32 first.
    limit, blocks = int(np.ceil(np.float32(2 ** 24) * rate)), n and -(-(n + start % DRAWS) // (DRAWS * THREADS))
    launch("dropout", blocks, y, x, float(1 / (1 - rate)), limit, start, *words, n,
           0 if start % DRAWS else aligned(n, y, x))
    return y


def dropout(x, *, rate=0.1, key=(0,), start=0):
    return dropped(x, rate, key, start), ()


def dropout_backward(dy, *, rate=0.1, key=(0,), start=0):
    return (dropped(dy, rate, key, start),)


# --- embedding --------------------------------------------------------------------------------------------------------

def embedding(ids, w):
    ids, (w,), (V, D) = indices(ids), dense(w), w.shape
    y = cupy.empty((*ids.shape, D), w.dtype)
    launch("embedding", ids.size, y, ids, w, D, V, aligned(D, y, w), threads=threads_for(D, w))
    return y, (ids, w)


def embedding_backward(dy, ids, w):
    return embedding_backward_into(dy, ids, w, into={})


def embedding_backward_into(dy, ids, w, *, into):
    """Add dw to into[1] if that is C-contiguous; otherwise return a new dw.  None for ids: dw is not wanted."""
    if ids is None:
        return None, None
    ids, (dy,), (V, D) = indices(ids).ravel(), dense(dy), w.shape
    dw = into.get(1)
    if dw is None or not dw.flags.c_contiguous:
        dw = cupy.zeros((V, D), w.dtype)
    if ids.size:
        order, threads = cupy.argsort(ids, kind="stable"), threads_for(D, dw)
        ids = ids[order]
        pieces = -(-D * dw.itemsize // (16 * threads))
        launch("embedding_backward", ids.size * pieces, dw, dy, order, ids, cupy.searchsorted(ids, ids, side="right"),
               D, V, aligned(D, dw, dy), threads=threads)
    return None, dw


# --- gelu -------------------------------------------------------------------------------------------------------------

def gelu(x, *, tanh=False):
    (x,) = dense(x)
    (y,) = elementwise("gelu", [cupy.empty_like(x)], [x], int(tanh))
    return y, (x,)


def gelu_backward(dy, x, *, tanh=False):
    return tuple(elementwise("gelu_backward", [cupy.empty_like(x)], dense(dy, x), int(tanh)))


# --- layer_norm -------------------------------------------------------------------------------------------------------

def layer_norm(x, w, b, *, eps=1e-5):
    (x, w, b), D = dense(x, w, b), w.size
    y, n, r = cupy.empty_like(x), cupy.empty_like(x), cupy.empty((*x.shape[:-1], 1), x.dtype)
    launch("layer_norm", r.size, y, n, r, x, w, b, float(eps), D, aligned(D, y, n, x, w, b), threads=threads_for(D, x))
    return y, (n, w, r)


def layer_norm_backward(dy, n, w, r, *, eps=None):
    (dy, n, w, r), N, D = dense(dy, n, w, r), r.size, w.size
    dx, (dws, dbs) = cupy.empty_like(n), cupy.empty((2, min(N, SHARES), D), n.dtype)
    launch("layer_norm_backward", len(dws), dx, dws, dbs, dy, n, w, r, N, D, aligned(D, dx, dws, dbs, dy, n, w),
           threads=threads_for(D, n))
    return dx, dws.sum(axis=0), dbs.sum(axis=0)


# --- linear_cross_entropy ---------------------------------------------------------------------------------------------

def linear_cross_entropy(x, w, t, *, chunk=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, count=None,
                         into=None):
    (x, w), t, N, V = dense(x, w), indices(t), len(x), len(w)
    C, losses = denominator(t, ignore_index, count, x.dtype), cupy.empty(N, x.dtype)
    scale, dx, dw = 1 / C, cupy.empty_like(x), cupy.zeros_like(w) if into is None else into[1]
    chunk = chunk or max(1, cuda_text.LOGITS // (V * x.itemsize))
    logits = cupy.empty((min(chunk, N), V), x.dtype)
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        z = cupy.matmul(x[rows], w.T, out=logits[:N - start])
        launch("linear_cross_entropy", len(z), losses[rows], z, t[rows], scale, ignore_index, float(label_smoothing),
               float(z_loss), V, aligned(V, z), threads=threads_for(V, z))
        cupy.matmul(z, w, out=dx[rows])
        if dw is not None:
            dw += z.T @ x[rows]
    return losses.sum() / C, (dx, dw if into is None else None)


def linear_cross_entropy_backward(dloss, dx, dw, **options):
    dloss = number(dloss, dx.dtype)
    return dx * dloss, None if dw is None else dw * dloss, None


# --- relu -------------------------------------------------------------------------------------------------------------

def relu(x):
    (x,) = dense(x)
    (y,) = elementwise("relu", [cupy.empty_like(x)], [x])
    return y, (x,)


def relu_backward(dy, x):
    return tuple(elementwise("relu_backward", [cupy.empty_like(x)], dense(dy, x)))


# --- rms_norm ---------------------------------------------------------------------------------------------------------

def rms_norm(x, w, *, eps=1e-5):
    (x, w), D = dense(x, w), w.size
    y, r = cupy.empty_like(x), cupy.empty((*x.shape[:-1], 1), x.dtype)
    launch("rms_norm", r.size, y, r, x, w, float(eps), D, aligned(D, y, x, w), threads=threads_for(D, x))
    return y, (x, w, r)


def rms_norm_backward(dy, x, w, r, *, eps=None):
    (dy, x, w, r), N, D = dense(dy, x, w, r), r.size, w.size
    dx, parts = cupy.empty_like(x), cupy.empty((min(N, SHARES), D), x.dtype)
    launch("rms_norm_backward", len(parts), dx, parts, dy, x, w, r, N, D, aligned(D, dx, parts, dy, x, w),
           threads=threads_for(D, x))
    return dx, parts.sum(axis=0)


# --- rope -------------------------------------------------------------------------------------------------------------

@lru_cache(maxsize=8)
def tables_from_zero(T, P, base, scaling, dtype, device):
    """cos, sin [T P] of the first positions, on the device."""
    return [cupy.asarray(table) for table in tables(T, P, base, 0, dict(scaling), dtype)]


def rotate(x, cos, sin, direction, interleaved):
    """Rotate pairs of x [... T 2*P].  As on the CPU, a view [A H T K] of memory [A T H K] is not copied."""
    (cos, sin), (T, P) = dense(cos, sin), cos.shape
    if x.ndim == 4 and x.strides[1] < x.strides[2] and x.strides[3] == x.itemsize:
        A, H = x.shape[:2]
        steps = [x.strides[axis] // x.itemsize for axis in (0, 2, 1)]
        y = cupy.empty((A, T, H, 2 * P), x.dtype).swapaxes(1, 2)
    else:
        (x,), A, H, steps = dense(x), x.size // max(2 * P * T, 1), 1, [2 * P * T, 2 * P, 0]
        y = cupy.empty_like(x)
    steps_aligned = int(all(step * x.itemsize % 16 == 0 for step in steps))
    launch("rope", A * T, y, x, cos, sin, direction, int(interleaved), T, H, P, *steps,
           steps_aligned and aligned(P, y, x, cos, sin), threads=threads_for(H * P, x))
    return y


def rope(x, *, base=10000.0, start=0, interleaved=False, scaling=None):
    """The tables have a power of two of positions and are cached, so generating a token seldom needs new ones."""
    T, K = x.shape[-2:]
    length = 1 << (start + T - 1).bit_length() if T else 0
    cached = tables_from_zero(length, K // 2, base, items(scaling), x.dtype, cupy.cuda.runtime.getDevice())
    cos, sin = (table[start:start + T] for table in cached)
    return rotate(x, cos, sin, 1.0, interleaved), (cos, sin)


def rope_backward(dy, cos, sin, *, base=None, start=None, interleaved=False, scaling=None):
    return (rotate(dy, cos, sin, -1.0, interleaved),)


# --- softmax ----------------------------------------------------------------------------------------------------------

def softmax(x):
    (x,), D = dense(x), x.shape[-1]
    y = cupy.empty_like(x)
    launch("softmax", x.size // max(D, 1), y, x, D, aligned(D, y, x), threads=threads_for(D, x))
    return y, (y,)


def softmax_backward(dy, y):
    (dy, y), D = dense(dy, y), y.shape[-1]
    dx = cupy.empty_like(y)
    launch("softmax_backward", y.size // max(D, 1), dx, dy, y, D, aligned(D, dx, dy, y), threads=threads_for(D, y))
    return (dx,)


# --- swiglu -----------------------------------------------------------------------------------------------------------

def swiglu(g, u):
    g, u = dense(g, u)
    (y,) = elementwise("swiglu", [cupy.empty_like(g)], [g, u])
    return y, (g, u)


def swiglu_backward(dy, g, u):
    return tuple(elementwise("swiglu_backward", [cupy.empty_like(g), cupy.empty_like(u)], dense(dy, g, u)))
