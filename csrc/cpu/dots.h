/* x wᵀ for few rows of x, as in decoding: reading w is what takes time, and it is read once, as it lies.
 *
 * (a) A tile is R rows of x times LANES / R rows of w: LANES sums, a vector each, so that many are under
 *     way.
 * (b) Lane l of a sum adds the products of columns l, l + LANES, ... in this order; in the end the lanes
 *     are added by halves.  So the bits of a product depend on its two rows alone.
 * (c) Each row of a tile is a stream of its own, too short for the processor to prefetch: the rows of the
 *     next tile are requested here.
 */
#pragma once
#include "numbers.h"

enum { KEPT = 16 };                                /* rows of w that stay in a cache for all rows of x */

/* The sum of v[i] in lane i.  At stage s, what is left of a sum is a block of 2 s lanes; the lower and the
 * upper halves of the blocks of two vectors are added, and make one. */
INLINE vec sums_of(vec *v) {
#ifdef __clang__
    vec y;
    for (int i = 0; i < LANES; i++) {
        for (int s = LANES / 2; s; s /= 2)
            for (int l = 0; l < s; l++) v[i][l] += v[i][l + s];
        y[i] = v[i][0];
    }
    return y;
#else
    UNROLL for (int s = LANES / 2; s; s /= 2) {
        const lanes l = *(const lanes *)IOTA, odd = (l & s) != 0;
        const lanes low = l + (odd & (LANES - s)), high = (l | s) + (odd & LANES);
        UNROLL for (int i = 0; i < s; i++)
            v[i] = __builtin_shuffle(v[i], v[i + s], low) + __builtin_shuffle(v[i], v[i + s], high);
    }
    return v[0];
#endif
}

INLINE void add_products(int R, vec *sum, const vec *x, const vec *w) {
    UNROLL for (int i = 0; i < LANES; i++) sum[i] += x[i / (LANES / R)] * w[i % (LANES / R)];
}

/* In lane r * (LANES / R) + c: x[r] times w[c], of K numbers.  `next` bytes on, the next tile begins. */
INLINE vec dots_tile(int kind, int R, idx K, const real *const *x, const char *const *w, idx next) {
    const int C = LANES / R;
    vec sum[LANES], a[LANES], b[LANES];
    UNROLL for (int i = 0; i < LANES; i++) sum[i] = (vec){0};
    idx k = 0;
    for (; k + LANES <= K; k += LANES) {
        UNROLL for (int r = 0; r < R; r++) a[r] = *(const loose *)(x[r] + k);
        UNROLL for (int c = 0; c < C; c++) {
            const char *at = w[c] + k * size_of(kind);
            __builtin_prefetch(at + next);
            b[c] = numbers(kind, at);
        }
        add_products(R, sum, a, b);
    }
    if (k < K) {
        UNROLL for (int r = 0; r < R; r++) a[r] = last_numbers(REALS, x[r] + k, K - k);
        UNROLL for (int c = 0; c < C; c++) b[c] = last_numbers(kind, w[c] + k * size_of(kind), K - k);
        add_products(R, sum, a, b);
    }
    return sums_of(sum);
}

/* y[N E] = (or +=) x[N D] w[E D]ᵀ for N <= R and E <= KEPT; a row of w is `down` bytes from the next. */
INLINE void dots_kept(int kind, int R, real *y, idx ldy, const real *x, idx ldx, const char *w, idx down, idx N,
                       idx E, idx D, int accumulate) {
    const int C = LANES / R;
    const real *row[LANES];
    UNROLL for (int r = 0; r < R; r++) row[r] = x + least(r, N - 1) * ldx;
    for (idx e = 0; e < E; e += C) {
        const char *column[LANES];
        UNROLL for (int c = 0; c < C; c++) column[c] = w + least(e + c, E - 1) * down;
        const vec sums = dots_tile(kind, R, D, row, column, C * down);
        for (idx n = 0; n < N; n++)
            for (idx c = 0; c < least(C, E - e); c++) {
                real *to = y + n * ldy + e + c, sum = sums[n * C + c];
                *to = accumulate ? *to + sum : sum;
            }
    }
}

/* y[N E] = (or +=) x[N D] w[E D]ᵀ */
INLINE void dots(int kind, real *y, idx ldy, const real *x, idx ldx, const char *w, idx down, idx N, idx E, idx D,
                 int accumulate) {
    enum { MOST = LANES < 4 ? LANES : 4 };
    for (idx e = 0; e < E; e += KEPT)
        for (idx n = 0; n < N; n += MOST) {
            const idx rows = least(N - n, MOST), columns = least(E - e, KEPT);
#define DOTS(R)                                                                                               \
    dots_kept(kind, R, y + n * ldy + e, ldy, x + n * ldx, ldx, w + e * down, down, rows, columns, D, accumulate)
            if (rows == 1) DOTS(1);
            else if (rows == 2) DOTS(2);
            else DOTS(MOST);
#undef DOTS
        }
}
