def add_rms_norm(np.ndarray x, np.ndarray a, np.ndarray w, *, double eps=1e-5):
    if mixed(x, a):
        return NotImplemented
    cdef const kernels *k = kernels_for(x)
    x, w = dense(x, x), dense_real(w, x)
    a = dense_as(a, x)
    cdef idx D = w.size
    if w.ndim != 1 or x.ndim < 1 or x.shape[x.ndim - 1] != D:
        raise ValueError(f"add_rms_norm: x has shape {np.shape(x)}, w {np.shape(w)}")
    cdef np.ndarray s = new(x), y = new(x), r = new_real((*np.shape(x)[:-1], 1), x)
    cdef idx N = r.size
    cdef int threads = _threads
    with nogil:
        k.add_rms_norm(s.data, y.data, r.data, x.data, a.data, w.data, eps, N, D, threads)
    return (s, y), (s, w, r)


def add_rms_norm_backward(dys, np.ndarray s, np.ndarray w, np.ndarray r, *, eps=None):
    cdef const kernels *k = kernels_for(s)
    s, w, r = dense(s, s), dense_real(w, s), dense_real(r, s)
    cdef np.ndarray ds = dense_as(dys[0], s), dy = dense_as(dys[1], s), dx = new(s), dw = new(w)
    cdef idx N = r.size, D = w.size
    if N * D != s.size:
        raise ValueError(f"add_rms_norm_backward: s has shape {np.shape(s)}, w {np.shape(w)}, r {np.shape(r)}")
    cdef np.ndarray parts = new_parts(1, s, D)
    cdef int threads = _threads
    with nogil:
        k.add_rms_norm_backward(dx.data, dw.data, parts.data, ds.data, dy.data, s.data, w.data, r.data, N, D, threads)
    return dx, dx, dw
