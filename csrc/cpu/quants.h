/* x wᵀ with w in GGUF's blocks of 32 columns, Q8_0 or Q4_0, repacked by interleaved() of stored.pxi.
 *
 * (a) A vector holds a quad, 4 columns, of each of many rows of w: nothing is summed across a vector.
 * (b) A tile is R rows of x times V vectors of rows of w.  What is unpacked of w serves R rows, a quad of x
 *     that was broadcast serves V vectors.
 * (c) Sums within a block are those of whole numbers, and exact.  The blocks are added in order.  So the
 *     bits of a product depend on its two rows alone.
 * (d) The instructions want one factor without a sign, so a quant is stored plus `zero`; a sum begins at
 *     -zero times the sum of x instead of at 0.
 */
#pragma once
#include "numbers.h"

enum { COLUMNS = 32, QUADS = COLUMNS / 4, ROWS = 16, WIDE = 2, TALLEST = WIDTH == 64 ? 6 : 4, FETCH = 2048 };

#if defined __AVX512VNNI__
enum { FOURS = 1, TWOS = 0 };                      /* an instruction for sums of 4 products of bytes */
#elif defined __AVX2__
enum { FOURS = 0, TWOS = 1 };                      /* for sums of 2, which have 16 bits */
#else
enum { FOURS = 0, TWOS = 0 };
#endif

typedef word loose_lanes __attribute__((vector_size(WIDTH), aligned(1), may_alias));

typedef struct {                                   /* COLUMNS numbers of x, about scale * quads */
    real scale;
    int32_t start, quads[(2 - FOURS) * QUADS];     /* start: -zero times their sum */
} rounded;

INLINE int zero_of(int kind) { return kind == Q8_0 ? 128 : 8; }
INLINE idx quants_bytes(int kind) { return ROWS * (kind == Q8_0 ? COLUMNS : COLUMNS / 2); }
INLINE idx block_bytes(int kind) { return quants_bytes(kind) + ROWS * sizeof(half); }

/* Do sums within a block fit into 16 bits?  Those of Q4_0: 8 * 2 * 15 * 127 < 2^15. */
INLINE int short_sums(int kind) { return TWOS && kind == Q4_0; }

/* A quad of x is 4 bytes; or 4 times 16 bits, of columns 0 and 2, then of 1 and 3. */
INLINE int split(int kind) { return FOURS || short_sums(kind) ? 1 : 2; }

/* |x - scale q| <= scale / 2, but for two roundings.  The scale is a normal number, so 1 / scale is finite;
 * where x is not finite, it is NaN, and so is every product. */
static void round_block(rounded *restrict to, const real *restrict x, int kind) {
    const real ROUND = 0x1.8p23f, LEAST = 0x1p-126f;
    word largest = 0;
    for (int i = 0; i < COLUMNS; i++) {
        const word size = to_bits(FABS(x[i]));
        largest = size > largest ? size : largest;
    }
    const int finite = largest < INFINITE32;
    const real ideal = from_bits(largest) / 127, scale = ideal > LEAST ? ideal : LEAST;
    const real inverse = finite ? 1 / scale : 0;
    int32_t q[COLUMNS], sum = 0;
    for (int i = 0; i < COLUMNS; i++) {
        q[i] = to_bits((finite ? x[i] : 0) * inverse + ROUND) - to_bits(ROUND);
        sum += q[i];
    }
    to->scale = finite ? scale : NAN;
    to->start = -zero_of(kind) * sum;
    for (int i = 0; i < QUADS; i++) {
        const word a = q[4 * i], b = q[4 * i + 1], c = q[4 * i + 2], d = q[4 * i + 3];
        if (split(kind) == 1) {
            to->quads[i] = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | d << 24;
        } else {
            to->quads[2 * i] = (a & 0xffff) | c << 16;
            to->quads[2 * i + 1] = (b & 0xffff) | d << 16;
        }
    }
}

/* In each lane: the product of the lower 16 bits of a and b plus that of the upper 16, with signs */
INLINE ints pairs(ints a, ints b) {
#if defined __AVX512BW__
    return (ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined __AVX2__
    return (ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined __SSE2__
    return (ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return ((ints)((lanes)a << 16) >> 16) * ((ints)((lanes)b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* sum, plus in each lane 4 products: of bytes of w, without a sign, with a quad of x */
INLINE ints dot(int kind, ints sum, lanes w, const int32_t *quad) {
    const ints x = quad[0] - (ints){0};
#if defined __AVX512VNNI__
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined __AVX512BW__
    if (short_sums(kind))
        return (ints)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)w, (__m512i)x));
#elif defined __AVX2__
    if (short_sums(kind))
        return (ints)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)x));
#endif
    const lanes even = w & 0x00ff00ff, odd = w >> 8 & 0x00ff00ff;
    return sum + pairs((ints)even, x) + pairs((ints)odd, quad[1] - (ints){0});
}

INLINE void add_quads(int kind, int R, int V, ints (*sum)[WIDE], const lanes *w, const rounded *const *x, idx block,
                      int quad) {
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++)
            sum[r][v] = dot(kind, sum[r][v], w[v], x[r][block].quads + quad * split(kind));
}

/* y[R V] = x[R] times the rows of w in the vectors at `quants`, whose scales are at `scales`.  Past its end a group is
 * followed by the next tile's, which lies beyond the other groups of this one. */
