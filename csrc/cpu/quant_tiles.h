/* Products of many rows of x with Q8_0 and Q4_0 by AMX: the bits of quants.h, whose sums within a block are exact.
 *
 * (a) A slab is SLAB rows of x.  Its product with PAIR groups of rows of w is kept in registers: 24 of 32.
 * (b) w is unpacked once for all slabs, to bytes with signs: `zero` need not be subtracted from sums then.
 * (c) Tiles work in order, and a sum is ready some 50 cycles after it began.  So the sums of a block leave their
 *     tile when those of the next have begun, and are converted one block later.
 */
#pragma once
#include "amx.h"

enum { SLAB = 12, PAIR = 2, OF_X = 4, OF_W = 5 }; /* the tiles: 0 .. 3 sums, 4 of x, 5 and 6 of w */

typedef struct {                                   /* COLUMNS numbers of each row of a slab; see `rounded` */
    int8_t x[SLAB][COLUMNS];
    real scale[16];
} slab_block;
_Static_assert(sizeof(slab_block) <= SLAB * sizeof(rounded), "stored_work() is too small");

typedef struct {                                   /* a block of PAIR groups */
    int8_t w[PAIR][QUADS][ROWS][4];
    vec scale[PAIR];
} pair_block;

/* Are N rows of x kept in slabs?  So many that this pays, and `room` suffices for a pair. */
INLINE int in_slabs(idx N, idx D) {
    return N > SAME_BITS && D / COLUMNS * (idx)sizeof(pair_block) <= (idx)(WORK * sizeof(real));
}

static void round_to_slab(slab_block *slabs, const real *x, idx n, idx blocks, int kind) {
    slab_block *to = slabs + n / SLAB * blocks;
    for (idx b = 0; b < blocks; b++) {
        rounded r;
        round_block(&r, x + b * COLUMNS, kind);
        memcpy(to[b].x[n % SLAB], r.quads, COLUMNS);
        to[b].scale[n % SLAB] = r.scale;
    }
}

INLINE void unpack_quad(int kind, pair_block *to, int v, int quad, const uint8_t *at) {
    const __m512i quants = _mm512_loadu_si512(at), low = _mm512_set1_epi8(15), zero = _mm512_set1_epi8(zero_of(kind));
    if (kind == Q8_0) _mm512_storeu_si512(to->w[v][quad], _mm512_sub_epi8(quants, zero));
    else {
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(quants, 4), low);
        _mm512_storeu_si512(to->w[v][quad], _mm512_sub_epi8(_mm512_and_si512(quants, low), zero));
        _mm512_storeu_si512(to->w[v][quad + QUADS / 2], _mm512_sub_epi8(high, zero));
    }
}

INLINE void unpack_group(int kind, pair_block *to, int v, const uint8_t *group, idx blocks) {
    for (idx b = 0; b < blocks; b++, group += block_bytes(kind)) {
        UNROLL for (int quad = 0; quad < quants_bytes(kind) / 64; quad++)
            unpack_quad(kind, to + b, v, quad, group + quad * 64);
        to[b].scale[v] = from_float16s((const half *)(group + quants_bytes(kind)));
    }
}

typedef int32_t block_sums[SLAB][PAIR][ROWS] __attribute__((aligned(64)));

INLINE void begin_group(const int sums, const int of_w, const void *w) {
    load_tile(of_w, w, ROWS * 4);
    zero_tile(sums);
    multiply_tiles(sums, OF_X, of_w);
}

/* The sums of a block: in one tile for each of V groups, from `sums` on */
INLINE void begin_block(int V, const int sums, const slab_block *x, const pair_block *w) {
    load_tile(OF_X, x->x, COLUMNS);
    begin_group(sums, OF_W, w->w[0]);
    if (V == PAIR) begin_group(sums + 1, OF_W + 1, w->w[1]);
}

INLINE void end_block(int V, block_sums s, const int sums) {
    store_tile(s[0][0], sizeof s[0], sums);
    if (V == PAIR) store_tile(s[0][1], sizeof s[0], sums + 1);
}

