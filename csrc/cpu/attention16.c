/* The blocks of attention.c in bfloat16, by AMX's tiles: see attention_tiles.h.
 *
 * (a) Scores lie as in strip.h, a strip for each 16 queries.  They are softened a row, which is a vector, at a time.
 * (b) Of each product, p or scale dz is the factor that changes, so they are written as the tiles that the products
 *     read.  yᵀ and dqᵀ are summed, because a query is then a lane, and one vector rescales 16 of them.
 * (c) p and scale dz are rounded as factors.  Everything else is float: scores, statistics, every sum.
 * (d) What a tile has stored is read, and the reverse, not at once but after other work on 16 queries: neither waits.
 * (e) A product reads whole tiles, and hides a key by p = 0, which times NaN is NaN.  So what is not finite goes further
 *     than in float32: of a value, to the 16 queries of a tile if one of them sees, by causality and window, a key of
 *     the same edge; of a key, to dq of an edge of queries alike; of a query or dy, to dk and dv of an edge of keys.
 *     Scores are hidden before they are softened: so of a key, no more of y is lost than sees it.
 * (f) With AVX512-BF16 alone, attention.c widens its numbers instead.  The same tiles by vdpbf16ps took 1.1 to 1.5 times
 *     as long on an Intel Xeon; on an AMD it is not known.
 */
#include "attention_tiles.h"

static const real LOG2_E = 1.44269504088896340736f, LN_2 = 0.693147180559945309417f;

/* 2^x within 2^-22; 0 at -∞, NaN at NaN.  The polynomial has the least relative error among those of its degree that
 * are exact at 0 and at 1. */
INLINE __m512 power(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);    /* x - floor x; 0 at -∞ */
    __m512 p = _mm512_set1_ps(0.001879318617284298f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.008990995585918427f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.05581867694854736f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240159273147583f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931517124176025f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, x);
}

/* p, 2^(a by - base).  It is at most 1, but a by, which is not rounded, may exceed base, which is, by half a unit.
 * NaN passes: of two, min returns the second. */
INLINE __m512 weight(const real *a, __m512 by, __m512 base) {
    return power(_mm512_min_ps(_mm512_setzero_ps(), _mm512_fmsub_ps(_mm512_load_ps(a), by, base)));
}

/* log x of a normal number: a guess of log₂ x within 0.01, and the logarithm of the rest, which is close to 1 */
INLINE __m512 log_of(__m512 x) {
    const __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    const __m512 bent = _mm512_fmadd_ps(_mm512_fmadd_ps(m, _mm512_set1_ps(-1 / 3.f), _mm512_set1_ps(2)), m,
                                        _mm512_set1_ps(-5 / 3.f));
    const __m512 guess = _mm512_add_ps(_mm512_getexp_ps(x), bent);
    const __m512 r = _mm512_fmsub_ps(x, power(-guess), _mm512_set1_ps(1));
    const __m512 s = _mm512_fmadd_ps(_mm512_fmadd_ps(r, _mm512_set1_ps(1 / 3.f), _mm512_set1_ps(-.5f)), r,
                                     _mm512_set1_ps(1));
    return _mm512_fmadd_ps(guess, _mm512_set1_ps(LN_2), _mm512_mul_ps(r, s));
}

typedef struct {                                   /* log₂ p: a score times `first`, adjusted, times `then` */
    real first, then;
} powers;

INLINE powers powers_of(const attending *a) {
    const real scale = scale_of(a);
    const int at_once = !a->softcap && !a->bias && scale > 0;   /* > 0: the highest score stays the highest */
    return at_once ? (powers){1, scale * LOG2_E} : (powers){scale, LOG2_E};
}

static void multiply_rows(real *strip, idx rows, __m512 by) {
    for (idx i = 0; i < rows * ROW; i += ROW) _mm512_store_ps(strip + i, _mm512_mul_ps(_mm512_load_ps(strip + i), by));
}

/* Products of keys and queries to a, of the rows that are seen */
INLINE void adjust_rows(real *strip, real *slope, sight x, span rows, const attending *a, const real *bias, powers by) {
    if (by.first != 1) multiply_rows(strip + rows.first * ROW, rows.past - rows.first, _mm512_set1_ps(by.first));
    adjust(strip, slope, x.band, 0, a, bias);
}

/* The rows of a strip that the products read: whole edges */
INLINE span edges_of(span rows) {
    return rows.first < rows.past ? (span){rows.first / EDGE * EDGE, parts_of(rows.past, EDGE) * EDGE} : (span){0, 0};
}

