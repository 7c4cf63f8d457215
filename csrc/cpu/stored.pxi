cdef enum: GROUP = 16, BLOCK = 32                       # rows that are interleaved; columns that share a scale
OF_SIGNS = np.uint32(0x80808080)                        # of 4 quants of q8_0: what adds 128 to each
KINDS = {"reals": REALS, "f16": FLOAT16, "bf16": BFLOAT16, "q8_0": Q8_0, "q4_0": Q4_0}
same_bits = SAME_BITS                                   # up to this N, no bit of a stored_product depends on N


cdef idx quants_bytes(int kind):
    """The bytes of a row's quants in a block."""
    return BLOCK if kind == Q8_0 else BLOCK // 2


cdef idx stored_bytes(int kind, idx E, idx D, idx real) except -1:
    """The bytes of a stored matrix.  Raises ValueError if its format has no such rows."""
    if kind < Q8_0:
        return E * D * (real if kind == REALS else 2)
    if D % BLOCK:
        raise ValueError(f"a row of {D} numbers in blocks of {BLOCK}")
    return -(-E // GROUP) * GROUP * (D // BLOCK) * (quants_bytes(kind) + 2)


cdef stored stored_of(np.ndarray w, str kind, idx E, idx D, idx real) except *:
    """w[E D] as the kernels take it, real numbers of so many bytes or what `kind` says; w must outlive it.

    Raises ValueError unless w is dense and has the bytes of such a matrix.
    """
    cdef stored s = stored(KINDS[kind], w.data, E, D)
    if w.nbytes != stored_bytes(s.kind, E, D, real) or not np.PyArray_ISCARRAY_RO(w):
        raise ValueError(f"{w.nbytes} bytes cannot be a dense {kind} matrix of shape ({E}, {D})")
    return s


def _interleaved_parts(packed, int kind, idx E, idx D):
    """Views of an interleaved matrix: quads [group block quad row] uint32 and scales [group block row] uint16."""
    cdef idx size = quants_bytes(kind), groups = -(-E // GROUP), blocks = D // BLOCK
    packed = packed.reshape(groups, blocks, GROUP * (size + 2))
    return (packed[..., :GROUP * size].view(np.uint32).reshape(groups, blocks, size // 4, GROUP),
            packed[..., GROUP * size:].view(np.uint16))


def _parts(raw, int kind, idx E, idx D):
    """Views of rows of GGUF's blocks: quads [row block quad] uint32 and scales [row block] uint16."""
    blocks = raw.reshape(E, D // BLOCK, quants_bytes(kind) + 2)
    return blocks[..., 2:].view(np.uint32), blocks[..., :2].view(np.uint16)[..., 0]


def interleaved(raw, str kind, idx E, idx D):
    """Repack a matrix w[E D] in GGUF's blocks, "q8_0" or "q4_0", for stored_product: a new array of bytes.

    raw     the bytes of E rows of blocks; a block of 32 columns is a float16 scale and the quants

    Groups of 16 rows, the last padded with rows of zeros; in a group the blocks of 32 columns; in a block the quants,
    [quads of bytes][16 rows][4 bytes], those of q8_0 plus 128, then 16 scales.  deinterleaved() is the inverse.  Raises
    ValueError unless D is a multiple of 32 and raw has the bytes of E rows.

    >>> import numpy as np
    >>> from pyllama import cpu
    >>> raw = np.arange(17 * 34).astype(np.uint8)               # 17 rows of one block
    >>> packed = cpu.interleaved(raw, "q8_0", 17, 32)
    >>> packed.size, bool(np.all(cpu.deinterleaved(packed, "q8_0", 17, 32).ravel() == raw))
    (1088, True)
    """
    cdef idx g, size = E * (D // BLOCK) * (quants_bytes(KINDS[kind]) + 2)
    packed = np.zeros(stored_bytes(KINDS[kind], E, D, 0), np.uint8)
    if raw.nbytes != size:
        raise ValueError(f"{raw.nbytes} bytes cannot be the {kind} blocks of a matrix of shape ({E}, {D})")
    to, to_scales = _interleaved_parts(packed, KINDS[kind], E, D)
    quads, scales = _parts(raw, KINDS[kind], E, D)
    for g in range(len(to)):                            # which stays in a cache
        rows = slice(g * GROUP, min(E, (g + 1) * GROUP))
        to[g, ..., :len(scales[rows])] = quads[rows].transpose(1, 2, 0)
        to_scales[g, :, :len(scales[rows])] = scales[rows].T
        if kind == "q8_0":
            to[g] ^= OF_SIGNS
    return packed


def deinterleaved(packed, str kind, idx E, idx D):
    """The bytes that interleaved() repacked, [E, bytes of a row].  Raises ValueError for another number of bytes."""
    stored_of(packed, kind, E, D, 0)
    cdef idx g
    raw = np.empty((E, D // BLOCK * (quants_bytes(KINDS[kind]) + 2)), np.uint8)
    at, at_scales = _interleaved_parts(packed, KINDS[kind], E, D)
    quads, scales = _parts(raw, KINDS[kind], E, D)
    for g in range(len(at)):
        rows = slice(g * GROUP, min(E, (g + 1) * GROUP))
        quads[rows] = at[g, ..., :len(scales[rows])].transpose(2, 0, 1)
        scales[rows] = at_scales[g, :, :len(scales[rows])].T
        if kind == "q8_0":
            quads[rows] ^= OF_SIGNS
    return raw


def stored_product(np.ndarray x, np.ndarray w, str kind, idx E, idx D, cuts=(), np.ndarray into=None):
    """x[N D] wᵀ as a new array [N E], or added to `into`.

    kind    how w[E D] is stored: "reals" (of x's dtype), or for float32 "f16", "bf16", or interleaved "q8_0", "q4_0"
    cuts    rows of w, multiples of 16, between which each part of the product is computed by itself

    No bit depends on the cuts; nor, up to `same_bits` rows of x (for "q8_0" and "q4_0": ever), on N.
    """
    cdef const kernels *k = real_kernels_for(x)
    cdef stored s = stored_of(w, kind, E, D, x.itemsize)
    if x.ndim != 2 or x.shape[1] != D or s.kind != REALS and x.itemsize != 4:
        raise ValueError(f"a {kind} matrix of shape ({E}, {D}) times {x.dtype} rows of shape {np.shape(x)}")
    x = dense(x, x)
    cdef idx N = x.shape[0], e0, e1
    cdef bint accumulate = into is not None
    cdef np.ndarray y = in_place(into, into) if accumulate else np.empty((N, E), x.dtype)
    if np.shape(y) != (N, E) or y.dtype != x.dtype:
        raise ValueError(f"a product of shape ({N}, {E}) added to {y.dtype} of shape {np.shape(y)}")
    cdef np.ndarray work = np.empty(k.stored_work(N, D), np.uint8)
    with nogil:
        k.stored_inputs(work.data, x.data, D, N, D, s.kind, 0, N)
    cdef np.ndarray room = scratch(k.gemm_work if N > SAME_BITS else 0, x)
    edges = [0, *cuts, E]
    if edges != sorted(edges) or any(cut % GROUP for cut in cuts):
        raise ValueError(f"the cuts {cuts} of {E} rows are not multiples of {GROUP} in ascending order")
    for e0, e1 in itertools.pairwise(edges):
        with nogil:
            k.stored_product(y.data, E, x.data, D, work.data, &s, N, e0, e1, accumulate, room.data)
    return y


def stored_row(np.ndarray w, str kind, idx E, idx D, idx e, dtype="float32"):
    """Row e of a stored matrix w[E D], decoded."""
    cdef np.ndarray y = np.empty(D, dtype)
    cdef const kernels *k = real_kernels_for(y)
    cdef stored s = stored_of(w, kind, E, D, y.itemsize)
    if s.kind != REALS and y.itemsize != 4:
        raise ValueError(f"{kind} is decoded to float32, not {y.dtype}")
    if not 0 <= e < E:
        raise IndexError(f"row {e} of {E}")
    with nogil:
        k.stored_row(y.data, &s, e)
    return y
