/* y = x wᵀ with a matrix w[E D] in a storage format. */
#if REAL == 32
#include "quants.h"
#endif

INLINE idx size_of(int kind) { return kind == REALS ? sizeof(real) : 2; }

static idx stored_work(idx N, idx D) {
#if REAL == 32
    return N * (D / COLUMNS) * sizeof(rounded);
#else
    return (void)N, (void)D, 0;
#endif
}

/* x[n0 .. n1, D] as the product wants it, in its rows of `work`: rounded for Q8_0 and Q4_0 */
static void stored_inputs(void *work, const real *x, idx ldx, idx N, idx D, int kind, idx n0, idx n1) {
    (void)N;
#if REAL == 32
    if (kind < Q8_0) return;
    for (idx n = n0; n < n1; n++)
        for (idx b = 0; b < D / COLUMNS; b++)
            round_block((rounded *)work + n * (D / COLUMNS) + b, x + n * ldx + b * COLUMNS, kind);
#else
    (void)work, (void)x, (void)ldx, (void)D, (void)kind, (void)n0, (void)n1;
#endif
}

static void stored_row(real *y, const stored *w, idx e) {
    if (w->kind == REALS) memcpy(y, (const real *)w->at + e * w->D, w->D * sizeof(real));
#if REAL == 32
    const half *halves = (const half *)w->at + e * w->D;
    if (w->kind == FLOAT16) from_float16(y, halves, w->D, 1);
    if (w->kind == BFLOAT16) from_bfloat16(y, halves, w->D, 1);
    if (w->kind < Q8_0) return;
    const idx group = block_bytes(w->kind) * (w->D / COLUMNS);
    quants_row(y, (const uint8_t *)w->at + e / ROWS * group, w->kind, e % ROWS, w->D);
#endif
}

static void stored_product(real *y, idx ldy, const real *x, idx ldx, const void *work, const stored *w,
                           idx N, idx e0, idx e1, int accumulate) {
    const idx D = w->D;
#if REAL == 32
    if (w->kind >= Q8_0) {
        const idx blocks = D / COLUMNS, group = block_bytes(w->kind) * blocks;
        real part[4][ROWS];
        for (idx e = e0; e < e1; e += ROWS)
            for (idx n = 0; n < N; n += 4) {
                const rounded *rows = (const rounded *)work + n * blocks;
                const uint8_t *at = (const uint8_t *)w->at + e / ROWS * group;
                idx m = least(N - n, 4), cols = least(e1 - e, ROWS);
                if (w->kind == Q8_0) quants_of(Q8_0, 4, m, blocks, rows, at, part);
                else quants_of(Q4_0, 4, m, blocks, rows, at, part);
                for (idx i = 0; i < m; i++)
                    for (idx j = 0; j < cols; j++) {
                        real *to = y + (n + i) * ldy + e + j;
                        *to = accumulate ? *to + part[i][j] : part[i][j];
                    }
            }
        return;
    }
#endif
    for (idx e = e0; e < e1; e++)
        for (idx n = 0; n < N; n++) {
            real sum = 0;
            for (idx d = 0; d < D; d++) {
                real v = w->kind == REALS ? ((const real *)w->at)[e * D + d] : 0;
#if REAL == 32
                half h = w->kind == REALS ? 0 : ((const half *)w->at)[e * D + d];
                if (w->kind == FLOAT16) v = from_half(h);
                if (w->kind == BFLOAT16) v = from_bits((word)h << 16);
#endif
                sum += x[n * ldx + d] * v;
            }
            real *to = y + n * ldy + e;
            *to = accumulate ? *to + sum : sum;
        }
}
