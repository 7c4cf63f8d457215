/* What attention16.c does with AMX's tiles: sums of products, and their factors packed.
 *
 * (a) A tile of numbers holds 16 rows of 32, a tile of sums 16 x 16.  An edge is 32 rows, 2 tiles.
 * (b) Of a product, the left factor's tiles lie by rows, the right one's by pairs of rows: its row r has numbers of
 *     the rows r and r + 16 of an edge by turns.  So two rows that are rounded become one by a shift and a blend, and
 *     a transpose of 16 x 16 words makes the one kind of tile from the other.
 * (c) All tiles are dense, 1 KiB each, and zero beyond the matrix.
 */
#include <immintrin.h>
#include "amx.h"

enum { TILE = 512, SUM_TILE = 256, EDGE = 32 };    /* numbers of a tile, sums of a tile, rows of two */

typedef struct {
    const number *at;
    idx across, along;                             /* tiles from one to the next: across the sum, along it */
} tiles;

typedef struct {
    real *at;
    idx down, right;                               /* in tiles, too */
} sums;

/* c, m x n tiles, at most 4, = (or +=) a b, over `depth` tiles */
INLINE void sum_tiles(const int m, const int n, sums c, tiles a, tiles b, idx depth, int accumulate) {
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) {
            if (accumulate) load_tile(i * n + j, c.at + (i * c.down + j * c.right) * SUM_TILE, 64);
            else zero_tile(i * n + j);
        }
    for (idx k = 0; k < depth; k++) {
        UNROLL for (int j = 0; j < n; j++) load_tile(6 + j, b.at + (j * b.across + k * b.along) * TILE, 64);
        UNROLL for (int i = 0; i < m; i++) {
            load_tile(4 + i % 2, a.at + (i * a.across + k * a.along) * TILE, 64);
            UNROLL for (int j = 0; j < n; j++) multiply_pairs(i * n + j, 4 + i % 2, 6 + j);
        }
    }
    UNROLL for (int i = 0; i < m; i++)
        UNROLL for (int j = 0; j < n; j++) store_tile(c.at + (i * c.down + j * c.right) * SUM_TILE, 64, i * n + j);
}

/* c, m x 1 tiles */
static void sum_column(idx m, sums c, tiles a, tiles b, idx depth, int accumulate) {
    for (; m >= 4; m -= 4, c.at += 4 * c.down * SUM_TILE, a.at += 4 * a.across * TILE)
        sum_tiles(4, 1, c, a, b, depth, accumulate);
    if (m == 3) sum_tiles(3, 1, c, a, b, depth, accumulate);
    else if (m == 2) sum_tiles(2, 1, c, a, b, depth, accumulate);
    else if (m) sum_tiles(1, 1, c, a, b, depth, accumulate);
}

/* c, m x 2 tiles */
static void sum_columns(idx m, sums c, tiles a, tiles b, idx depth, int accumulate) {
    for (; m >= 2; m -= 2, c.at += 2 * c.down * SUM_TILE, a.at += 2 * a.across * TILE)
        sum_tiles(2, 2, c, a, b, depth, accumulate);
    if (m) sum_tiles(1, 2, c, a, b, depth, accumulate);
}

/* c, 2 x n tiles */
static void sum_rows(idx n, sums c, tiles a, tiles b, idx depth, int accumulate) {
    for (; n >= 2; n -= 2, c.at += 2 * c.right * SUM_TILE, b.at += 2 * b.across * TILE)
        sum_tiles(2, 2, c, a, b, depth, accumulate);
    if (n) sum_tiles(2, 1, c, a, b, depth, accumulate);
}

/* 16 x 16 words, transposed.  Stage s exchanges lanes l of row i + s and l + s of row i. */
INLINE void transpose_tile(void *tile) {
    const __m512i l = _mm512_load_si512(IOTA), beyond = _mm512_set1_epi32(16);
    __m512i row[16];
    UNROLL for (int i = 0; i < 16; i++) row[i] = _mm512_load_si512((char *)tile + i * 64);
    UNROLL for (int s = 1; s < 16; s *= 2) {
        const __m512i step = _mm512_set1_epi32(s), up = _mm512_or_si512(l, step);
        const __mmask16 odd = _mm512_test_epi32_mask(l, step);
        const __m512i low = _mm512_mask_add_epi32(l, odd, l, _mm512_sub_epi32(beyond, step));
        const __m512i high = _mm512_mask_or_epi32(up, odd, up, beyond);
        UNROLL for (int i = 0; i < 16; i++) {
            if (i & s) continue;
            const __m512i upper = row[i], lower = row[i + s];
            row[i] = _mm512_permutex2var_epi32(upper, low, lower);
            row[i + s] = _mm512_permutex2var_epi32(upper, high, lower);
        }
    }
    UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512((char *)tile + i * 64, row[i]);
}

static void transpose_tiles(number *tile, idx count) {
    for (idx i = 0; i < count; i++) transpose_tile(tile + i * TILE);
}

/* The first n lanes, n of any size. */
INLINE __mmask32 lanes_below(idx n) { return n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0; }

/* Edges of x[rows K] by rows: tiles[16 rows, 32 columns] */
static void tile_rows(number *to, lines x, idx rows, idx K) {
    for (idx i = 0; i < parts_of(rows, EDGE) * EDGE; i += 16)
        for (idx k = 0; k < K; k += 32, to += TILE) {
            const __mmask32 there = lanes_below(K - k);
            const number *at = x.at + i * x.down + k;
            for (idx r = 0; r < 16; r++, at += x.down)
                _mm512_store_si512(to + r * 32, _mm512_maskz_loadu_epi16(i + r < rows ? there : 0, at));
        }
}

INLINE __m512i words_of(const number *at, __mmask16 there) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, at));
}

/* Edges of x[rows K] by pairs of rows: tiles[32 rows, 16 columns] */
static void tile_pairs(number *to, lines x, idx rows, idx K) {
    for (idx i = 0; i < rows; i += EDGE)
        for (idx k = 0; k < K; k += 16, to += TILE) {
            const __mmask16 there = lanes_below(K - k);
            const number *at = x.at + i * x.down + k;
            for (idx r = 0; r < 16; r++, at += x.down) {
                const __m512i even = words_of(at, i + r < rows ? there : 0);
                const __m512i odd = words_of(at + 16 * x.down, i + r + 16 < rows ? there : 0);
                _mm512_store_si512(to + r * 32, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
            }
        }
}

/* Numbers by turns, rounded to the nearest, ties away from 0: with ties to even, a pair costs twice as much. */
INLINE __m512i paired(__m512 even, __m512 odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32((__m512i)even, half), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_add_epi32((__m512i)odd, half));
}

INLINE void put_lanes(number *to, __m512 x, idx n) {
    _mm256_mask_storeu_epi16(to, lanes_below(n), (__m256i)_mm512_cvtneps_pbh(x));
}