/* Which of 16 queries see key i? */
INLINE __mmask16 who_sees(sight x, idx i) {
    const __m512i lane = _mm512_load_si512(IOTA);
    const __m512i first = _mm512_set1_epi32(clip(i - x.band.before, LANES));
    const __m512i past = _mm512_set1_epi32(clip(i + 1 + x.band.after, x.band.cols));
    __mmask16 lanes = _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(lane, first), lane, past);
    if (i >= x.band.rows || (x.mask && !x.mask[i])) return 0;
    if (x.pairs)
        lanes = _mm_mask_test_epi8_mask(lanes, _mm_maskz_loadu_epi8(lanes, x.pairs + i * x.T), _mm_set1_epi8(-1));
    for (idx l = 0; x.keys && l < x.band.cols; l++)
        if (x.queries[l] != x.keys[i]) lanes &= ~(1 << l);
    return lanes;
}

/* A whole row is stored, because what a masked store wrote is slow to read. */
INLINE void keep(real *row, __mmask16 lanes, __m512 otherwise) {
    _mm512_store_ps(row, _mm512_mask_mov_ps(otherwise, lanes, _mm512_load_ps(row)));
}

/* One strip, or two of the same queries and keys, where not visible: value */
static void hide(real *strip, real *other, sight x, span rows, real value) {
    const int all = x.mask || x.pairs || x.keys || x.band.cols < LANES;
    const span whole = {LANES - 1 - x.band.after, least(1 + x.band.before, x.band.rows)};
    for (idx i = rows.first; i < rows.past; i++) {
        if (!all && i >= whole.first && i < whole.past) {      /* every query sees these */
            i = whole.past - 1;
            continue;
        }
        const __mmask16 lanes = who_sees(x, i);
        keep(strip + i * ROW, lanes, _mm512_set1_ps(value));
        if (other) keep(other + i * ROW, lanes, _mm512_set1_ps(value));
    }
}

/* a to p, as pairs of keys; highest: log₂ of what p is a multiple of.  Returns by what the sums so far shrink. */
static __m512 soften(number *p, const real *strip, span rows, real then, real *highest, real *sum) {
    const __m512 none = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(then), before = _mm512_load_ps(highest);
    __m512 high = none, high_too = none;
    for (idx i = rows.first; i < rows.past; i += 2) {
        high = _mm512_max_ps(_mm512_load_ps(strip + i * ROW), high);                    /* high, if the other is NaN */
        high_too = _mm512_max_ps(_mm512_load_ps(strip + (i + 1) * ROW), high_too);
    }
    high = _mm512_max_ps(_mm512_mul_ps(_mm512_max_ps(high, high_too), by), before);
    const __m512 base = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(high, none, _CMP_NEQ_UQ), high);
    const __m512 shrink = power(_mm512_sub_ps(before, base));
    __m512 total = _mm512_mul_ps(_mm512_load_ps(sum), shrink), total_too = _mm512_setzero_ps();
    for (idx edge = rows.first; edge < rows.past; edge += EDGE)
        for (idx r = edge; r < edge + 16; r++) {
            const __m512 even = weight(strip + r * ROW, by, base), odd = weight(strip + (r + 16) * ROW, by, base);
            total = _mm512_add_ps(total, even), total_too = _mm512_add_ps(total_too, odd);
            _mm512_store_si512(p + edge / EDGE * TILE + r % 16 * 32, paired(even, odd));
        }
    _mm512_store_ps(highest, high);
    _mm512_store_ps(sum, _mm512_add_ps(total, total_too));
    return shrink;
}

typedef struct {                                   /* of 16 queries at work */
    real *strip, *shrink;
    number *p;
    sight x;
    span rows;
    int begun;
} turn16;

typedef struct {                                   /* a part of the queries, and what they took in of the keys so far */
    number *keys, *values, *q;
    real *y, *highest, *sum;
    turn16 at_work[2];
    idx deep, wide;
} part16;

static part16 part_of_queries(idx K, real *work) {
    part16 o = {.deep = parts_of(K, 32), .wide = parts_of(K, 16)};
    o.keys = (number *)work;
    o.values = o.keys + KEYS / 16 * o.deep * TILE;
    o.q = o.values + KEYS / EDGE * o.wide * TILE;
    o.y = (real *)(o.q + QUERIES / 16 * o.deep * TILE);
    o.highest = o.y + QUERIES / 16 * o.wide * SUM_TILE;
    o.sum = o.highest + QUERIES;
    real *rest = o.sum + QUERIES;
    for (int i = 0; i < 2; i++, rest += (KEYS + 1) * ROW + KEYS / EDGE * TILE / 2) {
        o.at_work[i].strip = rest, o.at_work[i].shrink = rest + KEYS * ROW;
        o.at_work[i].p = (number *)(rest + (KEYS + 1) * ROW);
    }
    return o;
}

static void score(const part16 *o, turn16 *w, idx t) {
    const idx first = w->rows.first / 16;
    sum_column((w->rows.past - w->rows.first) / 16, (sums){w->strip + first * SUM_TILE, 1, 0},
               (tiles){o->keys + first * o->deep * TILE, o->deep, 1}, (tiles){o->q + t / 16 * o->deep * TILE, 0, 1},
               o->deep, 0);
}

