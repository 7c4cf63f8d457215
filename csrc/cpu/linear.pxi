cdef np.ndarray scratch(idx numbers, np.ndarray like):
    """Working memory for a kernel, aligned to a cache line."""
    cdef np.ndarray room = np.empty(numbers * like.itemsize + 64, np.uint8)
    cdef idx start = -<idx>room.data % 64
    return room[start:start + numbers * like.itemsize].view(like.dtype)


cdef np.ndarray strided(a, np.ndarray like):
    """The matrix a itself if its rows or its columns are contiguous, otherwise a dense copy.

    Raises TypeError unless its precision is that of `like`.
    """
    cdef np.ndarray m = np.asarray(a)
    if np.PyArray_TYPE(m) != np.PyArray_TYPE(like):
        raise TypeError(f"mixed precision: {m.dtype} and {like.dtype}; convert one")
    cdef idx down = m.strides[0], right = m.strides[1], size = m.itemsize
    if (np.PyArray_ISBEHAVED_RO(m) and min(down, right) == size and max(down, right) % size == 0):
        return m
    return dense(m, like)


cdef np.ndarray product(a, b, np.ndarray like, np.ndarray into=None, bint narrow=False, bias=None):
    """a @ b of bfloat16: a new array in float32, or added to `into`; or, if narrow, rounded once, bias included."""
    cdef np.ndarray x = strided(a, like), y = strided(b, like), c = None if into is None else in_place(into, into)
    cdef np.ndarray added = None if bias is None else dense_real(bias, like)
    cdef idx M = x.shape[0], N = y.shape[1], K = x.shape[1], size = like.itemsize
    if c is None:
        c = np.empty((M, N), like.dtype) if narrow else new_real((M, N), like)
    if (y.shape[0] != K or c.ndim != 2 or c.shape[0] != M or c.shape[1] != N or added is not None and added.size != N
            or np.PyArray_TYPE(c) != (BFLOAT if narrow else np.NPY_FLOAT)):
        raise ValueError(f"a product of shapes {np.shape(x)} and {np.shape(y)} into {c.dtype} of shape {np.shape(c)}, "
                         f"bias {np.shape(bias)}")
    cdef const kernels *k = kernels_for(like)
    cdef int threads = _threads, accumulate = into is not None
    cdef np.ndarray work = scratch(threads * k.product_work, new_real(0, like))
    cdef idx x_down = x.strides[0] // size, x_right = x.strides[1] // size
    cdef idx y_down = y.strides[0] // size, y_right = y.strides[1] // size
    cdef const void *of_bias = NULL if added is None else added.data
    with nogil:
        k.product(c.data, N, narrow, of_bias, x.data, x_down, x_right, y.data, y_down, y_right, M, N, K, accumulate,
                  work.data, threads)
    return c


cpdef np.ndarray matmul(a, b, np.ndarray like, np.ndarray into=None):
    """a @ b as a new array, or added to `into`.  That of bfloat16 is in float32."""
    if np.ndim(a) != 2 or np.ndim(b) != 2:
        raise ValueError(f"a product of shapes {np.shape(a)} and {np.shape(b)}; both must be matrices")
    if np.PyArray_TYPE(like) == BFLOAT:
        return product(a, b, like, into)
    cdef np.ndarray x = strided(a, like), y = strided(b, like), c = None if into is None else in_place(into, into)
    cdef idx M = x.shape[0], N = y.shape[1], K = x.shape[1], size = like.itemsize
    if c is None:
        c = np.empty((M, N), like.dtype)
    if np.PyArray_TYPE(c) != np.PyArray_TYPE(like):
        raise TypeError(f"mixed precision: a sum of {c.dtype} and a product of {like.dtype}; convert one")
    if y.shape[0] != K or c.ndim != 2 or c.shape[0] != M or c.shape[1] != N:
        raise ValueError(f"a product of shapes {np.shape(x)} and {np.shape(y)} into {np.shape(c)}")
    cdef const kernels *k = real_kernels_for(like)
    cdef int threads = _threads
    cdef np.ndarray work = scratch(threads * k.gemm_work, like)
    cdef idx ldc = c.strides[0] // size
    cdef idx x_down = x.strides[0] // size, x_right = x.strides[1] // size
    cdef idx y_down = y.strides[0] // size, y_right = y.strides[1] // size
    cdef int accumulate = into is not None
    with nogil:
        k.gemm(c.data, ldc, x.data, x_down, x_right, y.data, y_down, y_right, M, N, K, accumulate, work.data, threads)
    return c


cdef np.ndarray sum_of_rows(np.ndarray d):
    """Σ_n d_n in float32, for bfloat16 as a product with ones."""
    return matmul(np.ones((1, len(d)), d.dtype), d, d)[0] if np.PyArray_TYPE(d) == BFLOAT else d.sum(axis=0)


def linear(np.ndarray x, np.ndarray w, b=None):
    cdef np.ndarray y
    E, D = np.shape(w)
    rows = x.reshape(-1, D)
    if np.PyArray_TYPE(x) == BFLOAT:
        y = product(rows, w.T, x, None, True, b)
    elif b is None:
        y = matmul(rows, w.T, x)
    else:
        y = np.empty((len(rows), E), x.dtype)
        y[:] = dense(b, x)
        matmul(rows, w.T, x, y)
    return y.reshape(*np.shape(x)[:-1], E), (x, w, b)


def linear_backward(dy, x, np.ndarray w, b):
    return linear_backward_into(dy, x, w, b, into={})


def linear_backward_into(dy, x, np.ndarray w, b, *, into):
    """Let the matrix product add dw to into[1], which may be the transpose of a contiguous array.

    None for x: dw is not wanted.
    """
    E, D = np.shape(w)
    d, dw = np.asarray(dy).reshape(-1, E), None if x is None else weight_gradient(dy, x, w, into.get(1))
    dx = product(d, w, w, None, True) if np.PyArray_TYPE(w) == BFLOAT else matmul(d, w, w)
    return dx.reshape(*np.shape(dy)[:-1], D), dw, None if b is None else sum_of_rows(d)


cdef weight_gradient(dy, np.ndarray x, np.ndarray w, dw):
    """The product dyᵀ x, added to dw if it can be; otherwise a new array."""
    E, D = np.shape(w)
    d, rows = np.asarray(dy).reshape(-1, E), x.reshape(-1, D)
    if dw is not None and np.PyArray_ISCARRAY(dw):
        matmul(d.T, rows, w, dw)
    elif dw is not None and np.PyArray_ISCARRAY(dw.T):
        matmul(rows.T, d, w, dw.T)
    else:
        dw = matmul(d.T, rows, w)
    return dw
