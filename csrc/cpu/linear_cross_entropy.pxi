LOGITS = 2 ** 25                                        # bytes of logits at once, at most
LINE = 16                                               # float32 numbers in a cache line; chunks have whole lines


def linear_cross_entropy(np.ndarray x, np.ndarray w, t, *, into=None, chunk=None, idx ignore_index=-100,
                         double label_smoothing=0, double z_loss=0, count=None):
    """into    {1: where to add dw}; see place_of()"""
    cdef const kernels *k = kernels_for(x)
    cdef np.ndarray target = indices(t)
    x, w = dense(x, x), dense(w, x)
    if (x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1] or target.ndim != 1 or target.size != x.shape[0]
            or not w.shape[0]):
        raise ValueError(f"linear_cross_entropy: x has shape {np.shape(x)}, w {np.shape(w)}, t {np.shape(target)}")
    cdef bint low = np.PyArray_TYPE(x) == BFLOAT
    cdef idx N = x.shape[0], D = x.shape[1], V = w.shape[0]
    cdef double C = denominator(target, V, ignore_index, count), total
    cdef np.ndarray dx = new_real(np.shape(x), x), dw = place_of(w, into or {})
    cdef void *of_dw = NULL if dw is None else dw.data
    cdef idx rows = max(1, min(N, chunk or rows_at_once(N, k.linear_cross_entropy_work(1, V) * dx.itemsize,
                                                            2 * LINE if low else LINE)))
    cdef int threads = _threads
    cdef np.ndarray z = scratch(k.linear_cross_entropy_work(rows, V), dx)
    cdef np.ndarray work = scratch(threads * (k.product_work if low else k.gemm_work), dx)
    with nogil:
        total = k.linear_cross_entropy(dx.data, of_dw, x.data, w.data, <idx *>target.data, ignore_index,
                                       label_smoothing, z_loss, 1 / C, N, D, V, rows, z.data, work.data, threads)
    return dx.dtype.type(total / C), (dx, dw, x.dtype)


def linear_cross_entropy_backward(dloss, dx, dw, dtype, **options):
    """dx in the precision of x, which is dtype, and dw, None if it is not wanted."""
    if dloss != 1:
        dx, dw = dx * dloss, None if dw is None else dw * dloss
    return dx if dx.dtype == dtype else cast(dx, dtype), dw, None


cdef idx rows_at_once(idx N, idx bytes_of_a_row, idx line):
    """The rows of a chunk; all chunks have equal size.

    A megabyte of logits or 340 rows are enough to make packing w worthwhile.  LOGITS is the limit.
    """
    cdef idx enough = max(2 ** 20 // bytes_of_a_row, 340), most = max(LOGITS // bytes_of_a_row, 1)
    if most >= line:
        most = most // line * line
    cdef idx chunks = max(-(-N // most), N // enough, 1)
    cdef idx lines = -(-N // (chunks * line))
    return min(lines * line, most)
