/* y = x wᵀ with a matrix w[E D] in the format in which a file stores it; and its rows, for embeddings.
 *
 * REALS, FLOAT16 and BFLOAT16 are row-major.  Q8_0 and Q4_0 are GGUF's blocks of 32 columns, those of 16
 * rows interleaved: see interleaved() in stored.pxi.
 *
 * (a) For Q8_0 and Q4_0 x is rounded to int8, in blocks of 32 with a scale of max |x| / 127 each.  Each x_d
 *     is wrong by half a scale at most, so a block adds to the error of y no more than
 *         Σ_d |x_d - scale q_d| |w_d| <= scale (1/2 + 2^-16) Σ_d |w_d|,
 *     where 2^-16 is 127 times what x / scale is wrong by, 2 roundings.  Beside that, only the sum over
 *     the blocks rounds, in float.  A scale is at least 2^-126, the least normal number.
 * (b) The bits of y[n, e] depend on row n of x and row e of w alone.  But where more than SAME_BITS rows of
 *     x meet a w of real numbers or halves, they are those of gemm.c, the same sum in another order.
 */
#include "dots.h"

#if REAL == 32
#include "quants.h"
#ifdef __AMX_INT8__
#include "quant_tiles.h"
#endif

static idx stored_work(idx N, idx D) {
#ifdef __AMX_INT8__
    if (N > SAME_BITS) N = (N + SLAB - 1) / SLAB * SLAB;
#endif
    return N * (D / COLUMNS) * sizeof(rounded);
}

/* Rows n0 .. n1 of x[N D], as stored_product wants them, in their part of `work` */
static void stored_inputs(void *work, const real *x, idx ldx, idx N, idx D, int kind, idx n0, idx n1) {
    if (kind != Q8_0 && kind != Q4_0) return;
#ifdef __AMX_INT8__
    if (in_slabs(N, D)) {
        for (idx n = n0; n < n1; n++) round_to_slab(work, x + n * ldx, n, D / COLUMNS, kind);
        return;
    }
#endif
    rounded *to = (rounded *)work + n0 * (D / COLUMNS);
    for (idx n = n0; n < n1; n++)
        for (idx d = 0; d < D; d += COLUMNS) round_block(to++, x + n * ldx + d, kind);
}
#else
static idx stored_work(idx N, idx D) { return 0; }
static void stored_inputs(void *work, const real *x, idx ldx, idx N, idx D, int kind, idx n0, idx n1) {}
#endif

/* Bytes of so many rows, a multiple of 16 */
static idx stored_bytes(const stored *w, idx rows) {
#if REAL == 32
    if (w->kind == Q8_0 || w->kind == Q4_0) return rows / ROWS * (w->D / COLUMNS) * block_bytes(w->kind);
#endif
    return rows * w->D * size_of(w->kind);
}

static void stored_row(real *y, const stored *w, idx e) {
#if REAL == 32
    if (w->kind == Q8_0 || w->kind == Q4_0) {
        quants_row(y, w, e);
        return;
    }
#endif
    widen(w->kind, y, (const char *)w->at + e * w->D * size_of(w->kind), w->D);
}

/* work: of stored_inputs(); room: WORK numbers, for more than SAME_BITS rows */
static void stored_product(real *y, idx ldy, const real *x, idx ldx, const void *work, const stored *w,
                           idx N, idx e0, idx e1, int accumulate, real *room) {
#if REAL == 32
    if (w->kind == Q8_0 || w->kind == Q4_0) {
#ifdef __AMX_INT8__
        if (in_slabs(N, w->D)) {
            slabs_product(y, ldy, work, w, N, e0, e1, accumulate, room);
            return;
        }
#endif
        quants_product(y, ldy, work, w, N, e0, e1, accumulate);
        return;
    }
#endif
    const idx D = w->D, down = D * size_of(w->kind);
    const char *at = (const char *)w->at + e0 * down;
    const matrix rows = {x, ldx, 1}, wT = {(const real *)at, 1, D};
#define PRODUCT(stored_as)                                                                               \
    if (w->kind == stored_as && N <= SAME_BITS)                                                          \
        dots(stored_as, y + e0, ldy, x, ldx, at, down, N, e1 - e0, D, accumulate);                       \
    if (w->kind == stored_as && N > SAME_BITS)                                                           \
        product(stored_as, y + e0, ldy, rows, wT, N, e1 - e0, D, accumulate, room)
    PRODUCT(REALS);
#if REAL == 32
    PRODUCT(FLOAT16);
    PRODUCT(BFLOAT16);
#endif
#undef PRODUCT
}
