"""Attention and its backward pass; see csrc/cuda/attention.cu."""
import cupy

from pyllama import cuda_text
from pyllama.cuda.launching import THREADS, aligned, dense, launch

BUSY = 256                                              # blocks: enough to occupy a device


def attention(q, k, v, mask=None, segments=None, bias=None, *, causal=False, window=None, scale=None, softcap=None):
    if q.shape[-1] > cuda_text.WIDTHS[-1]:                # a thread has too few registers for wider heads
        return NotImplemented
    if softcap is not None and not softcap > 0:             # the reference says so
        return NotImplemented
    saved = q, k, v, mask, segments, bias
    (q, k, v), (B, G, R, T, K), S = with_rows(q, k, v), q.shape, k.shape[2]
    y, lse = new_heads(q), cupy.empty((B, G, R * T, 1), q.dtype)
    seen, tiles = seen_keys(T, S, mask, causal, window), tiled(q, k, v)
    extra, tiles = extras(q, tiles, mask, segments, bias, None, scale, softcap)
    if R * T <= 16 and not extra:                       # decoding: the smallest tile
        tiles["EACH"] = 1
    blocks, shift = query_tiles(q, **tiles)
    splits = max(1, min(BUSY // max(1, blocks), min(S, T + seen[1] + seen[2]) // 128))      # at least 128 keys each
    parts = [a if splits == 1 else cupy.empty((splits, a.size), a.dtype) for a in (y, lse)]
    launch("attention", blocks * splits, *parts, q, k, v, *seen, B, G, R, T, S, K, shift, splits,
           *steps(q), *steps(k), *steps(v), *extra, threads=128, **tiles)
    if splits > 1:
        launch("attention_join", warps(lse.size), y, lse, *parts, lse.size, G * R, T, K, splits, file="attention",
               **tiles)
    return y, (*saved, y, lse)


def attention_backward(dy, q, k, v, mask, segments, bias, y, lse, *, causal=False, window=None, scale=None,
                       softcap=None):
    (dy, q, k, v, y), (lse,), (B, G, R, T, K), S = with_rows(dy, q, k, v, y), dense(lse), q.shape, k.shape[2]
    dq, dk, dv, delta = new_heads(q), new_heads(k), new_heads(v), cupy.empty_like(lse)
    dbias = None if bias is None else cupy.zeros((B, G * R, T, S), q.dtype)                 # shared ones are summed
    seen, tiles = seen_keys(T, S, mask, causal, window), tiled(q, k, v, dy)
    extra, tiles = extras(q, tiles, mask, segments, bias, dbias, scale, softcap)
    common = {"file": "attention_backward", **tiles}
    launch("attention_delta", warps(lse.size), delta, dy, y, lse.size, G, R, T, K, *steps(dy), *steps(y), **common)
    inputs, sizes = (dy, q, k, v, lse, delta, *seen), (G, R, T, S, K)
    strides = *steps(dy), *steps(q), *steps(k), *steps(v)
    blocks, shift = query_tiles(q, **tiles)
    launch("attention_backward_q", blocks, dq, *inputs, *sizes, shift, *strides, *extra, threads=128, **common)
    blocks = B * G * -(-S // (16 * tiles["EACH"]))
    launch("attention_backward_kv", blocks, dk, dv, *inputs, *sizes, *strides, *extra, threads=128, **common)
    if bias is not None:
        dbias = dbias.sum(axis=tuple(axis for axis in (0, 1) if bias.shape[axis] == 1), keepdims=True)
    return dq, dk, dv, None, None, dbias


def extras(q, tiles, mask, segments, bias, dbias, scale, softcap):
    """(the kernels' last arguments, tiles with EXTRA); () and tiles where nothing asks for them: see tile.cuh."""
    pairs = mask is not None and mask.ndim == 3
    if not pairs and all(x is None for x in (segments, bias, scale, softcap)):
        return (), tiles
    T, S = q.shape[3], 0 if mask is None else mask.shape[-1]
    keys, queries = (0, 0) if segments is None else documents(segments.astype(cupy.int64), T)
    added, bias_b, bias_h = (0, 0, 0) if bias is None else (cupy.ascontiguousarray(bias), *shared_steps(bias))
    mask_b, mask_t = (T * S, S) if pairs else (S, 0)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return (keys, queries, added, 0 if dbias is None else dbias, mask_b, mask_t, bias_b, bias_h, factor,
            float(softcap or 0)), tiles | {"EACH": cuda_text.rows_of_a_thread(tiles["WIDTH"], q.itemsize, extra=True),
                                           "EXTRA": 1}


def documents(segments, T):
    """The segments of the keys [B S] and of the queries [B T]; a query before the first key has none, which is -1."""
    B, S = segments.shape
    if T <= S:
        return cupy.ascontiguousarray(segments), cupy.ascontiguousarray(segments[:, S - T:])
    keys = segments - segments.min() if S and B else segments
    queries = cupy.full((B, T), -1, cupy.int64)
    queries[:, T - S:] = keys
    return keys, queries


def shared_steps(bias):
    """The strides of the axes B and H of a dense bias [B|1 H|1 T S], in numbers; 0 along those that are shared."""
    B, H, T, S = bias.shape
    return H * T * S if B > 1 else 0, T * S if H > 1 else 0


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
