def adamw(p, g, m, v, *, double lr, double decay, double scale, idx t, betas, double eps):
    cdef np.ndarray grad = dense(g, g), old = in_place(p, grad), mean = in_place(m, grad), square = in_place(v, grad)
    cdef const kernels *k = real_kernels_for(grad)
    cdef double b1 = betas[0], b2 = betas[1]
    cdef idx n = grad.size
    cdef int threads = _threads
    with nogil:
        k.adamw(old.data, grad.data, mean.data, square.data, n, lr, decay, scale, t, b1, b2, eps, threads)
