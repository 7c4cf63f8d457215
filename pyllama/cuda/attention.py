"""Attention and its backward pass; see csrc/cuda/attention.cu."""
import cupy

from pyllama import cuda_text
from pyllama.cuda.launching import THREADS, aligned, dense, launch

BUSY = 256                                              # blocks: enough to occupy a device


def attention(q, k, v, mask=None, segments=None, bias=None, *, causal=False, window=None, scale=None, softcap=None):
    if (mask is not None and mask.ndim == 3) or any(x is not None for x in (segments, bias, scale, softcap)):
        return NotImplemented
    if q.shape[-1] > cuda_text.WIDTHS[-1]:                # a thread has too few registers for wider heads
        return NotImplemented
    (q, k, v), (B, G, R, T, K), S = with_rows(q, k, v), q.shape, k.shape[2]
    y, lse = new_heads(q), cupy.empty((B, G, R * T, 1), q.dtype)
    seen, tiles = seen_keys(T, S, mask, causal, window), tiled(q, k, v)
    if R * T <= 16:                                     # decoding: the smallest tile
        tiles["EACH"] = 1
    blocks, shift = query_tiles(q, **tiles)
    splits = max(1, min(BUSY // max(1, blocks), min(S, T + seen[1] + seen[2]) // 128))      # at least 128 keys each
    parts = [a if splits == 1 else cupy.empty((splits, a.size), a.dtype) for a in (y, lse)]
    launch("attention", blocks * splits, *parts, q, k, v, *seen, B, G, R, T, S, K, shift, splits,
           *steps(q), *steps(k), *steps(v), threads=128, **tiles)
    if splits > 1:
        launch("attention_join", warps(lse.size), y, lse, *parts, lse.size, G * R, T, K, splits, file="attention",
               **tiles)
    return y, (q, k, v, mask, segments, bias, y, lse)


def attention_backward(dy, q, k, v, mask, segments, bias, y, lse, *, causal=False, window=None, scale=None,
                       softcap=None):
    (dy, q, k, v, y), (lse,), (B, G, R, T, K), S = with_rows(dy, q, k, v, y), dense(lse), q.shape, k.shape[2]
    dq, dk, dv, delta = new_heads(q), new_heads(k), new_heads(v), cupy.empty_like(lse)
    seen, tiles = seen_keys(T, S, mask, causal, window), tiled(q, k, v, dy)
    common = {"file": "attention_backward", **tiles}
    launch("attention_delta", warps(lse.size), delta, dy, y, lse.size, G, R, T, K, *steps(dy), *steps(y), **common)
    inputs, sizes = (dy, q, k, v, lse, delta, *seen), (G, R, T, S, K)
    strides = *steps(dy), *steps(q), *steps(k), *steps(v)
    blocks, shift = query_tiles(q, **tiles)
    launch("attention_backward_q", blocks, dq, *inputs, *sizes, shift, *strides, threads=128, **common)
    blocks = B * G * -(-S // (16 * tiles["EACH"]))
    launch("attention_backward_kv", blocks, dk, dv, *inputs, *sizes, *strides, threads=128, **common)
    return dq, dk, dv, None, None, None


def with_rows(*arrays):
    """Each array itself if its last axis is contiguous, whatever the other strides; otherwise a dense copy."""
    return [a if a.strides[-1] == a.itemsize else cupy.ascontiguousarray(a) for a in arrays]


def new_heads(x):
    """A new array of the shape of x whose memory has the order [B T heads K]: the model merges heads without a copy."""
    B, *heads, T, K = x.shape
    return cupy.moveaxis(cupy.empty((B, T, *heads, K), x.dtype), 1, -2)


def steps(x):
    """The strides of all axes but the last, in numbers, not bytes."""
    return [n // x.itemsize for n in x.strides[:-1]]


def seen_keys(T, S, mask, causal, window):
    """(mask or null pointer, behind, ahead): a query sees keys from `behind` before it to `ahead` after it."""
    far = T + S if window is None else min(window - 1, T + S)
    return 0 if mask is None else cupy.ascontiguousarray(mask != 0), far, 0 if causal else far


def tiled(q, *others):
    """The macros of tile.cuh for these arrays."""
    K = q.shape[-1]
    width = next(width for width in cuda_text.WIDTHS if width >= K)
    flat = all(n % 16 == 0 for a in (q, *others) for n in a.strides[:-1])
    return {"WIDTH": width, "EACH": cuda_text.rows_of_a_thread(width, q.itemsize),
            "ALIGNED": int(flat and aligned(K, q, *others))}


def query_tiles(q, *, EACH, **others):
    """(blocks, shift): the number of blocks, and the log2 of the query positions in each."""
    B, G, R, T, _ = q.shape
    shift = min(max(T - 1, 0).bit_length(), (16 * EACH).bit_length() - 1)
    heads = 16 * EACH >> shift
    return B * G * -(-R // heads) * -(-T >> shift), shift


def warps(n):
    """The number of blocks that have one warp for each of n rows."""
    return -(-n // (THREADS // 32))
