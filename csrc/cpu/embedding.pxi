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


def embedding_backward(dy, ids, np.ndarray w):
    return embedding_backward_into(dy, ids, w, into={})


def embedding_backward_into(dy, ids, np.ndarray w, *, into):
    """into    {1: where to add dw}; see place_of().  None for ids: dw is not wanted."""
    if ids is None:
        return None, None
    cdef const kernels *k = kernels_for(w)
    cdef np.ndarray row = indices(ids), d = dense(dy, w), dw = place_of(w, into)
    if w.ndim != 2 or np.shape(d) != (*np.shape(row), w.shape[1]):
        raise ValueError(f"embedding_backward: dy has shape {np.shape(d)}, ids {np.shape(row)}, w {np.shape(w)}")
    count_below(row, w.shape[0], "token id")
    cdef idx N = row.size, D = w.shape[1]
    cdef int threads = _threads
    with nogil:
        k.embedding_backward(dw.data, d.data, <idx *>row.data, N, D, threads)
    return None, dw
