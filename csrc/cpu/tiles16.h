/* A panel of A times a block of B by AMX: DOWN x ACROSS sums in four tiles, from two tiles of A and two of B.
 *
 * (a) A tile of A is 16 rows of 32 numbers along K; one of B is 16 columns, as 16 rows of pairs along K.
 * (b) What is contiguous along K becomes a tile of A by copying, or is read where it lies.  Else it is transposed:
 *     loads put any four pieces of 16 bytes into one register, and unpacking does the rest.
 * (c) Memory is slow and the tiles are fast.  So complete sums are rounded to C a few rows at a time, while the next
 *     ones are added up; and the rows of the next panel of A are fetched.  See tile.h.
 */
#pragma once
#include <immintrin.h>
#include "amx.h"

typedef number packed;
enum { SIDE = 16, STEP = 32, DOWN = 2 * SIDE, ACROSS = 2 * SIDE, TILE_SIZE = SIDE * STEP };

/* --- packing --- */

/* Four pieces of 16 bytes, `apart` numbers from each other */
INLINE __m512i pieces(const number *at, idx apart) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)at));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, _mm_loadu_si128((const __m128i *)(at + apart)));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, _mm_loadu_si128((const __m128i *)(at + 2 * apart)));
    return _mm512_mask_broadcast_i32x4(x, 0xf000, _mm_loadu_si128((const __m128i *)(at + 3 * apart)));
}

/* at[k * apart + n] for all k of a step and ACROSS columns n */
INLINE void pair_rows(number *to, const number *at, idx apart) {
    const __m512i left = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                          39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i right = _mm512_add_epi16(left, _mm512_set1_epi16(SIDE));
    UNROLL for (int k = 0; k < STEP; k += 2, at += 2 * apart, to += 2 * SIDE) {
        const __m512i even = _mm512_loadu_si512(at), odd = _mm512_loadu_si512(at + apart);
        _mm512_store_si512(to, _mm512_permutex2var_epi16(even, left, odd));
        _mm512_store_si512(to + TILE_SIZE, _mm512_permutex2var_epi16(even, right, odd));
    }
}

/* at[n * apart + k] for all k of a step and SIDE columns n */
INLINE void pair_columns(number *to, const number *at, idx apart) {
    UNROLL for (int k = 0; k < STEP; k += 8, at += 8, to += 8 * SIDE) {
        const __m512i a = pieces(at, 4 * apart), b = pieces(at + apart, 4 * apart);
        const __m512i c = pieces(at + 2 * apart, 4 * apart), d = pieces(at + 3 * apart, 4 * apart);
        const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
        const __m512i AB = _mm512_unpackhi_epi32(a, b), CD = _mm512_unpackhi_epi32(c, d);
        _mm512_store_si512(to, _mm512_unpacklo_epi64(ab, cd));
        _mm512_store_si512(to + 32, _mm512_unpackhi_epi64(ab, cd));
        _mm512_store_si512(to + 64, _mm512_unpacklo_epi64(AB, CD));
        _mm512_store_si512(to + 96, _mm512_unpackhi_epi64(AB, CD));
    }
}

/* at[k * apart + m] for all k of a step and SIDE rows m */
INLINE void turn_rows(number *to, const number *at, idx apart) {
    UNROLL for (int m = 0; m < SIDE; m += 8, at += 8, to += 8 * STEP) {
        __m512i x[8], y[8];
        UNROLL for (int k = 0; k < 8; k++) x[k] = pieces(at + k * apart, 8 * apart);
        UNROLL for (int k = 0; k < 8; k += 2) {
            y[k] = _mm512_unpacklo_epi16(x[k], x[k + 1]);
            y[k + 1] = _mm512_unpackhi_epi16(x[k], x[k + 1]);
        }
        UNROLL for (int k = 0; k < 8; k += 4) {
            x[k] = _mm512_unpacklo_epi32(y[k], y[k + 2]);
            x[k + 1] = _mm512_unpackhi_epi32(y[k], y[k + 2]);
            x[k + 2] = _mm512_unpacklo_epi32(y[k + 1], y[k + 3]);
            x[k + 3] = _mm512_unpackhi_epi32(y[k + 1], y[k + 3]);
        }
        UNROLL for (int k = 0; k < 4; k++) {
            _mm512_store_si512(to + 2 * k * STEP, _mm512_unpacklo_epi64(x[k], x[k + 4]));
            _mm512_store_si512(to + (2 * k + 1) * STEP, _mm512_unpackhi_epi64(x[k], x[k + 4]));
        }
    }
}

