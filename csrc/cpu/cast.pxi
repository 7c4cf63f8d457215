ctypedef void (*to_half)(uint16_t *y, const void *x, idx n, int threads) noexcept nogil
ctypedef void (*from_half)(void *y, const uint16_t *x, idx n, int threads) noexcept nogil


def cast(np.ndarray x, dtype):
    """x.astype(dtype), by a kernel if one dtype is float32 and the other is float16 or bfloat16."""
    cdef const kernels *k = kernels_of[0]
    cdef to_half narrow = NULL
    cdef from_half widen = NULL
    names = str(x.dtype), str(np.dtype(dtype))              # "<f4" and the like where the byte order is not native
    if names == ("float32", "float16"):
        narrow = k.to_float16
    elif names == ("float16", "float32"):
        widen = k.from_float16
    elif names == ("float32", "bfloat16"):
        narrow = k.to_bfloat16
    elif names == ("bfloat16", "float32"):
        widen = k.from_bfloat16
    else:
        return x.astype(dtype)
    x = dense(x, x)
    cdef np.ndarray y = np.empty(np.shape(x), dtype)
    cdef idx n = x.size
    cdef int threads = _threads
    with nogil:
        if narrow != NULL:
            narrow(<uint16_t *>y.data, x.data, n, threads)
        else:
            widen(y.data, <const uint16_t *>x.data, n, threads)
    return y
