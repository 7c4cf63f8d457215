def adamw(p, g, m, v, *, double lr, double decay, double scale, idx t, betas, double eps, rounded=None):
    """Update p, m and v; write p to `rounded`, a vector in bfloat16, too, if it is given and p is in float32."""
    cdef np.ndarray grad = dense(g, g), old = in_place(p, grad), mean = in_place(m, grad), square = in_place(v, grad)
    cdef const kernels *k = real_kernels_for(grad)
    cdef double b1 = betas[0], b2 = betas[1]
    cdef idx n = grad.size
    cdef uint16_t *copy = copy_of(rounded, grad)
    cdef int threads = _threads
    with nogil:
        k.adamw(old.data, grad.data, mean.data, square.data, copy, n, lr, decay, scale, t, b1, b2, eps, threads)


cdef uint16_t *copy_of(np.ndarray rounded, np.ndarray p) except? NULL:
    """Where to write a copy of p in bfloat16; NULL: nowhere."""
    if rounded is None:
        return NULL
    if np.PyArray_TYPE(p) != np.NPY_FLOAT or np.PyArray_TYPE(rounded) != BFLOAT:
        raise TypeError(f"a copy in {rounded.dtype} of parameters in {p.dtype}; they must be bfloat16 and float32")
    if not np.PyArray_SAMESHAPE(rounded, p) or not np.PyArray_ISCARRAY(rounded):
        raise ValueError(f"a copy of shape {np.shape(rounded)} of parameters of shape {np.shape(p)}; the shapes must "
                         "be equal, and the copy contiguous, aligned and writable")
    return <uint16_t *>rounded.data
