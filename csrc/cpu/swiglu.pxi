def swiglu(np.ndarray g, np.ndarray u):
    if mixed(g, u):
        return NotImplemented
    cdef const kernels *k = kernels_for(g)
    g, u = dense(g, g), dense_as(u, g)
    cdef np.ndarray y = new(g)
    cdef idx n = g.size
    cdef int threads = _threads
    with nogil:
        k.swiglu(y.data, g.data, u.data, n, threads)
    return y, (g, u)


def swiglu_backward(dy, np.ndarray g, np.ndarray u):
    cdef const kernels *k = kernels_for(g)
    g, u = dense(g, g), dense_as(u, g)
    cdef np.ndarray d = dense_as(dy, g), dg = new(g), du = new(g)
    cdef idx n = g.size
    cdef int threads = _threads
    with nogil:
        k.swiglu_backward(dg.data, du.data, d.data, g.data, u.data, n, threads)
    return dg, du
