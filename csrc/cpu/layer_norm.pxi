def layer_norm(np.ndarray x, np.ndarray w, np.ndarray b, *, double eps=1e-5):
    cdef const kernels *k = real_kernels_for(x)
    x, w = dense(x, x), dense(w, x)
    b = dense_as(b, w)
    cdef idx D = w.size
    if w.ndim != 1 or x.ndim < 1 or x.shape[x.ndim - 1] != D:
        raise ValueError(f"layer_norm: x has shape {np.shape(x)}, w {np.shape(w)}")
    cdef np.ndarray y = new(x), n = new(x), r = np.empty((*np.shape(x)[:-1], 1), x.dtype)
    cdef idx N = r.size
    cdef int threads = _threads
    with nogil:
        k.layer_norm(y.data, n.data, r.data, x.data, w.data, b.data, eps, N, D, threads)
    return y, (n, w, r)


def layer_norm_backward(dy, np.ndarray n, np.ndarray w, np.ndarray r, *, eps=None):
    cdef const kernels *k = real_kernels_for(n)
    n, w, r = dense(n, n), dense(w, n), dense(r, n)
    cdef np.ndarray d = dense_as(dy, n), dx = new(n), dw = new(w), db = new(w)
    cdef idx N = r.size, D = w.size
    if N * D != n.size:
        raise ValueError(f"layer_norm_backward: n has shape {np.shape(n)}, w {np.shape(w)}, r {np.shape(r)}")
    cdef np.ndarray parts = np.empty((2 * BLOCKS, D), n.dtype)
    cdef int threads = _threads
    with nogil:
        k.layer_norm_backward(dx.data, dw.data, db.data, parts.data, d.data, n.data, w.data, r.data, N, D, threads)
    return dx, dw, db