static void take_in(const part16 *o, const turn16 *w, idx t) {
    const idx first = w->rows.first / EDGE;
    const __m512 shrink = _mm512_load_ps(w->shrink);
    real *y = o->y + t / 16 * o->wide * SUM_TILE;
    if (w->begun && _mm512_cmp_ps_mask(shrink, _mm512_set1_ps(1), _CMP_NEQ_UQ)) multiply_rows(y, o->wide * 16, shrink);
    sum_column(o->wide, (sums){y, 1, 0}, (tiles){o->values + first * o->wide * TILE, 1, o->wide},
               (tiles){w->p + first * TILE, 0, 1}, (w->rows.past - w->rows.first) / EDGE, w->begun);
}

static void soften_scores(const part16 *o, turn16 *w, idx t, const attending *a, const real *bias, powers by) {
    adjust_rows(w->strip, NULL, w->x, w->rows, a, bias, by);
    hide(w->strip, NULL, w->x, w->rows, -INFINITY);
    w->begun = _mm512_cmp_ps_mask(_mm512_load_ps(o->highest + t), _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ) != 0;
    _mm512_store_ps(w->shrink, soften(w->p, w->strip, w->rows, by.then, o->highest + t, o->sum + t));
}

/* A strip of n keys */
static void take_in_keys(part16 *o, const attending *a, idx b, idx s, idx t0, idx n, idx queries, const real *bias,
                         powers by) {
    for (idx t = 0; t < queries + 32; t += 16) {
        turn16 *next = o->at_work + t / 16 % 2, *now = o->at_work + !(t / 16 % 2);
        if (t >= 32 && next->rows.past) take_in(o, next, t - 32);
        next->rows = (span){0, 0};
        if (t < queries) {
            next->x = look(a, b, s, t0 + t, n, least(queries - t, 16));
            next->rows = edges_of(seen(transposed(next->x.band), 0, LANES));
            score(o, next, t);
        }
        if (t >= 16 && now->rows.past) soften_scores(o, now, t - 16, a, bias ? bias + (t - 16) * a->S : NULL, by);
    }
}

/* Queries from xᵀ, tiles[K/16]: of lane l, row where[l], or none if that is negative */
static void put_transposed(lines to, real *x, idx K, const idx *where) {
    for (idx k = 0; k < K; k += 16, x += SUM_TILE) {
        transpose_tile(x);
        for (idx l = 0; l < 16; l++)
            if (where[l] >= 0) put_lanes(to.at + where[l] * to.down + k, _mm512_load_ps(x + l * 16), K - k);
    }
}

static void finish_queries(const part16 *o, lines y, real *lse, idx queries, idx K) {
    for (idx t = 0; t < queries; t += 16) {
        const __m512 sum = _mm512_load_ps(o->sum + t), highest = _mm512_load_ps(o->highest + t);
        const __mmask16 any = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), sum);
        real *yt = o->y + t / 16 * o->wide * SUM_TILE;
        idx where[16];
        for (idx l = 0; l < 16; l++) where[l] = t + l < queries ? t + l : -1;
        for (idx i = 0; i < o->wide * 16; i++)
            _mm512_store_ps(yt + i * 16, _mm512_maskz_mul_ps(any, _mm512_load_ps(yt + i * 16), inverse));
        put_transposed(y, yt, K, where);
        _mm512_mask_storeu_ps(lse + t, lanes_below(queries - t),
                              _mm512_maskz_fmadd_ps(any, highest, _mm512_set1_ps(LN_2), log_of(sum)));
    }
}

static void attend(const attending *a, idx b, idx g, idx r, idx t0, real *work) {
    const idx K = a->K, queries = least(a->T - t0, QUERIES);
    const lines q = at(a->q, b, g, r, t0);
    const real *bias = bias_of(a, b, g, r, t0);
    part16 o = part_of_queries(K, work);
    begin_tiles();
    tile_rows(o.q, q, queries, K);
    transpose_tiles(o.q, parts_of(queries, 16) * o.deep);
    for (idx t = 0; t < QUERIES; t++) o.highest[t] = -INFINITY, o.sum[t] = 0;
    const span keys = seen(transposed(seen_keys(a, 0, t0, a->S, queries)), 0, queries);
    for (idx s = keys.first; s < keys.past; s += KEYS) {
        const idx n = least(keys.past - s, KEYS);
        if (apart(look(a, b, s, t0, n, queries))) continue;
        tile_rows(o.keys, at(a->k, b, g, 0, s), n, K);
        tile_pairs(o.values, at(a->v, b, g, 0, s), n, K);
        transpose_tiles(o.values, parts_of(n, EDGE) * o.wide);
        take_in_keys(&o, a, b, s, t0, n, queries, bias ? bias + s : NULL, powers_of(a));
    }
    finish_queries(&o, at(a->y, b, g, r, t0), a->lse + ((b * a->G + g) * a->R + r) * a->T + t0, queries, K);
    release_tiles();
}

#include "attention16_backward.c"
