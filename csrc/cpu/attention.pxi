cdef np.ndarray with_rows(a, np.ndarray like):
    """a itself if its last axis is contiguous, whatever the other strides; otherwise a dense copy.

    Raises TypeError unless its precision is that of `like`.
    """
    cdef np.ndarray x = np.asarray(a)
    if np.PyArray_TYPE(x) != np.PyArray_TYPE(like):
        raise TypeError(f"mixed precision: {x.dtype} and {like.dtype}; convert one")
    cdef bint in_place = np.PyArray_ISBEHAVED_RO(x) and x.strides[x.ndim - 1] == x.itemsize
    for i in range(x.ndim):
        in_place = in_place and x.strides[i] % x.itemsize == 0
    return x if in_place else dense(x, like)


cdef heads heads_of(np.ndarray x):
    """The address and the strides, in numbers, of heads [B G R T K] or [B G S K]."""
    cdef idx size = x.itemsize, r = x.strides[2] // size if x.ndim == 5 else 0
    return heads(x.data, x.strides[0] // size, x.strides[1] // size, r, x.strides[x.ndim - 2] // size)


cdef np.ndarray new_heads(np.ndarray x):
    """A new array of the shape of x whose memory has the order [B T heads K]: the model merges heads without a copy."""
    if x.ndim == 5:
        return np.empty((x.shape[0], x.shape[3], x.shape[1], x.shape[2], x.shape[4]), x.dtype).transpose(0, 2, 3, 1, 4)
    return np.empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), x.dtype).transpose(0, 2, 1, 3)


cdef attending attending_of(np.ndarray q, np.ndarray k, np.ndarray v, np.ndarray mask, bint causal, window) except *:
    cdef attending a
    if (q.ndim != 5 or k.ndim != 4 or not np.PyArray_SAMESHAPE(k, v) or k.shape[0] != q.shape[0]
            or k.shape[1] != q.shape[1] or k.shape[3] != q.shape[4] or not q.shape[4]):
        raise ValueError(f"attention: q has shape {np.shape(q)}, k {np.shape(k)}, v {np.shape(v)}")
    if mask is not None and np.shape(mask) != (k.shape[0], k.shape[2]):
        raise ValueError(f"attention: k has shape {np.shape(k)}, mask {np.shape(mask)}")
    a.B, a.G, a.R, a.T, a.K = q.shape[0], q.shape[1], q.shape[2], q.shape[3], q.shape[4]
    a.S = k.shape[2]
    a.behind = a.T + a.S if window is None else min(window - 1, a.T + a.S)
    a.ahead = 0 if causal else a.behind
    a.q, a.k, a.v = heads_of(q), heads_of(k), heads_of(v)
    a.mask = NULL if mask is None else mask.data
    return a


cdef np.ndarray bytes_of(mask):
    """The mask as contiguous bytes, 0 or 1."""
    return None if mask is None else np.ascontiguousarray(np.asarray(mask) != 0)


def attention(np.ndarray q, np.ndarray k, np.ndarray v, mask=None, *, bint causal=False, window=None):
    cdef const kernels *kernel = kernels_for(q)
    q, k, v = with_rows(q, q), with_rows(k, q), with_rows(v, q)
    cdef np.ndarray seen = bytes_of(mask)
    cdef attending a = attending_of(q, k, v, seen, causal, window)
    cdef np.ndarray y = new_heads(q), lse = np.empty((a.B, a.G, a.R * a.T, 1), q.dtype)
    cdef int threads = _threads
    cdef np.ndarray work = scratch(threads * kernel.attention_work(a.K), q)
    a.y, a.lse = heads_of(y), lse.data
    with nogil:
        kernel.attention(&a, work.data, threads)
    return y, (q, k, v, mask, y, lse)


def attention_backward(dy, np.ndarray q, np.ndarray k, np.ndarray v, mask, np.ndarray y, np.ndarray lse, *,
                       bint causal=False, window=None):
    cdef const kernels *kernel = kernels_for(q)
    q, k, v, y, lse = with_rows(q, q), with_rows(k, q), with_rows(v, q), with_rows(y, q), dense(lse, q)
    cdef np.ndarray seen = bytes_of(mask), d = with_rows(dy, q)
    cdef attending a = attending_of(q, k, v, seen, causal, window)
    if not np.PyArray_SAMESHAPE(d, q) or not np.PyArray_SAMESHAPE(y, q) or lse.size != a.B * a.G * a.R * a.T:
        raise ValueError(f"attention_backward: dy has shape {np.shape(d)}, q {np.shape(q)}, y {np.shape(y)}, "
                         f"lse {np.shape(lse)}")
    cdef np.ndarray dq = new_heads(q), dk = new_heads(k), dv = new_heads(v)
    cdef int threads = _threads
    cdef np.ndarray work = scratch(threads * kernel.attention_work(a.K), q)
    cdef heads to_q = heads_of(dq), to_k = heads_of(dk), to_v = heads_of(dv), from_y = heads_of(d)
    a.y, a.lse = heads_of(y), lse.data
    with nogil:
        kernel.attention_backward(&a, to_q, to_k, to_v, from_y, work.data, threads)
    return dq, dk, dv, None
