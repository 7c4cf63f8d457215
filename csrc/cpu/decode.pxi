codes = {"embed": EMBED, "normalize": NORM, "product": PRODUCT, "pick": PICK, "attend": HEADS, "cross": CROSS,
         "rms": RMS, "layer": LAYER, "swiglu": SWIGLU, "gelu": GELU, "tanh-gelu": TANH_GELU, "relu": RELU, "silu": SILU,
         "tanh": HYPERBOLIC, "int8": INT8, "turned": TURNED, **KINDS}


cdef class Machine:
    """The steps of a plan in C, over arrays that it keeps alive: see pyllama/decode/compiled.py.

    steps       dicts of the fields of `step` in plan.h; a matrix is (kind, array, rows, columns), and an array that
                a step writes is a view of a buffer's columns
    like        an array of the precision
    rows        of each buffer: how many tokens run() takes at a time
    widest      columns of the widest input of a product
    width       K, of a head
    vocabulary  V: ids are below it
    """
    cdef const kernels *kernel
    cdef step *steps
    cdef kept *layers
    cdef kept *memory
    cdef turn now
    cdef readonly idx rows
    cdef idx count, widest, width, vocabulary, sequences, places
    cdef idx *numbers                                   # of a turn: tokens, sequences, positions, wanted, blocks
    cdef int threads                                    # that `work` suffices for
    cdef np.ndarray like, work
    cdef list alive, held                               # arrays that a step, and that a turn has the addresses of

    def __cinit__(self, list steps, np.ndarray like, idx rows, idx widest, idx width, idx vocabulary):
        self.kernel, self.like, self.alive, self.threads = real_kernels_for(like), like, [], 0
        self.rows, self.widest, self.width, self.vocabulary = rows, widest, width, vocabulary
        self.count = len(steps)
        memset(&self.now, 0, sizeof(turn))
        self.steps = <step *>calloc(self.count + 1, sizeof(step))
        self.numbers = <idx *>calloc(5 * rows + 1, sizeof(idx))
        if self.steps == NULL or self.numbers == NULL:
            raise MemoryError("a plan")
        self.now.ids, self.now.owner = self.numbers, self.numbers + rows
        self.now.place, self.now.wanted = self.numbers + 2 * rows, self.numbers + 3 * rows
        self.now.blocks = self.numbers + 4 * rows
        for i, fields in enumerate(steps):
            self.fill(&self.steps[i], fields)
        self.now.normed = <void *>self.address(scratch(rows * widest, like))
        self.now.inputs = <void *>self.address(
            scratch(2 * self.kernel.stored_work(rows, widest) // like.itemsize + 1, like))
        self.now.rows = rows

    def __dealloc__(self):
        free(self.steps)
        free(self.layers)
        free(self.memory)
        free(self.numbers)

    cdef char *address(self, x) except? NULL:
        """The address of an array that a step reads, of the right precision; NULL of None."""
        if x is None:
            return NULL
        self.alive.append(dense(x, self.like))
        return address(self.alive[-1])

    cdef idx columns(self, np.ndarray view, void **at) except -1:
        """Set the address of columns of a buffer; returns the numbers from one row to the next.  None: the scores."""
        self.alive.append(view)
        at[0] = address(view)
        return self.vocabulary if view is None else view.strides[0] // view.itemsize

    cdef int fill(self, step *s, dict fields) except -1:
        s.kind, s.D, s.wanted = fields["kind"], fields.get("D", 0), fields.get("wanted", False)
        s.norm, s.eps, s.scale = fields.get("norm", 0), fields.get("eps", 0.0), fields.get("scale", 1.0)
        s.activation, s.accumulate = fields.get("activation", 0), fields.get("accumulate", False)
        s.norm_w, s.norm_b = self.address(fields.get("norm_w")), self.address(fields.get("norm_b"))
        s.q_norm, s.k_norm = self.address(fields.get("q_norm")), self.address(fields.get("k_norm"))
        s.layer, s.interleaved = fields.get("layer", 0), fields.get("interleaved", False)
        s.G, s.R, s.K, s.window = (fields.get(name, 0) for name in ("G", "R", "K", "window"))
        if fields.get("x") is not None:
            s.ldx = self.columns(fields["x"], <void **>&s.x)
        if fields.get("to") is not None:
            s.ldto = self.columns(fields["to"], &s.to)
        for i, view in enumerate(fields["y"]):
            s.ldy[i] = self.columns(view, &s.y[i])
        for i, (kind, rows, E, D) in enumerate(fields.get("matrices", ())):
            s.w[i].kind, s.w[i].E, s.w[i].D, s.matrices = kind, E, D, i + 1
            s.w[i].at = self.address(rows) if kind in (REALS, TURNED) else address(rows)
            self.alive.append(rows)
        for i, bias in enumerate(fields.get("biases", ())):
            s.b[i] = self.address(bias)
        return 0

    cdef kept *kept_of(self, list layers) except NULL:
        """The addresses of (k, v, k's scales, v's scales) of each layer."""
        cdef kept *all = <kept *>calloc(len(layers) + 1, sizeof(kept))
        if all == NULL:
            raise MemoryError("a cache")
        for i, (k, v, k_scale, v_scale) in enumerate(layers):
            all[i].k, all[i].v = address(k), address(v)
            all[i].k_scale, all[i].v_scale = <float *>address(k_scale), <float *>address(v_scale)
        return all

    def hold(self, list caches, int kind, tables, list memory=[], np.ndarray mask=None):
        """Set the arrays that grow: caches of each layer [B G room K], tables (cos, sin, positions).

        caches      (k, v, k's scales, v's scales) of each layer
        kind        of the caches: REALS, FLOAT16 or INT8
        tables      arrays [places ...], or None
        memory      (k, v, None, None) [B H S K] of each layer, which cross-attention reads
        mask        [B S] of the memory, bytes
        """
        cdef np.ndarray first
        free(self.layers)
        free(self.memory)
        self.layers = self.memory = NULL
        self.held = [caches, memory, mask, *(None if x is None else dense(x, self.like) for x in tables)]
        self.layers, self.memory = self.kept_of(caches), self.kept_of(memory)
        self.now.caches, self.now.memory, self.now.kind = self.layers, self.memory, kind
        self.now.cos, self.now.sin, self.now.positions = (
            address(self.held[3]), address(self.held[4]), address(self.held[5]))
        first = caches[0][0]
        self.sequences, self.now.room = first.shape[0], first.shape[2]
        self.places = min([self.now.room] + [len(x) for x in self.held[3:] if x is not None])
        self.now.mask, self.now.S = address(mask), 0 if mask is None else mask.shape[1]

    def run(self, list ids, list owner, list place, list wanted, np.ndarray scores, np.ndarray source=None):
        """Run the steps for tokens ids[n], of sequence owner[n] and at place[n] there.

        wanted      the rows n whose scores are written to scores [M V]
        source      [B], the row of the memory that each sequence reads, of pointer-sized integers

        Raises IndexError for an id outside the vocabulary.
        """
        cdef idx N = len(ids), M = len(wanted), rows = self.rows, n
        cdef idx *at = self.numbers
        if N > rows or M > rows or len(owner) != N or len(place) != N:
            raise ValueError(f"{N} tokens, {len(owner)} owners, {len(place)} places; at most {rows} rows")
        for n in range(N):
            at[n], at[rows + n], at[2 * rows + n] = ids[n], owner[n], place[n]
            if not 0 <= at[n] < self.vocabulary:
                require_below(np.array([at[n]]), self.vocabulary)
            if not (0 <= at[rows + n] < self.sequences and 0 <= at[2 * rows + n] < self.places):
                raise ValueError(f"sequence {owner[n]} at {place[n]}; there are {self.sequences} of {self.places}")
        for n in range(M):
            at[3 * rows + n] = wanted[n]
            if not 0 <= at[3 * rows + n] < N:
                raise ValueError(f"row {wanted[n]} of {N} is wanted")
        self.decode(N, M, scores, source)

    cdef int decode(self, idx N, idx M, np.ndarray scores, np.ndarray source) except -1:
        """Run the steps for the tokens in `numbers`."""
        if in_place(scores, scores).ndim != 2 or scores.shape[0] != M or scores.shape[1] != self.vocabulary or \
                np.PyArray_TYPE(scores) != np.PyArray_TYPE(self.like):
            raise ValueError(f"scores {np.shape(scores)} for {M} rows of {self.vocabulary}")
        if source is not None and (source.dtype != np.intp or source.size != self.sequences):
            raise ValueError(f"sources {np.shape(source)} of {source.dtype} for {self.sequences} sequences")
        cdef int threads = _threads
        if threads != self.threads:
            self.work = scratch(threads * self.kernel.decode_work(self.widest, self.width), self.like)
            self.threads = threads
        self.now.N, self.now.M, self.now.scores = N, M, address(scores)
        self.now.source = <idx *>address(source)
        with nogil:
            self.kernel.decode(self.steps, self.count, &self.now, self.work.data, self.widest, self.width, threads)
        return 0

    def follow(self, idx token, idx place, idx most, idx among, list ends, np.ndarray scores, np.ndarray source=None):
        """Run the steps for this token at this place of the only sequence, then for the most likely next one, ...

        most        how many tokens are run, at least 1
        among       a token is chosen among the ids below
        ends        the tokens after which none is run
        scores      [1 V], which are overwritten: those after the last token that was run

        Returns the list of tokens that were chosen: one for each that was run, but for the last one if the best of its
        scores is not finite.
        """
        cdef np.ndarray ids, end = np.array(ends, np.intp)
        cdef choice chosen
        if most < 1 or place < 0 or place + most > self.places or self.sequences != 1:
            raise ValueError(f"{most} tokens from {place} on; there are {self.sequences} sequences of {self.places}")
        if not (0 <= token < self.vocabulary and 0 < among <= self.vocabulary):
            raise ValueError(f"token {token} of {self.vocabulary}, then among {among}")
        ids = np.empty(most, np.intp)
        chosen.most, chosen.V, chosen.count, chosen.over = most, among, 0, False
        chosen.ends, chosen.end, chosen.ids = len(ends), <idx *>address(end), <idx *>address(ids)
        self.numbers[0], self.numbers[self.rows], self.numbers[2 * self.rows] = token, 0, place
        self.numbers[3 * self.rows] = 0
        self.now.choice = &chosen
        try:
            self.decode(1, 1, scores, source)
        finally:
            self.now.choice = NULL
        return ids[:chosen.count].tolist()
