/* Pairs along K for vdpbf16ps: one broadcast of a pair of A meets VECTORS of pairs of B.  See tile.h. */
#pragma once
#include <immintrin.h>
#include "tile.h"

typedef number packed;
typedef struct {                                   /* pair k / 2 of row i is at[i * down + k / 2 * next] */
    const number *at;
    idx down, next;
} rows_of_a;

INLINE __mmask32 first_of(idx n) { return n >= 32 ? ~(__mmask32)0 : (1u << (n < 0 ? 0 : n)) - 1; }

/* Pairs of a line of x and the next one: n of them from each two lines, then zeros, `width` together */
INLINE void pair_lines(number *restrict to, idx width, const number *x, idx apart, idx lines, idx n) {
    for (idx k = 0; k < lines; k += 2, to += 2 * width)
        for (idx i = 0; i < width; i += LANES) {
            const number *even = x + k * apart + i;
            const __mmask16 there = first_of(n - i), next = k + 1 < lines ? there : 0;
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, even));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(next, even + apart));
            const __m512i pairs = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            _mm512_mask_storeu_epi32(to + 2 * i, first_of(width - i), pairs);
        }
}

INLINE rows_of_a packed_rows_of_a(const number *at, factor a) {
    return a.right == 1 ? (rows_of_a){at, LONG_ROW, 2} : (rows_of_a){at, 2, 2 * DOWN};
}

/* a[rows K], rows <= DOWN, as packed_rows_of_a() says */
static void pack_a(number *restrict to, factor a, idx rows, idx K) {
    if (a.right != 1) pair_lines(to, DOWN, a.at, a.right, K, rows);
    else {
        memset(to, 0, DOWN * LONG_ROW * sizeof(number));
        for (idx i = 0; i < rows; i++) memcpy(to + i * LONG_ROW, a.at + i * a.down, K * sizeof(number));
    }
}

/* Pairs of LANES columns; those of a column are contiguous, and are transposed as if they were floats. */
static void turn_columns(number *restrict to, factor b, idx K, idx cols) {
    real square[LANES * LANES] __attribute__((aligned(64)));
    for (idx k = 0; k < K; k += 2 * LANES) {
        const idx there = least(K - k, 2 * LANES);
        if (there < 2 * LANES || cols < LANES) memset(square, 0, sizeof square);
        for (idx j = 0; j < least(cols, LANES); j++)
            memcpy(square + j * LANES, b.at + k + j * b.right, there * sizeof(number));
        if (there == 2 * LANES) transpose((real *)(to + k * ACROSS), square, LANES);
        else for (idx p = 0; p < (there + 1) / 2; p++)
            for (idx j = 0; j < LANES; j++) memcpy(to + k * ACROSS + 2 * (p * ACROSS + j), square + j * LANES + p, 4);
    }
}

/* b[K cols], cols <= ACROSS: pairs of a row together; padded with columns of zeros */
static void pack_b(number *restrict to, factor b, idx K, idx cols) {
    if (b.right == 1) pair_lines(to, ACROSS, b.at, b.down, K, cols);
    else for (idx j = 0; j < ACROSS; j += LANES) turn_columns(to + 2 * j, part_of(b, 0, j), K, cols - j);
}

/* A row of pairs is read where it lies, but for an odd number at its end, which has no partner. */
INLINE rows_of_a ready_rows(factor a, number *room, idx rows, idx K) {
    if (rows == DOWN && a.right == 1 && K % 2 == 0) return (rows_of_a){a.at, a.down, 2};
    pack_a(room, a, rows, K);
    return packed_rows_of_a(room, a);
}

INLINE __m512bh pair_of(const number *at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

/* c[rows .] = (or +=) a b, V vectors of columns wide, of the last one those that are there.  V and the one of down and
 * next that is known are constants where this is inlined. */
INLINE void pairs_tile(int V, idx K, const number *a, idx down, idx next, const number *b, real *c, idx ldc, idx rows,
                       __mmask16 there, int accumulate) {
    __m512 sum[DOWN][VECTORS];
    UNROLL for (int i = 0; i < DOWN; i++)
        UNROLL for (int v = 0; v < V; v++) sum[i][v] = _mm512_setzero_ps();
    for (idx k = 0; k < K; k += 2, a += next, b += 2 * ACROSS) {
        __m512bh bk[VECTORS];
        UNROLL for (int v = 0; v < V; v++) bk[v] = (__m512bh)_mm512_load_si512(b + 2 * LANES * v);
        UNROLL for (int i = 0; i < DOWN; i++) {
            const __m512bh pair = pair_of(a + i * down);
            UNROLL for (int v = 0; v < V; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], pair, bk[v]);
        }
    }
    UNROLL for (int i = 0; i < DOWN; i++) {
        if (i >= rows) break;
        UNROLL for (int v = 0; v < V; v++) {
            const __mmask16 mask = v < V - 1 ? -1 : there;
            real *to = c + i * ldc + v * LANES;
            if (accumulate) sum[i][v] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sum[i][v]);
            _mm512_mask_storeu_ps(to, mask, sum[i][v]);
        }
    }
}

/* c[rows cols] = (or +=) a b */
static void add_products_of_rows(idx K, rows_of_a a, const number *b, real *c, idx ldc, idx rows, idx cols,
                                 int accumulate) {
    const int V = (cols + LANES - 1) / LANES;
    const __mmask16 there = first_of(cols - (V - 1) * LANES);
#define PAIRS(V, down, next) pairs_tile(V, K, a.at, down, next, b, c, ldc, rows, there, accumulate)
    if (a.next == 2) {
        if (V == 1) PAIRS(1, a.down, 2);
        else if (V == 2) PAIRS(2, a.down, 2);
        else PAIRS(VECTORS, a.down, 2);
    } else {
        if (V == 1) PAIRS(1, 2, 2 * DOWN);
        else if (V == 2) PAIRS(2, 2, 2 * DOWN);
        else PAIRS(VECTORS, 2, 2 * DOWN);
    }
#undef PAIRS
}