INLINE void quants_tile(int kind, int R, int V, vec (*y)[WIDE], const rounded *const *x, const uint8_t *const *quants,
                        const uint8_t *const *scales, idx blocks) {
    const idx length = blocks * block_bytes(kind), others = V * LANES > ROWS ? (V - 1) * length : 0;
    vec sum[TALLEST][WIDE];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = (vec){0};
    for (idx b = 0, at = 0; b < blocks; b++, at += block_bytes(kind)) {
        const idx ahead = at + FETCH, next = ahead < length ? ahead : ahead + others;
        ints s[TALLEST][WIDE];
        lanes u[WIDE], high[WIDE];
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < V; v++) s[r][v] = (short_sums(kind) ? 0 : x[r][b].start) - (ints){0};
#ifdef __AVX512VNNI__
        UNROLL
#else
        _Pragma("GCC unroll 1")                    /* or GCC makes all products first, more than it has registers */
#endif
        for (int i = 0; i < QUADS; i++) {
            if (kind == Q4_0 && i >= QUADS / 2) break;
            UNROLL for (int v = 0; v < V; v++) {
                u[v] = *(const loose_lanes *)(quants[v] + at + i * ROWS * 4);
                __builtin_prefetch(quants[v] + next + i * ROWS * 4);
            }
            if (kind == Q4_0) {
                UNROLL for (int v = 0; v < V; v++) {
                    high[v] = u[v] >> 4 & 0x0f0f0f0f;
                    u[v] &= 0x0f0f0f0f;
                }
                add_quads(kind, R, V, s, high, x, b, i + QUADS / 2);
            }
            add_quads(kind, R, V, s, u, x, b, i);
        }
        UNROLL for (int v = 0; v < V; v++) {
            const vec scale = from_float16s((const half *)(scales[v] + at));
            UNROLL for (int r = 0; r < R; r++) {
                if (short_sums(kind)) s[r][v] = pairs(s[r][v], 0x00010001 - (ints){0}) + x[r][b].start;
                sum[r][v] += __builtin_convertvector(s[r][v], vec) * scale * x[r][b].scale;
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < V; v++) y[r][v] = sum[r][v];
}

/* y = (or +=) the first E sums */
INLINE void write_some(real *y, vec sums, idx E, int accumulate) {
    if (E >= LANES) {
        if (accumulate) sums += *(const loose *)y;
        *(loose *)y = sums;
        return;
    }
    for (idx i = 0; i < E; i++) y[i] = accumulate ? y[i] + sums[i] : sums[i];
}

/* y[N E] = (or +=) x w[e .. e + E]ᵀ for N <= R and E <= V vectors */
INLINE void quants_of(int kind, int R, int V, real *y, idx ldy, const rounded *x, const stored *w, idx N, idx e, idx E,
                      int accumulate) {
    const idx blocks = w->D / COLUMNS;
    const rounded *row[TALLEST];
    const uint8_t *quants[WIDE], *scales[WIDE];
    vec sums[TALLEST][WIDE];
    UNROLL for (int r = 0; r < R; r++) row[r] = x + least(r, N - 1) * blocks;
    UNROLL for (int v = 0; v < V; v++) {
        const idx first = e + (v * LANES < E ? v * LANES : 0), within = first % ROWS;
        const uint8_t *group = (const uint8_t *)w->at + first / ROWS * blocks * block_bytes(kind);
        quants[v] = group + within * 4;
        scales[v] = group + quants_bytes(kind) + within * sizeof(half);
    }
    quants_tile(kind, R, V, sums, row, quants, scales, blocks);
    for (idx n = 0; n < N; n++)
        UNROLL for (int v = 0; v < V; v++)
            write_some(y + n * ldy + v * LANES, sums[n][v], E - v * LANES, accumulate);
}

/* y[n e] = (or +=) x w[e]ᵀ for all n < N and e0 <= e < e1 */
static void quants_product(real *y, idx ldy, const rounded *x, const stored *w, idx N, idx e0, idx e1,
                           int accumulate) {
    for (idx e = e0; e < e1; e += WIDE * LANES)
        for (idx n = 0; n < N; n += TALLEST) {
            const rounded *at = x + n * (w->D / COLUMNS);
            const idx rows = least(N - n, TALLEST), columns = least(e1 - e, WIDE * LANES);
#define QUANTS(kind, R, V) quants_of(kind, R, V, y + n * ldy + e, ldy, at, w, rows, e, columns, accumulate)
#define EITHER(R, V)                                                                             \
    if (w->kind == Q8_0) QUANTS(Q8_0, R, V);                                                     \
    else QUANTS(Q4_0, R, V)
            if (rows == 1 && columns <= LANES) EITHER(1, 1);
            else if (rows == 1) EITHER(1, WIDE);
            else if (rows == 2) EITHER(2, WIDE);
            else if (rows <= 4) EITHER(4, WIDE);
            else EITHER(TALLEST, WIDE);
#undef EITHER
#undef QUANTS
        }
}

static void quants_row(real *restrict y, const stored *w, idx e) {
    const idx blocks = w->D / COLUMNS, row = e % ROWS;
    const uint8_t *at = (const uint8_t *)w->at + e / ROWS * blocks * block_bytes(w->kind);
    for (idx b = 0; b < blocks; b++, at += block_bytes(w->kind)) {
        real scale;
        widen(FLOAT16, &scale, (const char *)at + quants_bytes(w->kind) + row * sizeof(half), 1);
        for (idx d = 0; d < COLUMNS; d++) {
            const idx byte = w->kind == Q8_0 ? d : d % (COLUMNS / 2);
            int q = at[byte / 4 * ROWS * 4 + row * 4 + byte % 4];
            if (w->kind == Q4_0) q = d == byte ? q & 15 : q >> 4;
            y[b * COLUMNS + d] = scale * (q - zero_of(w->kind));
        }
    }
}
