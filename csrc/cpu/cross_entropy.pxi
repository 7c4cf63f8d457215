def cross_entropy(np.ndarray z, t, *, idx ignore_index=-100, double label_smoothing=0, double z_loss=0, count=None):
    cdef const kernels *k = kernels_for(z)
    cdef np.ndarray target = indices(t)
    z = dense(z, z)
    if z.ndim != 2 or target.ndim != 1 or target.size != z.shape[0] or not z.shape[1]:
        raise ValueError(f"cross_entropy: z has shape {np.shape(z)}, t {np.shape(target)}")
    cdef idx N = z.shape[0], V = z.shape[1]
    cdef double C = denominator(target, V, ignore_index, count), total
    cdef np.ndarray lse = new_real((N, 1), z), loss = new_real(N, z)
    cdef int threads = _threads
    with nogil:
        total = k.cross_entropy(lse.data, loss.data, z.data, <idx *>target.data, ignore_index, label_smoothing, z_loss,
                                N, V, threads)
    return real_dtype(z).type(total / C), (z, target, lse)


def cross_entropy_backward(dloss, np.ndarray z, t, np.ndarray lse, *, idx ignore_index=-100, double label_smoothing=0,
                           double z_loss=0, count=None):
    cdef const kernels *k = kernels_for(z)
    cdef np.ndarray target = indices(t), dz
    z, lse = dense(z, z), dense_real(lse, z)
    if z.ndim != 2 or target.ndim != 1 or target.size != z.shape[0] or lse.size != z.shape[0]:
        raise ValueError(f"cross_entropy_backward: z has shape {np.shape(z)}, t {np.shape(target)}, "
                         f"lse {np.shape(lse)}")
    cdef idx N = z.shape[0], V = z.shape[1]
    cdef double scale = dloss / denominator(target, V, ignore_index, count)
    dz = new(z)
    cdef int threads = _threads
    with nogil:
        k.cross_entropy_backward(dz.data, z.data, <idx *>target.data, lse.data, ignore_index, label_smoothing, z_loss,
                                 scale, N, V, threads)
    return dz, None


cdef double denominator(np.ndarray t, idx V, idx ignore_index, count) except -1:
    """C: `count`, or the number of targets that are not ignored, at least 1.  Raises IndexError for a target >= V."""
    cdef idx counted = count_below(t, V, "target", ignore_index)
    return max(counted if count is None else count, 1)
