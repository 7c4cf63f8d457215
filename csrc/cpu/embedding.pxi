def embedding(ids, np.ndarray w):
    cdef const kernels *k = kernels_for(w)
    cdef np.ndarray row = indices(ids), table = dense(w, w)
    if w.ndim != 2:
        raise ValueError(f"embedding: w has shape {np.shape(w)}")
    count_below(row, w.shape[0], "token id")
    cdef np.ndarray y = np.empty((*np.shape(row), w.shape[1]), table.dtype)
    cdef idx N = row.size, D = w.shape[1]
    cdef int threads = _threads
    with nogil:
        k.embedding(y.data, <idx *>row.data, table.data, N, D, threads)
    return y, (row, w)


ADDS["embedding"] = 1


def embedding_backward(dy, ids, np.ndarray w, *, into=None):
    """dw is added to `into` where that is given: an array of the shape and precision of w, and the dw returned."""
    cdef const kernels *k = kernels_for(w)
    cdef np.ndarray row = indices(ids), d = dense(dy, w), dw = np.zeros(np.shape(w), d.dtype) if into is None else into
    if w.ndim != 2 or np.shape(d) != (*np.shape(row), w.shape[1]):
        raise ValueError(f"embedding_backward: dy has shape {np.shape(d)}, ids {np.shape(row)}, w {np.shape(w)}")
    dense_as(dw, w)                                     # refuses another shape or precision
    if not np.PyArray_ISCARRAY(dw):
        raise ValueError("embedding_backward: `into` must be writable and C-contiguous; hand in what np.zeros makes")
    count_below(row, w.shape[0], "token id")
    cdef idx N = row.size, D = w.shape[1]
    cdef int threads = _threads
    with nogil:
        k.embedding_backward(dw.data, d.data, <idx *>row.data, N, D, threads)
    return None, dw
