/* Pairs along K, widened to float and exchanged while they are packed: tile.h adds up the second before the first. */
#pragma once
#include "tile.h"

typedef real packed;
typedef matrix rows_of_a;

/* to[k ^ 1] = x[k], with a zero beside an odd one out */
INLINE void widen_pairs(real *restrict to, const number *restrict x, idx K) {
    #pragma omp simd
    for (idx k = 0; k < K - 1; k += 2) {
        to[k] = get(x[k + 1]);
        to[k + 1] = get(x[k]);
    }
    if (K % 2) to[K - 1] = 0, to[K] = get(x[K - 1]);
}

/* Line k of x goes where k ^ 1 would: n of its numbers, and zeros up to `width` */
INLINE void widen_lines(real *restrict to, idx width, const number *restrict x, idx apart, idx lines, idx n) {
    if (n < width || lines % 2) memset(to, 0, whole(lines, 2) * width * sizeof(real));
    for (idx k = 0; k < lines; k++)
        for (idx i = 0; i < n; i++) to[(k ^ 1) * width + i] = get(x[k * apart + i]);
}

INLINE rows_of_a packed_rows_of_a(const real *at, factor a) {
    return a.right == 1 ? (matrix){at, LONG_ROW, 1} : (matrix){at, 1, DOWN};
}

/* a[rows K], rows <= DOWN, as packed_rows_of_a() says; padded with rows of zeros */
static void pack_a(real *restrict to, factor a, idx rows, idx K) {
    if (a.right != 1 && rows == DOWN) widen_lines(to, DOWN, a.at, a.right, K, DOWN);
    else if (a.right != 1) widen_lines(to, DOWN, a.at, a.right, K, rows);
    else {
        if (rows < DOWN) memset(to, 0, DOWN * LONG_ROW * sizeof(real));
        for (idx i = 0; i < rows; i++) widen_pairs(to + i * LONG_ROW, a.at + i * a.down, K);
    }
}

/* b[K cols], cols <= ACROSS, row after row; padded with columns of zeros */
static void pack_b(real *restrict to, factor b, idx K, idx cols) {
    if (b.right == 1 && cols == ACROSS) widen_lines(to, ACROSS, b.at, b.down, K, ACROSS);
    else if (b.right == 1) widen_lines(to, ACROSS, b.at, b.down, K, cols);
    else {
        if (cols < ACROSS || K % 2) memset(to, 0, whole(K, 2) * ACROSS * sizeof(real));
        for (idx k = 0; k < K; k++)
            for (idx j = 0; j < cols; j++) to[(k ^ 1) * ACROSS + j] = get(b.at[k + j * b.right]);
    }
}

INLINE rows_of_a ready_rows(factor a, real *room, idx rows, idx K) {
    pack_a(room, a, rows, K);
    return packed_rows_of_a(room, a);
}

/* c[rows cols] = (or +=) a b */
INLINE void add_products_of_rows(idx K, rows_of_a a, const real *b, real *c, idx ldc, idx rows, idx cols,
                                 int accumulate) {
    tile(K, a, b, c, ldc, rows, cols, accumulate);
}
