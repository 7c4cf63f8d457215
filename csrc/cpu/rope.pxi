cdef np.ndarray rotate(values, np.ndarray cos, np.ndarray sin, bint interleaved):
    """Rotate pairs of x [... T 2*P].

    If x [A H T K] is a view of memory in the order [A T H K], as a model's heads are, it is not copied, and the result
    has the same order: the model merges its heads without a copy.
    """
    cdef np.ndarray x = np.asarray(values), y
    cdef const kernels *k = kernels_for(x)
    cos, sin = dense_real(cos, x), dense_real(sin, x)
    if cos.ndim != 2 or np.shape(x)[-2:] != (cos.shape[0], 2 * cos.shape[1]) or \
            not np.PyArray_SAMESHAPE(cos, sin):
        raise ValueError(f"rope: x has shape {np.shape(x)}, cos {np.shape(cos)}, sin {np.shape(sin)}")
    cdef idx T = cos.shape[0], P = cos.shape[1], A, H = 1, xa = 2 * P * T, xt = 2 * P, xh = 0
    if x.ndim == 4 and x.strides[1] < x.strides[2] and x.strides[3] == x.itemsize and np.PyArray_ISBEHAVED_RO(x):
        A, H = x.shape[0], x.shape[1]
        xa, xt, xh = (x.strides[axis] // x.itemsize for axis in (0, 2, 1))
        y = np.empty((A, T, H, 2 * P), x.dtype).swapaxes(1, 2)
    else:
        x = dense(x, x)
        y = new(x)
        A = x.size // max(2 * P * T, 1)
    cdef int threads = _threads
    with nogil:
        k.rope(y.data, x.data, cos.data, sin.data, A, T, H, P, xa, xt, xh, interleaved, threads)
    return y


def rope(np.ndarray x, *, base=10000.0, start=0, interleaved=False, scaling=None):
    if x.ndim < 2:
        raise ValueError(f"rope: x has shape {np.shape(x)}, which does not fit x[... T 2*P]")
    cos, sin = tables(x.shape[x.ndim - 2], x.shape[x.ndim - 1] // 2, base, start, scaling, real_dtype(x))
    return rotate(x, cos, sin, interleaved), (cos, sin)


def rope_backward(dy, np.ndarray cos, np.ndarray sin, *, base=None, start=None, interleaved=False, scaling=None):
    return (rotate(dy, cos, -sin, interleaved),)
