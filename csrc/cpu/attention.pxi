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


cdef attending attending_of(np.ndarray q, np.ndarray k, np.ndarray v, tuple hiding, np.ndarray bias, bint causal,
                            window, scale, softcap) except *:
    cdef attending a
    if (q.ndim != 5 or k.ndim != 4 or not np.PyArray_SAMESHAPE(k, v) or k.shape[0] != q.shape[0]
            or k.shape[1] != q.shape[1] or k.shape[3] != q.shape[4] or not q.shape[4]):
        raise ValueError(f"attention: q has shape {np.shape(q)}, k {np.shape(k)}, v {np.shape(v)}")
    a.B, a.G, a.R, a.T, a.K = q.shape[0], q.shape[1], q.shape[2], q.shape[3], q.shape[4]
    a.S = k.shape[2]
    a.mask = a.pairs = NULL
    a.keys = a.queries = NULL
    if hiding is not None:
        for x, wanted in zip(hiding, ((a.B, a.S), (a.B, a.S, a.T), (a.B, a.S), (a.B, a.T)), strict=True):
            if x is not None and np.shape(x) != wanted:
                raise ValueError(f"attention: k has shape {np.shape(k)}, a mask or the segments {np.shape(x)}")
        a.mask, a.pairs = address(hiding[0]), address(hiding[1])
        a.keys, a.queries = <idx *> address(hiding[2]), <idx *> address(hiding[3])
    if bias is not None and (bias.ndim != 4 or bias.shape[0] not in (1, a.B) or bias.shape[1] not in (1, a.G * a.R)
                             or bias.shape[2] != a.T or bias.shape[3] != a.S):
        raise ValueError(f"attention: q has shape {np.shape(q)}, k {np.shape(k)}, bias {np.shape(bias)}")
    a.behind = a.T + a.S if window is None else min(window - 1, a.T + a.S)
    a.ahead = 0 if causal else a.behind
    a.q, a.k, a.v = heads_of(q), heads_of(k), heads_of(v)
    a.bias, a.dbias = address(bias), NULL
    a.bias_h = a.T * a.S if bias is not None and bias.shape[1] > 1 else 0
    a.bias_b = a.T * a.S * bias.shape[1] if bias is not None and bias.shape[0] > 1 else 0
    a.scale, a.softcap = NAN if scale is None else scale, 0 if softcap is None else softcap
    return a


cdef char *address(np.ndarray x):
    return NULL if x is None else <char *> x.data


cdef tuple hiding(mask, segments, idx T):
    """mask [B S] or [B S T] and segments of keys [B S] and queries [B T], dense: what hides keys, or None for each.

    None if there is neither.
    """
    if mask is None and segments is None:
        return None
    seen = pairs = keys = queries = None
    if mask is not None and mask.ndim == 3:
        pairs = np.ascontiguousarray(np.asarray(mask).swapaxes(1, 2) != 0)
    elif mask is not None:
        seen = np.ascontiguousarray(np.asarray(mask) != 0)
    if segments is not None:
        keys = np.ascontiguousarray(segments).astype(np.intp, copy=False)
        before = max(T - keys.shape[1], 0)                  # queries before the first key have no segment
        queries = np.ascontiguousarray(keys[:, max(keys.shape[1] - T, 0):])
        if before:
            keys = keys - (keys.min() if keys.size else 0)                                  # so that -1 is none of them
            queries = np.concatenate([np.full((len(keys), before), -1, np.intp), keys], axis=1)
    return seen, pairs, keys, queries


def attention(np.ndarray q, np.ndarray k, np.ndarray v, mask=None, segments=None, bias=None, *, bint causal=False,
              window=None, scale=None, softcap=None):
    if softcap is not None and not softcap > 0:             # the reference says so
        return NotImplemented
    cdef const kernels *kernel = kernels_for(q)
    q, k, v = with_rows(q, q), with_rows(k, q), with_rows(v, q)
    cdef tuple hidden = hiding(mask, segments, q.shape[3] if q.ndim == 5 else 0)
    cdef np.ndarray added = None if bias is None else dense_real(bias, q)
    cdef attending a = attending_of(q, k, v, hidden, added, causal, window, scale, softcap)
    cdef np.ndarray y = new_heads(q), lse = new_real((a.B, a.G, a.R * a.T, 1), q)
    cdef int threads = _threads
    cdef np.ndarray work = scratch(threads * kernel.attention_work(a.S, a.K), lse)
    a.y, a.lse = heads_of(y), lse.data
    with nogil:
        kernel.attention(&a, work.data, threads)
    return y, (q, k, v, mask, segments, bias, y, lse)


def attention_backward(dy, np.ndarray q, np.ndarray k, np.ndarray v, mask, segments, bias, np.ndarray y,
                       np.ndarray lse, *, bint causal=False, window=None, scale=None, softcap=None):
    cdef const kernels *kernel = kernels_for(q)
    q, k, v, y, lse = with_rows(q, q), with_rows(k, q), with_rows(v, q), with_rows(y, q), dense_real(lse, q)
    cdef tuple hidden = hiding(mask, segments, q.shape[3] if q.ndim == 5 else 0)
    cdef np.ndarray d = with_rows(dy, q), added = None if bias is None else dense_real(bias, q)
    cdef attending a = attending_of(q, k, v, hidden, added, causal, window, scale, softcap)
    if not np.PyArray_SAMESHAPE(d, q) or not np.PyArray_SAMESHAPE(y, q) or lse.size != a.B * a.G * a.R * a.T:
        raise ValueError(f"attention_backward: dy has shape {np.shape(d)}, q {np.shape(q)}, y {np.shape(y)}, "
                         f"lse {np.shape(lse)}")
    cdef np.ndarray dq = new_heads(q), dk = new_heads(k), dv = new_heads(v)
    cdef np.ndarray dbias = None if bias is None else np.zeros_like(added)
    cdef int threads = _threads
    cdef np.ndarray work = scratch(threads * kernel.attention_work(a.S, a.K), lse)
    cdef heads to_q = heads_of(dq), to_k = heads_of(dk), to_v = heads_of(dv), from_y = heads_of(d)
    a.y, a.lse, a.dbias = heads_of(y), lse.data, address(dbias)
    with nogil:
        kernel.attention_backward(&a, to_q, to_k, to_v, from_y, work.data, threads)
    if bias is not None and np.PyArray_TYPE(bias) != np.PyArray_TYPE(dbias):
        dbias = cast(dbias, bias.dtype)
    return dq, dk, dv, None, None, dbias
