cdef const kernels *kernels_for(np.ndarray x) except NULL:
    """The kernels of the precision of x, for an op in LOW."""
    return kernels_of[2] if np.PyArray_TYPE(x) == BFLOAT else real_kernels_for(x)


cdef const kernels *real_kernels_for(np.ndarray x) except NULL:
    """The kernels of the precision of x, for all that does not take bfloat16: there, its slots are empty."""
    cdef int kind = np.PyArray_TYPE(x)
    if kind != np.NPY_FLOAT and kind != np.NPY_DOUBLE:
        raise TypeError(f"the kernels take float32 and float64, not {x.dtype}")
    return kernels_of[kind == np.NPY_DOUBLE]


cdef np.ndarray dense(a, np.ndarray like):
    """a as a C-contiguous native array, copied if it is not one.

    Raises TypeError unless its precision is that of `like`.
    """
    cdef np.ndarray array = np.asarray(a)
    if np.PyArray_TYPE(array) != np.PyArray_TYPE(like):
        raise TypeError(f"mixed precision: {array.dtype} and {like.dtype}; convert one")
    return np.PyArray_FROM_OTF(array, np.PyArray_TYPE(like), np.NPY_ARRAY_IN_ARRAY)


cdef bint mixed(np.ndarray x, np.ndarray a):
    """Is a in float32 and x in bfloat16?  The reference takes two such activations."""
    return np.PyArray_TYPE(x) == BFLOAT and np.PyArray_TYPE(a) != BFLOAT


cdef real_dtype(np.ndarray like):
    """Of `real` in csrc/kernels.h, where `like` is an array of `number`."""
    return np.dtype(np.float32) if np.PyArray_TYPE(like) == BFLOAT else like.dtype


cdef np.ndarray dense_real(a, np.ndarray like):
    """a, which is not an activation, as `real` of csrc/kernels.h: dense(a, like), or in bfloat16 as float32."""
    if np.PyArray_TYPE(like) != BFLOAT:
        return dense(a, like)
    cdef np.ndarray array = np.asarray(a)
    return dense(cast(array, np.float32) if np.PyArray_TYPE(array) == BFLOAT else array, np.empty(0, np.float32))


cdef np.ndarray dense_as(a, np.ndarray like):
    """dense(a, like).  Raises ValueError unless its shape is that of `like`, too."""
    cdef np.ndarray d = dense(a, like)
    if not np.PyArray_SAMESHAPE(d, like):
        raise ValueError(f"shapes {np.shape(d)} and {np.shape(like)} differ")
    return d


cdef np.ndarray in_place(a, np.ndarray like):
    """a itself, for a kernel to write to.  Raises ValueError if dense_as(a, like) would copy it or it is read-only."""
    cdef np.ndarray d = dense_as(a, like)
    if d is not a or not np.PyArray_ISWRITEABLE(d):
        raise ValueError("an array that is updated in place must be contiguous, aligned and writable; copy it first")
    return d


cdef np.ndarray place_of(np.ndarray w, dict into):
    """Where a kernel adds the gradient of w: into[1], or zeros if there is none or it is not dense and writable.

    None if into[1] is None: the gradient is not wanted.
    """
    cdef np.ndarray place = into.get(1)
    if 1 in into and place is None:
        return None
    if place is None or not np.PyArray_ISCARRAY(place):
        return np.zeros(np.shape(w), real_dtype(w))
    if not np.PyArray_SAMESHAPE(place, w):
        raise ValueError(f"a gradient is added to shape {np.shape(place)}, w has {np.shape(w)}; the shapes must be "
                         "equal")
    if place.dtype != real_dtype(w):
        raise TypeError(f"mixed precision: a gradient is added to {place.dtype}, its sums are {real_dtype(w)}; "
                        "convert it")
    return place


cdef np.ndarray new(like):
    return np.empty(like.shape, like.dtype)             # not empty_like, which would follow odd strides


cdef np.ndarray new_real(shape, np.ndarray like):
    """A new array of `real` of csrc/kernels.h."""
    return np.empty(shape, real_dtype(like))


cdef np.ndarray new_parts(idx sums, np.ndarray like, idx D):
    """Room for the sums over rows of csrc/cpu/rows.h, and for bfloat16 for rows that are not rounded yet."""
    return new_real(((sums + (np.PyArray_TYPE(like) == BFLOAT)) * BLOCKS, D), like)


cdef np.ndarray indices(a):
    """a as a C-contiguous array of pointer-sized integers."""
    cdef np.ndarray array = np.asarray(a)
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, not {array.dtype}")
    return np.PyArray_FROM_OTF(array, np.NPY_INTP, np.NPY_ARRAY_IN_ARRAY | np.NPY_ARRAY_FORCECAST)


cdef idx count_below(np.ndarray ids, idx bound, what, ignore=None) except -1:
    """Count the ids, but for those equal to `ignore`.  Raises IndexError unless all others lie in 0 .. bound-1."""
    cdef const idx *id = <const idx *>ids.data
    cdef bint all_count = ignore is None
    cdef idx i, counted = 0, ignored = 0 if all_count else ignore
    for i in range(ids.size):
        if all_count or id[i] != ignored:
            if not 0 <= id[i] < bound:
                require_below(np.array([id[i]]), bound, what)
            counted += 1
    return counted