INLINE void add_block(int V, vec (*y)[PAIR], block_sums s, const slab_block *x, const pair_block *w) {
    UNROLL for (int r = 0; r < SLAB; r++)
        UNROLL for (int v = 0; v < V; v++)
            y[r][v] += __builtin_convertvector(*(ints *)s[r][v], vec) * w->scale[v] * x->scale[r];
}

/* y[n] = (or +=) sums, for n <= ROWS */
INLINE void write_sums(real *y, vec sums, idx n, int accumulate) {
    const __mmask16 wanted = n < ROWS ? (1 << n) - 1 : -1;
    if (accumulate) sums = (vec)_mm512_maskz_loadu_ps(wanted, y) + sums;
    _mm512_mask_storeu_ps(y, wanted, (__m512)sums);
}

/* Begin block b, end the one before, add the one before that; odd: is b? */
INLINE void advance(int V, const int odd, idx b, vec (*sum)[PAIR], block_sums *s, const slab_block *x,
                    const pair_block *w, idx blocks) {
    if (b < blocks) begin_block(V, odd * PAIR, x + b, w + b);
    if (b >= 1 && b <= blocks) end_block(V, s[!odd], !odd * PAIR);
    if (b >= 2 && b < blocks + 2) add_block(V, sum, s[odd], x + b - 2, w + b - 2);
}

/* y[N E] = (or +=) the slab times V groups.  What lies in the rows past N of a slab is multiplied, and not written. */
INLINE void slab_product(int V, real *y, idx ldy, const slab_block *x, const pair_block *w, idx blocks, idx N, idx E,
                         int accumulate) {
    vec sum[SLAB][PAIR];
    block_sums s[2];
    UNROLL for (int r = 0; r < SLAB; r++)
        UNROLL for (int v = 0; v < V; v++) sum[r][v] = (vec){0};
    for (idx b = 0; b < blocks + 2; b += 2) {
        advance(V, 0, b, sum, s, x, w, blocks);
        advance(V, 1, b + 1, sum, s, x, w, blocks);
    }
    UNROLL for (int r = 0; r < SLAB; r++) {
        if (r >= N) break;
        UNROLL for (int v = 0; v < V; v++)
            write_sums(y + r * ldy + v * ROWS, sum[r][v], E - v * ROWS, accumulate);
    }
}

/* y[n e] = (or +=) x w[e]ᵀ for all n < N and e0 <= e < e1 */
static void slabs_product(real *y, idx ldy, const slab_block *x, const stored *w, idx N, idx e0, idx e1,
                          int accumulate, void *room) {
    const idx blocks = w->D / COLUMNS;
    pair_block *pair = room;
    configure_tiles(&(tile_shapes){.palette = 1,
                                   .rows = {SLAB, SLAB, SLAB, SLAB, SLAB, QUADS, QUADS},
                                   .bytes = {64, 64, 64, 64, COLUMNS, 64, 64}});
    for (idx e = e0; e < e1; e += PAIR * ROWS) {
        const idx E = least(e1 - e, PAIR * ROWS), groups = (E + ROWS - 1) / ROWS;
        for (idx v = 0; v < groups; v++) {
            const uint8_t *group = (const uint8_t *)w->at + (e / ROWS + v) * blocks * block_bytes(w->kind);
            if (w->kind == Q8_0) unpack_group(Q8_0, pair, v, group, blocks);
            else unpack_group(Q4_0, pair, v, group, blocks);
        }
        for (idx n = 0; n < N; n += SLAB) {
            const slab_block *slab = x + n / SLAB * blocks;
            real *to = y + n * ldy + e;
            if (groups == 1) slab_product(1, to, ldy, slab, pair, blocks, least(N - n, SLAB), E, accumulate);
            else slab_product(2, to, ldy, slab, pair, blocks, least(N - n, SLAB), E, accumulate);
        }
    }
    release_tiles();
}
