def gelu(np.ndarray x, *, bint tanh=False):
    cdef const kernels *k = kernels_for(x)
    x = dense(x, x)
    cdef np.ndarray y = new(x)
    cdef idx n = x.size
    cdef int threads = _threads
    with nogil:
        k.gelu(y.data, x.data, tanh, n, threads)
    return y, (x,)


def gelu_backward(dy, np.ndarray x, *, bint tanh=False):
    cdef const kernels *k = kernels_for(x)
    x = dense(x, x)
    cdef np.ndarray d = dense_as(dy, x), dx = new(x)
    cdef idx n = x.size
    cdef int threads = _threads
    with nogil:
        k.gelu_backward(dx.data, d.data, x.data, tanh, n, threads)
    return dx,
