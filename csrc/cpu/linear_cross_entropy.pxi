LOGITS = 2 ** 25                                        # bytes of logits at once, at most


def linear_cross_entropy(np.ndarray x, np.ndarray w, t, *, chunk=None, idx ignore_index=-100, double label_smoothing=0,
                         double z_loss=0, count=None):
    cdef const kernels *k = kernels_for(x)
    cdef np.ndarray target = indices(t)
    x, w = dense(x, x), dense(w, x)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1] or target.ndim != 1 or target.size != x.shape[0]:
        raise ValueError(f"linear_cross_entropy: x has shape {np.shape(x)}, w {np.shape(w)}, t {np.shape(target)}")
    cdef idx N = x.shape[0], D = x.shape[1], V = w.shape[0]
    cdef double C = denominator(target, V, ignore_index, count), total
    cdef idx rows = max(1, min(N, chunk or rows_at_once(V * x.itemsize)))
    cdef np.ndarray dx = new(x), dw = (np.empty if N else np.zeros)(np.shape(w), x.dtype)
    cdef np.ndarray z = scratch(rows * V, x), loss = np.empty(rows, x.dtype), work = scratch(_threads * k.gemm_work, x)
    with nogil:
        total = k.linear_cross_entropy(dx.data, dw.data, x.data, w.data, <idx *>target.data, ignore_index,
                                       label_smoothing, z_loss, 1 / C, N, D, V, rows, 0, z.data, loss.data, work.data,
                                       _threads)
    return x.dtype.type(total / C), (dx, dw)


def linear_cross_entropy_backward(dloss, dx, dw, **options):
    return (dx, dw, None) if dloss == 1 else (dx * dloss, dw * dloss, None)


cdef idx rows_at_once(idx bytes_of_a_row):
    """About a megabyte of logits, which stays in a core's cache, but enough rows to make w worth packing."""
    return min(max(2 ** 20 // bytes_of_a_row, 240), max(LOGITS // bytes_of_a_row // 48 * 48, 48))