/* STEP x STEP numbers from at[i * apart + j] on, of which rows x cols are there: themselves, or a copy with zeros */
INLINE const number *padded(number *room, const number *at, idx *apart, idx rows, idx cols) {
    if (rows >= STEP && cols >= STEP) return at;
    memset(room, 0, STEP * STEP * sizeof(number));
    for (idx i = 0; i < least(rows, STEP); i++)
        memcpy(room + i * STEP, at + i * *apart, least(cols, STEP) * sizeof(number));
    *apart = STEP;
    return room;
}

/* a[rows K], rows <= DOWN, as pairs of tiles */
static void pack_a(number *restrict to, factor a, idx rows, idx K) {
    number room[STEP * STEP] __attribute__((aligned(64)));
    for (idx k = 0; k < K; k += STEP, to += 2 * TILE_SIZE) {
        idx apart = a.right == 1 ? a.down : a.right;
        if (a.right == 1) {
            const number *at = padded(room, a.at + k, &apart, rows, K - k);
            UNROLL for (int i = 0; i < DOWN; i++) memcpy(to + i * STEP, at + i * apart, STEP * sizeof(number));
        } else {
            const number *at = padded(room, a.at + k * apart, &apart, K - k, rows);
            turn_rows(to, at, apart);
            turn_rows(to + TILE_SIZE, at + SIDE, apart);
        }
    }
}

/* b[K cols], cols <= ACROSS, as pairs of tiles */
static void pack_b(number *restrict to, factor b, idx K, idx cols) {
    number room[STEP * STEP] __attribute__((aligned(64)));
    for (idx k = 0; k < K; k += STEP, to += 2 * TILE_SIZE) {
        idx apart = b.right == 1 ? b.down : b.right;
        if (b.right == 1) {
            const number *at = padded(room, b.at + k * apart, &apart, K - k, cols);
            pair_rows(to, at, apart);
        } else {
            const number *at = padded(room, b.at + k, &apart, cols, K - k);
            pair_columns(to, at, apart);
            pair_columns(to + TILE_SIZE, at + SIDE * apart, apart);
        }
    }
}

/* --- sums to C --- */

typedef struct {                                   /* rows of ACROSS complete sums, rounded `each` at a time */
    const real *sums, *bias;
    number *to;
    idx down, rows, each;
    __mmask32 there;                               /* the columns of C */
} rounding;

INLINE void round_rows(rounding *r, idx rows) {
    for (rows = least(rows, r->rows); rows; rows--, r->rows--) {
        __m512 left = _mm512_load_ps(r->sums), right = _mm512_load_ps(r->sums + SIDE);
        if (r->bias) {
            left += _mm512_maskz_loadu_ps(r->there, r->bias);
            right += _mm512_maskz_loadu_ps(r->there >> SIDE, r->bias + SIDE);
        }
        _mm512_mask_storeu_epi16(r->to, r->there, (__m512i)_mm512_cvtne2ps_pbh(right, left));
        r->sums += ACROSS, r->to += r->down;
    }
}

/* --- products --- */

INLINE void load_sums(const real *from, idx down) {
    load_tile(0, from, down * sizeof(real)), load_tile(1, from + SIDE, down * sizeof(real));
    from += SIDE * down;
    load_tile(2, from, down * sizeof(real)), load_tile(3, from + SIDE, down * sizeof(real));
}

INLINE void store_sums(real *to, idx down) {
    store_tile(to, down * sizeof(real), 0), store_tile(to + SIDE, down * sizeof(real), 1);
    to += SIDE * down;
    store_tile(to, down * sizeof(real), 2), store_tile(to + SIDE, down * sizeof(real), 3);
}

