/* Products with GGUF's blocks of 32 whole numbers with a scale, Q8_0 and Q4_0, repacked by interleaved()
 * of stored.pxi: see stored.c.
 *
 * (a) x is rounded to int8 in blocks of 32, with a scale of its own.  Products and sums within a block
 *     are those of whole numbers, and exact: no order of theirs changes a bit.
 * (b) A vector holds 4 columns of many rows, a quad each, so that nothing is summed across a vector.
 * (c) The stored bytes are not negative, as the instructions want one of two factors: a quant plus
 *     ZERO.  The sums begin at -ZERO times the sum of x instead of at 0.
 */
#pragma once
#include "tile.h"
#include "halves.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

typedef int32_t ints __attribute__((vector_size(WIDTH)));
typedef int32_t loose_ints __attribute__((vector_size(WIDTH), aligned(1), may_alias));

#ifdef __AVX512VNNI__
enum { SPLIT = 1 };                                /* a quad of x: 4 bytes */
#else
enum { SPLIT = 2 };                                /* or 16 bits each: columns 0 and 2, 1 and 3 */
#endif

enum { COLUMNS = 32, QUADS = COLUMNS / 4, ROWS = 16, PARTS = ROWS / LANES };

typedef struct {                                   /* COLUMNS numbers of x: about scale * quads */
    real scale;
    int32_t start, quads[QUADS * SPLIT];           /* start: -ZERO times the sum of quads */
} rounded;

INLINE idx zero_of(int kind) { return kind == Q8_0 ? 128 : 8; }
INLINE idx bytes_of(int kind) { return ROWS * (kind == Q8_0 ? COLUMNS : COLUMNS / 2); }
INLINE idx block_bytes(int kind) { return bytes_of(kind) + ROWS * sizeof(half); }

/* scale = max |x| / 127, but a normal number, so that 1 / scale is finite: |x - scale q| <= scale / 2 but
 * for two roundings.  Where x is not finite, scale is NaN, and so is every product. */
static void round_block(rounded *restrict to, const real *restrict x, int kind) {
    const real ROUND = 0x1.8p23f;
    word largest = 0;
    for (int i = 0; i < COLUMNS; i++) {
        word size = to_bits(FABS(x[i]));
        largest = size > largest ? size : largest;
    }
    const int finite = largest < INFINITE32;
    const real scale = from_bits(largest) / 127, normal = scale > 0x1p-126f ? scale : 0x1p-126f;
    const real inverse = finite ? 1 / normal : 0;
    int32_t q[COLUMNS], sum = 0;
    for (int i = 0; i < COLUMNS; i++) {
        q[i] = (int32_t)(to_bits((finite ? x[i] : 0) * inverse + ROUND) - to_bits(ROUND));
        sum += q[i];
    }
    to->scale = finite ? normal : NAN;
    to->start = -zero_of(kind) * sum;
    for (int i = 0; i < QUADS; i++) {
        const int32_t *v = q + 4 * i;
        if (SPLIT == 1)
            to->quads[i] = (v[0] & 255) | (v[1] & 255) << 8 | (v[2] & 255) << 16 | (int32_t)((word)v[3] << 24);
        else {
            to->quads[2 * i] = (v[0] & 0xffff) | (int32_t)((word)v[2] << 16);
            to->quads[2 * i + 1] = (v[1] & 0xffff) | (int32_t)((word)v[3] << 16);
        }
    }
}

#ifndef __AVX512VNNI__
/* In each lane the product of the lower 16 bits plus that of the upper 16, signed */
INLINE ints pairs(ints a, ints b) {
#if defined __AVX512BW__
    return (ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined __AVX2__
    return (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined __SSE2__
    return (ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const ints low = (ints)((lanes)a << 16) >> 16, other = (ints)((lanes)b << 16) >> 16;
    return low * other + (a >> 16) * (b >> 16);
#endif
}
#endif

/* sum, plus in each lane 4 products: the bytes of w, not negative, times a quad of x */
INLINE ints dot(ints sum, lanes w, const int32_t *quad) {
#ifdef __AVX512VNNI__
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(*quad));
#else
    const lanes even = 0x00ff00ff - (lanes){0};
    return sum + pairs((ints)(w & even), quad[0] - (ints){0}) + pairs((ints)(w >> 8 & even), quad[1] - (ints){0});
#endif
}

/* y[rows of x, LANES V rows of w] for R rows of x, `down` blocks apart; V, R and kind are constants. */
INLINE void quants_tile(int kind, int R, int V, idx blocks, const rounded *const *x, const uint8_t *w,
                        real (*restrict y)[ROWS]) {
    vec sum[R][V];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = (vec){0};
    for (idx b = 0; b < blocks; b++, w += block_bytes(kind)) {
        ints s[R][V];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) s[r][v] = x[r][b].start - (ints){0};
        if (kind == Q8_0) {
            UNROLL for (int i = 0; i < QUADS; i++)
                UNROLL for (int v = 0; v < V; v++) {
                    const lanes u = (lanes)*(const loose_ints *)(w + 64 * i + v * WIDTH);
                    UNROLL for (int r = 0; r < R; r++) s[r][v] = dot(s[r][v], u, x[r][b].quads + i * SPLIT);
                }
        } else {
            const lanes nibble = 0x0f0f0f0f - (lanes){0};
            UNROLL for (int i = 0; i < QUADS / 2; i++)
                UNROLL for (int v = 0; v < V; v++) {
                    const lanes u = (lanes)*(const loose_ints *)(w + 64 * i + v * WIDTH);
                    UNROLL for (int r = 0; r < R; r++) {
                        s[r][v] = dot(s[r][v], u & nibble, x[r][b].quads + i * SPLIT);
                        s[r][v] = dot(s[r][v], u >> 4 & nibble, x[r][b].quads + (i + QUADS / 2) * SPLIT);
                    }
                }
        }
        UNROLL for (int v = 0; v < V; v++) {
            const vec scale = from_halves((const half *)(w + bytes_of(kind)) + v * LANES);
            UNROLL for (int r = 0; r < R; r++)
                sum[r][v] += __builtin_convertvector(s[r][v], vec) * scale * x[r][b].scale;
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) *(loose *)(y[r] + v * LANES) = sum[r][v];
}

/* y[rows, ROWS] of a group of rows of w, at most R rows of x */
INLINE void quants_of(int kind, int R, idx rows, idx blocks, const rounded *x, const uint8_t *w,
                      real (*restrict y)[ROWS]) {
    const rounded *row[R];
    enum { V = PARTS };
    UNROLL for (int r = 0; r < R; r++) row[r] = x + least(r, rows - 1) * blocks;
    quants_tile(kind, R, V, blocks, row, w, y);
}

static void quants_row(real *restrict y, const uint8_t *group, int kind, idx r, idx D) {
    for (idx b = 0; b < D / COLUMNS; b++) {
        const uint8_t *at = group + b * block_bytes(kind);
        half scale;
        memcpy(&scale, at + bytes_of(kind) + r * sizeof scale, sizeof scale);
        for (int d = 0; d < COLUMNS; d++) {
            int i = kind == Q8_0 ? d : d % 16, q = at[i / 4 * 64 + r * 4 + i % 4];
            if (kind == Q4_0) q = d < 16 ? q & 15 : q >> 4;
            y[b * COLUMNS + d] = from_half(scale) * (q - zero_of(kind));
        }
    }
}
