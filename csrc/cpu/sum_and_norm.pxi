def sum_and_norm(gs):
    cdef np.ndarray total = dense(gs[0], gs[0])
    cdef const kernels *k = real_kernels_for(total)
    if len(gs) > 1:
        total = in_place(gs[0], total)
    lanes = [total, *(dense_as(g, total) for g in gs[1:])]      # keeps the arrays alive until the kernel has run
    cdef np.ndarray addresses = np.array([lane.ctypes.data for lane in lanes], np.uintp)
    cdef idx n = total.size, count = addresses.size
    cdef double norm
    cdef int threads = _threads
    with nogil:
        norm = k.sum_and_norm(<void *const *>addresses.data, count, n, threads)
    return norm