INLINE void copy_sums(real *to, idx to_down, const real *from, idx from_down, idx rows, idx cols) {
    for (idx i = 0; i < rows; i++) memcpy(to + i * to_down, from + i * from_down, cols * sizeof(real));
}

typedef struct {                                   /* two tiles of A: `row` bytes from row to row, then in numbers */
    const number *at;
    idx row, tile, step;
} tiles_of_a;

typedef struct {                                   /* what is done meanwhile, a step's part at a time */
    rounding sums;
    region next;                                   /* rows of A to be fetched */
    idx lines;
} meanwhile;

/* sums += a b, from the sums of `from`, or from 0 if it is NULL */
INLINE void add_products_of_tiles(const real *from, idx down, tiles_of_a a, const number *b, idx K, meanwhile *m) {
    if (from) load_sums(from, down);
    else zero_tile(0), zero_tile(1), zero_tile(2), zero_tile(3);
    for (idx k = 0; k < K; k += STEP, a.at += a.step, b += 2 * TILE_SIZE) {
        load_tile(4, a.at, a.row), load_tile(6, b, 64);
        load_tile(7, b + TILE_SIZE, 64), load_tile(5, a.at + a.tile, a.row);
        multiply_pairs(0, 4, 6), multiply_pairs(1, 4, 7), multiply_pairs(2, 5, 6), multiply_pairs(3, 5, 7);
        round_rows(&m->sums, m->sums.each);
        fetch_lines(&m->next, m->lines);
    }
}

/* Are rows whole cache lines, which do not share few sets of the first cache? */
INLINE int reads_in_place(factor a, idx rows, idx K) {
    return rows == DOWN && a.right == 1 && a.down % STEP == 0 && a.down * sizeof(number) % 1024 && K % STEP == 0
        && (uintptr_t)a.at % 64 == 0;
}

INLINE tiles_of_a packed_tiles(const number *at) { return (tiles_of_a){at, 64, TILE_SIZE, 2 * TILE_SIZE}; }

/* a[rows K], which is packed in `ready` unless that is NULL, times a block of N columns; room: for a chunk of a */
static void panel(target t, factor a, const number *ready, number *room, const number *block, idx rows, idx N, idx K,
                  idx chunk, int accumulate) {
    real buffer[2][DOWN * ACROSS] __attribute__((aligned(64)));
    meanwhile m = {.lines = (DOWN * ACROSS + N - 1) / N};
    idx k0 = 0;
    do {
        const idx k = least(K - k0, chunk), steps = whole(k, STEP) / STEP;
        const factor from = part_of(a, 0, k0);
        tiles_of_a tiles = packed_tiles(ready ? ready + k0 * DOWN : room);
        if (!ready && a.right == 1)
            m.next = (region){(const real *)(from.at + DOWN * from.down), from.down / 2, DOWN, steps, 0};
        if (!ready && reads_in_place(from, rows, k))
            tiles = (tiles_of_a){from.at, from.down * sizeof(number), SIDE * from.down, STEP};
        else if (!ready) pack_a(room, from, rows, k);
        for (idx j = 0; j < N; j += ACROSS) {
            const idx cols = least(N - j, ACROSS), down = t.down;
            const int edge = !t.padded && (cols < ACROSS || rows < DOWN), begun = accumulate || k0;
            const number *b = block + j * whole(K, STEP) + k0 * ACROSS;
            real *to = t.sums + j, *own = buffer[j / ACROSS % 2];
            if (edge && begun) copy_sums(own, ACROSS, to, down, rows, cols);
            add_products_of_tiles(begun ? edge ? own : to : NULL, edge ? ACROSS : down, tiles, b, steps * STEP, &m);
            round_rows(&m.sums, DOWN);
            if (t.to && k0 + k == K) {
                store_sums(own, ACROSS);
                m.sums = (rounding){own, t.bias ? t.bias + j : NULL, t.to + j, t.to_down, rows,
                                    steps ? (DOWN + steps - 1) / steps : DOWN, (1ull << cols) - 1};
            } else if (edge) {
                store_sums(own, ACROSS);
                copy_sums(to, down, own, ACROSS, rows, cols);
            } else store_sums(to, down);
        }
        k0 += k;
    } while (k0 < K);
    round_rows(&m.sums, DOWN);
}
