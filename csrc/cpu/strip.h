/* A strip of scores aᵀ[keys queries]: which of them are visible, softcap and bias.  See attention.c. */
#include "tile.h"

#if REAL == 16 && defined __AMX_BF16__ && defined __AVX512BF16__
#define IN_TILES                                   /* of AMX: see attention16.c */
enum { KEYS = 128, QUERIES = 256, ROW = LANES, BEYOND = 0 };
#else
enum { KEYS = 16 * MR, QUERIES = 576 / sizeof(real), STRIP = KEYS * QUERIES, ROW = QUERIES, BEYOND = MR - 1 };
#endif                                             /* numbers of a row; rows that products read beyond the band */

typedef struct {                                   /* (i, j) is visible if i - before <= j <= i + after */
    idx rows, cols, before, after;
} band;

typedef struct {
    idx first, past;
} span;

typedef struct {                                   /* a strip's band, masks and segments */
    band band;
    const char *mask, *pairs;                      /* of its first key, [keys], and first pair, [keys T] */
    const idx *keys, *queries;
    idx T;
} sight;

INLINE idx most(idx a, idx b) { return a > b ? a : b; }
INLINE idx clip(idx x, idx high) { return most(0, least(x, high)); }
INLINE band transposed(band b) { return (band){b.cols, b.rows, b.after, b.before}; }

/* The columns that any of n rows sees. */
INLINE span seen(band b, idx i, idx n) {
    return (span){clip(i - b.before, b.cols), clip(i + n + b.after, b.cols)};
}

INLINE band seen_keys(const attending *a, idx s, idx t, idx keys, idx queries) {
    idx place = t + a->S - a->T - s;
    return (band){keys, queries, a->ahead + place, a->behind - place};
}

INLINE sight look(const attending *a, idx b, idx s, idx t, idx keys, idx queries) {
    sight x = {seen_keys(a, s, t, keys, queries), NULL, NULL, NULL, NULL, a->T};
    if (a->mask) x.mask = a->mask + b * a->S + s;
    if (a->pairs) x.pairs = a->pairs + (b * a->S + s) * a->T + t;
    if (a->keys) x.keys = a->keys + b * a->S + s, x.queries = a->queries + b * a->T + t;
    return x;
}

INLINE idx lowest(const idx *x, idx n) {
    idx low = x[0];
    for (idx i = 1; i < n; i++) low = least(low, x[i]);
    return low;
}

INLINE idx highest(const idx *x, idx n) {
    idx high = x[0];
    for (idx i = 1; i < n; i++) high = most(high, x[i]);
    return high;
}

/* Do the segments alone hide every key of the strip?  If they are not in order, it may not be found. */
INLINE int apart(sight x) {
    if (!x.keys) return 0;
    return highest(x.keys, x.band.rows) < lowest(x.queries, x.band.cols)
        || highest(x.queries, x.band.cols) < lowest(x.keys, x.band.rows);
}

/* The rows that products read of LANES columns from t on. */
INLINE span read_rows(band b, idx t) {
    return seen(transposed(b), t - BEYOND, LANES + 2 * BEYOND);
}

#ifndef IN_TILES
static void fill_unseen(real *strip, sight x, idx t, real value) {
    band b = x.band;
    const char *mask = x.mask;
    span rows = read_rows(b, t), whole = {t + LANES - 1 - b.after, t + 1 + b.before};
    for (idx i = rows.first; i < rows.past; i++) {
        if (!mask && i >= whole.first && i < whole.past) {
            i = whole.past - 1;
            continue;
        }
        span s = seen(b, i, 1);
        int first = clip(s.first - t, LANES), past = mask && !mask[i] ? first : clip(s.past - t, LANES);
        real *restrict row = strip + i * ROW + t;
        #pragma omp simd
        for (int l = 0; l < LANES; l++) row[l] = l < first || l >= past ? value : row[l];
    }
    idx queries = least(b.cols - t, LANES);
    for (idx i = rows.first; x.pairs && i < rows.past; i++) {
        const char *restrict pairs = x.pairs + i * x.T + t;
        real *restrict row = strip + i * ROW + t;
        #pragma omp simd
        for (idx l = 0; l < queries; l++) row[l] = pairs[l] ? row[l] : value;
    }
    for (idx i = rows.first; x.keys && i < rows.past; i++) {
        const idx *restrict segments = x.queries + t, segment = x.keys[i];
        real *restrict row = strip + i * ROW + t;
        #pragma omp simd
        for (idx l = 0; l < queries; l++) row[l] = segments[l] == segment ? row[l] : value;
    }
}
#endif

/* Of LANES queries from t on: z to u, and, unless slope is NULL, slope to du/dz */
static void cap(real *strip, real *slope, band b, idx t, real softcap) {
    span rows = read_rows(b, t);
    for (idx i = rows.first; i < rows.past; i++) {
        real *restrict z = strip + i * ROW + t, y[LANES];
        #pragma omp simd
        for (int l = 0; l < LANES; l++) {
            y[l] = TANH(z[l] / softcap);
            z[l] = softcap * y[l];
        }
        for (int l = 0; slope && l < LANES; l++) slope[i * ROW + t + l] = 1 - y[l] * y[l];
    }
}

/* Of LANES queries from t on: strip += bias, or dbias += strip */
static void add_bias(real *strip, const real *bias, real *dbias, band b, idx t, idx S) {
    span rows = read_rows(b, t);
    for (idx l = t; l < least(t + LANES, b.cols); l++)
        for (idx i = rows.first; i < rows.past; i++)
            if (bias) strip[i * ROW + l] += bias[l * S + i];
            else dbias[l * S + i] += strip[i * ROW + l];
}

/* Of LANES queries from t on: z to a, where visible */
INLINE void adjust(real *strip, real *slope, band b, idx t, const attending *a, const real *bias) {
    if (a->softcap) cap(strip, slope, b, t, a->softcap);
    if (bias) add_bias(strip, bias, NULL, b, t, a->S);
}

/* The bias of a head's queries from t on, or NULL. */
INLINE const real *bias_of(const attending *a, idx b, idx g, idx r, idx t) {
    return a->bias ? a->bias + b * a->bias_b + (g * a->R + r) * a->bias_h + t * a->S : NULL;
}

/* Of the only query: z to a, -∞ where not visible */
INLINE void adjust_one(real *restrict z, sight x, real softcap, const real *restrict bias) {
    idx n = x.band.rows;
    for (idx i = 0; softcap && i < n; i++) z[i] = softcap * TANH(z[i] / softcap);
    for (idx i = 0; bias && i < n; i++) z[i] += bias[i];
    for (idx i = 0; x.mask && i < n; i++) z[i] = x.mask[i] ? z[i] : -INFINITY;
    for (idx i = 0; x.pairs && i < n; i++) z[i] = x.pairs[i] ? z[i] : -INFINITY;
    for (idx i = 0; x.keys && i < n; i++) z[i] = x.keys[i] == *x.queries ? z[i] : -INFINITY;
}
