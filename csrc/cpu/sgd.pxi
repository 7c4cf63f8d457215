def sgd(p, g, v=None, *, double lr, double decay, double scale, double momentum, bint nesterov):
    cdef np.ndarray grad = dense(g, g), old = in_place(p, grad), velocity = None if v is None else in_place(v, grad)
    cdef const kernels *k = real_kernels_for(grad)
    cdef void *v_data = NULL if v is None else velocity.data
    cdef idx n = grad.size
    cdef int threads = _threads
    with nogil:
        k.sgd(old.data, grad.data, v_data, n, lr, decay, scale, momentum, nesterov, threads)
