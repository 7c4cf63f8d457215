def rms_norm(np.ndarray x, np.ndarray w, *, double eps=1e-5):
    cdef const kernels *k = kernels_for(x)
    x, w = dense(x, x), dense_real(w, x)
    cdef idx D = w.size
    if w.ndim != 1 or x.ndim < 1 or x.shape[x.ndim - 1] != D:
        raise ValueError(f"rms_norm: x has shape {np.shape(x)}, w {np.shape(w)}")
    cdef np.ndarray y = new(x), r = new_real((*np.shape(x)[:-1], 1), x)
    cdef idx N = r.size
    cdef int threads = _threads
    with nogil:
        k.rms_norm(y.data, r.data, x.data, w.data, eps, N, D, threads)
    return y, (x, w, r)


def rms_norm_backward(dy, np.ndarray x, np.ndarray w, np.ndarray r, *, eps=None):
    cdef const kernels *k = kernels_for(x)
    x, w, r = dense(x, x), dense_real(w, x), dense_real(r, x)
    cdef np.ndarray d = dense_as(dy, x), dx = new(x), dw = new(w)
    cdef idx N = r.size, D = w.size
    if N * D != x.size:
        raise ValueError(f"rms_norm_backward: x has shape {np.shape(x)}, w {np.shape(w)}, r {np.shape(r)}")
    cdef np.ndarray parts = new_parts(1, x, D)
    cdef int threads = _threads
    with nogil:
        k.rms_norm_backward(dx.data, dw.data, parts.data, d.data, x.data, w.data, r.data, N, D, threads)
    return dx, dw
