cdef np.ndarray dropped(values, rate, key, start):
    """Drop and scale: the forward pass on x and, with the same random numbers, the backward pass on dy."""
    cdef np.ndarray x = np.asarray(values)
    cdef const kernels *k = kernels_for(x)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate is {rate}; it must lie in 0 <= rate < 1")
    x = dense(x, x)
    cdef np.ndarray y = new(x), words = generator(*key).bit_generator.state["state"]["key"]
    # A draw is 24 bits / 2^24, a float32; compared with a Python float, NumPy rounds that to float32 first.
    cdef double scale = 1 / (1 - rate), limit = np.ceil(np.float32(2 ** 24) * rate)
    cdef uint64_t first = start
    cdef idx n = x.size
    cdef int threads = _threads
    with nogil:
        k.dropout(y.data, x.data, scale, <uint32_t>limit, first, <uint64_t *>words.data, n, threads)
    return y


def dropout(np.ndarray x, *, rate=0.1, key=(0,), start=0):
    return dropped(x, rate, key, start), ()


def dropout_backward(dy, *, rate=0.1, key=(0,), start=0):
    return (dropped(dy, rate, key, start),)
