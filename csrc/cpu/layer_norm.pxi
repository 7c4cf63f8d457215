def layer_norm(np.ndarray x, np.ndarray w, np.ndarray b, *, double eps=1e-5):
    cdef const kernels *k = kernels_for(x)
    x, w, b = dense(x, x), dense_real(w, x), dense_real(b, x)
    cdef idx D = w.size
    if w.ndim != 1 or x.ndim < 1 or x.shape[x.ndim - 1] != D or not np.PyArray_SAMESHAPE(w, b):
        raise ValueError(f"layer_norm: x has shape {np.shape(x)}, w {np.shape(w)}, b {np.shape(b)}")
    # A bfloat16 would round n: there x is kept, with its means.
    cdef bint low = np.PyArray_TYPE(x) == BFLOAT
    rows = (*np.shape(x)[:-1], 1)
    cdef np.ndarray y = new(x), n = x if low else new(x), r = new_real((2, *rows) if low else rows, x)
    cdef idx N = r.size // (1 + low)
    cdef int threads = _threads
    with nogil:
        k.layer_norm(y.data, n.data, r.data, x.data, w.data, b.data, eps, N, D, threads)
    return y, (n, w, r)


def layer_norm_backward(dy, np.ndarray n, np.ndarray w, np.ndarray r, *, eps=None):
    cdef const kernels *k = kernels_for(n)
    n, w, r = dense(n, n), dense_real(w, n), dense_real(r, n)
    cdef np.ndarray d = dense_as(dy, n), dx = new(n), dw = new(w), db = new(w)
    cdef idx N = r.size // (1 + (np.PyArray_TYPE(n) == BFLOAT)), D = w.size
    if N * D != n.size:
        raise ValueError(f"layer_norm_backward: n has shape {np.shape(n)}, w {np.shape(w)}, r {np.shape(r)}")
    cdef np.ndarray parts = new_parts(2, n, D)
    cdef int threads = _threads
    with nogil:
        k.layer_norm_backward(dx.data, dw.data, db.data, parts.data, d.data, n.data, w.data, r.data, N, D, threads)
    return dx, dw, db
