cdef extern from "kernels.h" nogil:                     # the types of csrc/plan.h
    enum: EMBED, NORM, PRODUCT, PICK, HEADS, CROSS
    enum: RMS, LAYER
    enum: SWIGLU, GELU, TANH_GELU, RELU, SILU, HYPERBOLIC
    enum: INT8, TURNED
    ctypedef struct step:
        int kind, norm, activation, accumulate, wanted
        const void *x
        const void *norm_w
        const void *norm_b
        idx ldx, D
        double eps, scale
        int matrices
        stored w[3]
        const void *b[3]
        void *y[3]
        void *to
        idx ldy[3]
        idx ldto
        int layer, interleaved
        idx G, R, K, window
        const void *q_norm
        const void *k_norm
    ctypedef struct kept:
        void *k
        void *v
        float *k_scale
        float *v_scale
    ctypedef struct choice:
        idx most, V, ends
        const idx *end
        idx *ids
        idx count
        int over
    ctypedef struct turn:
        idx N, M
        idx *ids
        idx *place
        const idx *owner
        const idx *wanted
        choice *choice
        void *scores
        int kind
        idx room
        const kept *caches
        const kept *memory
        const void *cos
        const void *sin
        const void *positions
        idx S
        const char *mask
        const idx *source
        void *normed
        void *inputs
        idx rows
        idx *blocks
