/* See pyllama/ops/attention.py for the derivation.
 *
 * (a) Scores are held transposed, aᵀ[keys queries], a strip of them at a time.  So the softmax runs down
 *     the columns: each step is a loop over queries side by side, without a sum within a vector; and
 *     of all inputs only q and dy are ever transposed.
 * (b) The softmax is online (Milakov and Gimelshein, 2018): where a strip raises the maximum of a
 *     query's scores, the sums so far shrink.  So no memory grows with T S.
 * (c) The visible part is a band of the strip.  The products skip the tiles outside it.  In tiles across
 *     its edges they read entries outside as well, where p is 0.
 * (d) Forward, a thread takes some queries of a head; backward, a head of keys and values, because their
 *     gradients are sums over the queries of R heads; or all heads and sequences that share a bias.
 * (e) A strip that the segments hide entirely is skipped, so packed documents cost less than one text
 *     of their length.
 */
#include "lines.h"
#include "strip.h"
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

INLINE real scale_of(const attending *a) { return a->scale == a->scale ? a->scale : 1 / SQRT(a->K); }

#ifdef IN_TILES
#include "attention16.c"
#else
static void pack(real *to, matrix b, idx rows, idx cols) {
    for (idx j = 0; j < cols; j += NR)
        pack_columns(to + j * rows, from(b, 0, j), rows, least(cols - j, NR));
}

/* A head's rows lie too far apart for the processor to prefetch by itself. */
static void fetch(matrix a, idx rows, idx K) {
    for (idx i = 0; i < rows; i++)
        for (idx k = 0; k < K; k += 64 / sizeof(real)) __builtin_prefetch(a.at + i * a.down + k);
}

/* NR columns of the strip, from column j on: x[b.rows K] y[K b.cols], y packed */
static void scores(real *strip, matrix x, const real *y, idx K, band b, idx j, real *rest) {
    span rows = seen(transposed(b), j, NR);
    for (idx i = rows.first / MR * MR; i < rows.past; i += MR) {
        span s = seen(b, i, MR);
        idx first = most(s.first / LANES * LANES, j), past = least(s.past, j + NR);
        if (first >= past) continue;
        matrix panel = from(x, i, 0);
        if (s.first >= j) fetch(from(panel, MR, 0), MR, K);
        if (b.rows - i < MR) {
            for (idx r = 0; r < b.rows - i; r++)
                memcpy(rest + r * K, panel.at + r * panel.down, K * sizeof(real));
            panel = (matrix){rest, K, 1};
        }
        tile(K, panel, y + j * K + first - j, strip + i * QUERIES + first, QUERIES, MR,
             (past - first + LANES - 1) / LANES * LANES, 0);
    }
}

/* c[b.rows K] = (or +=) x[b.rows b.cols] y[b.cols K], y packed, x zero outside the band */
static void multiply(matrix c, matrix x, const real *y, idx K, band b, int accumulate) {
    for (idx k = 0; k < K; k += NR)
        for (idx i = 0; i < b.rows; i += MR) {
            span s = seen(b, i, MR);
            tile(s.past - s.first, from(x, i, s.first), y + k * b.cols + s.first * NR,
                 (real *)c.at + i * c.down + k, c.down, least(b.rows - i, MR), least(K - k, NR), accumulate);
        }
}

/* Of LANES queries from t on: scores to e^(a - top), the highest score and the sum so far brought up to
 * date; the sums so far must be multiplied by shrink. */
static void soften(real *restrict strip, sight x, idx t, real *restrict top, real *restrict sum,
                   real *restrict shrink) {
    span rows = read_rows(x.band, t);
    real high[LANES], base[LANES], total[LANES];
    memcpy(high, top + t, sizeof high);
    fill_unseen(strip, x, t, -INFINITY);
    for (idx i = rows.first; i < rows.past; i++) {
        const real *restrict a = strip + i * QUERIES + t;
        #pragma omp simd
        for (int l = 0; l < LANES; l++) high[l] = a[l] > high[l] ? a[l] : high[l];
    }
    #pragma omp simd
    for (int l = 0; l < LANES; l++) {
        base[l] = high[l] > -INFINITY ? high[l] : 0;           /* no key seen: e^(-∞ - 0) */
        shrink[t + l] = DECAY(top[t + l] - base[l]);
        total[l] = sum[t + l] * shrink[t + l];
    }
    for (idx i = rows.first; i < rows.past; i++) {
        real *restrict a = strip + i * QUERIES + t;
        #pragma omp simd
        for (int l = 0; l < LANES; l++) {
            a[l] = DECAY(a[l] - base[l]);
            total[l] += a[l];
        }
    }
    memcpy(top + t, high, sizeof high);
    memcpy(sum + t, total, sizeof total);
}

/* Of LANES queries from t on: scores to p, and dp to scale da; delta is multiplied by scale. */
static void soften_backward(real *restrict p, real *restrict d, sight x, idx t, const real *restrict lse,
                            const real *restrict delta, real scale) {
    span rows = read_rows(x.band, t);
    for (idx i = rows.first; i < rows.past; i++) {
        real *restrict pi = p + i * QUERIES + t, *restrict di = d + i * QUERIES + t;
        #pragma omp simd
        for (int l = 0; l < LANES; l++) {
            pi[l] = DECAY(pi[l] - lse[t + l]);
            di[l] = pi[l] * (di[l] * scale - delta[t + l]);
        }
    }
    fill_unseen(p, x, t, 0);
    fill_unseen(d, x, t, 0);
}

/* Of LANES queries from t on: da to scale dz */
static void scale_slopes(real *restrict d, const real *restrict slope, band b, idx t, real scale) {
    span rows = read_rows(b, t);
    for (idx i = rows.first; i < rows.past; i++) {
        #pragma omp simd
        for (idx l = i * QUERIES + t; l < i * QUERIES + t + LANES; l++)
            d[l] = d[l] == 0 ? 0 : d[l] * scale * (slope ? slope[l] : 1);       /* a hidden slope may be NaN */
    }
}

/* scale qᵀ */
static void pack_scaled(real *to, matrix q, idx K, idx queries, real scale) {
    pack(to, (matrix){q.at, 1, q.down}, K, queries);
    #pragma omp simd
    for (idx i = 0; i < (queries + NR - 1) / NR * NR * K; i++) to[i] *= scale;
}

static idx attention_work(idx S, idx K) {
    idx numbers = 3 * STRIP + 2 * QUERIES * (2 * K + NR + 1) + KEYS * (K + NR) + MR * K;
    idx rooms = ROOMS * (4 * QUERIES + 2 * KEYS) * K, sums = ROOMS * 2 * S * K;
    return (numbers + rooms + LANES - 1) / LANES * LANES + (sums + LANES - 1) / LANES * LANES;
}

/* y divided by the sum, and the log-sum-exp; both 0 for a query that sees no key. */
static real finish(real *restrict y, idx K, real top, real sum) {
    if (sum == 0) {
        memset(y, 0, K * sizeof(real));
        return 0;
    }
    real inverse = 1 / sum;
    #pragma omp simd
    for (idx i = 0; i < K; i++) y[i] *= inverse;
    return top + LOG(sum);
}

#if REAL != 16                                     /* decoding is done in `real` */
enum { DEEP = 8 };

/* y[e] += Σ x[d] w[d, e] over `deep` rows of w, at most DEEP, which are E numbers apart */
INLINE void add_rows(real *restrict y, const real *restrict x, const real *restrict w, idx E, idx n, idx deep) {
    if (deep == DEEP) {                            /* y is read and written once for all of them */
        #pragma omp simd
        for (idx e = 0; e < n; e++) {
            real sum = y[e];
            UNROLL
            for (int d = 0; d < DEEP; d++) sum += x[d] * w[d * E + e];
            y[e] = sum;
        }
        return;
    }
    for (idx d = 0; d < deep; d++) {
        #pragma omp simd
        for (idx e = 0; e < n; e++) y[e] += x[d] * w[d * E + e];
    }
}

/* One query's scores of n keys. */
static void score(real *restrict p, const real *restrict q, matrix k, idx n, idx K, real scale) {
    for (idx i = 0; i < n; i++) {
        real dot = 0;
        #pragma omp simd reduction(+ : dot)
        for (idx j = 0; j < K; j++) dot += q[j] * k.at[i * k.down + j];
        p[i] = dot * scale;
    }
}

/* One query's scores p of n more keys become weights, and y [K], what it took in so far, shrinks; y, top and sum begin
 * with 0, -∞, 0. */
static void weigh(real *restrict y, real *restrict p, idx n, idx K, real *top, real *sum) {
    real high = *top, total = 0;
    #pragma omp simd reduction(max : high)
    for (idx i = 0; i < n; i++) high = p[i] > high ? p[i] : high;
    real base = high > -INFINITY ? high : 0, shrink = DECAY(*top - base);
    #pragma omp simd reduction(+ : total)
    for (idx i = 0; i < n; i++) {
        p[i] = DECAY(p[i] - base);
        total += p[i];
    }
    for (idx j = 0; j < K; j++) y[j] *= shrink;
    *sum = *sum * shrink + total, *top = high;
}

/* The only query, as in decoding: of a tile's columns it would fill one. */
static real attend_one(const attending *a, idx b, idx g, idx r, real *restrict p) {
    idx K = a->K;
    const real *q = at(a->q, b, g, r, 0).at, *bias = bias_of(a, b, g, r, 0);
    real *y = at(a->y, b, g, r, 0).at, top = -INFINITY, sum = 0;
    span keys = seen(transposed(seen_keys(a, 0, 0, a->S, 1)), 0, 1);
    memset(y, 0, K * sizeof(real));
    for (idx s = keys.first; s < keys.past; s += STRIP) {
        idx n = least(keys.past - s, STRIP);
        score(p, q, reals_of(at(a->k, b, g, 0, s), n, K, NULL), n, K, scale_of(a));
        adjust_one(p, look(a, b, s, 0, n, 1), a->softcap, bias ? bias + s : NULL);
        weigh(y, p, n, K, &top, &sum);
        matrix v = reals_of(at(a->v, b, g, 0, s), n, K, NULL);
        for (idx i = 0; i < n; i += DEEP) add_rows(y, p + i, v.at + i * v.down, v.down, K, least(n - i, DEEP));
    }
    return finish(y, K, top, sum);
}
#endif

typedef struct {                                   /* queries, and what they took in of the keys so far */
    real *strip, *q_columns, *v_rows, *top, *sum, *shrink, *rest;
    matrix y;
    idx queries, K;
    int begun;
} block;

/* work: attention_work(0, K) numbers */
static block block_of(matrix q, matrix y, idx queries, idx K, real scale, real *work) {
    real *q_columns = work + STRIP, *v_rows = q_columns + QUERIES * K, *top = v_rows + KEYS * (K + NR);
    pack_scaled(q_columns, q, K, queries, scale);
    for (idx t = 0; t < QUERIES; t++) top[t] = -INFINITY, top[QUERIES + t] = 0;
    return (block){work, q_columns, v_rows, top, top + QUERIES, top + 2 * QUERIES, top + 3 * QUERIES, y, queries, K, 0};
}

/* Takes in a strip of keys and their values. */
static void take_in_strip(block *o, const attending *a, sight x, matrix k, matrix v, const real *bias) {
    const idx K = o->K, queries = o->queries;
    band now = x.band;
    for (idx j = 0; j < queries; j += NR) {
        scores(o->strip, k, o->q_columns, K, now, j, o->rest);
        for (idx t = j; t < least(queries, j + NR); t += LANES) {
            adjust(o->strip, NULL, now, t, a, bias);
            soften(o->strip, x, t, o->top, o->sum, o->shrink);
        }
    }
    for (idx t = 0; t < queries && o->begun; t++) {
        real *yt = (real *)o->y.at + t * o->y.down, shrink = o->shrink[t];
        if (shrink == 1) continue;
        #pragma omp simd
        for (idx i = 0; i < K; i++) yt[i] *= shrink;
    }
    pack(o->v_rows, v, now.rows, K);
    multiply(o->y, (matrix){o->strip, 1, QUERIES}, o->v_rows, K, transposed(now), o->begun);
    o->begun = 1;
}

/* lse [queries], or NULL */
static void finish_block(const block *o, real *lse) {
    for (idx t = 0; t < o->queries; t++) {
        real found = finish((real *)o->y.at + t * o->y.down, o->K, o->top[t], o->sum[t]);
        if (lse) lse[t] = found;
    }
}

static void attend(const attending *a, idx b, idx g, idx r, idx t0, real *work) {
    const idx K = a->K, queries = least(a->T - t0, QUERIES);
    const real *bias = bias_of(a, b, g, r, t0);
    real *q_room = work + attention_work(0, K) - ROOMS * (4 * QUERIES + 2 * KEYS) * K, *y_room = q_room + QUERIES * K;
    real *k_room = y_room + QUERIES * K, *v_room = k_room + KEYS * K;
    lines q = at(a->q, b, g, r, t0), y = at(a->y, b, g, r, t0);
    block o = block_of(reals_of(q, queries, K, q_room), sums_at(y, K, y_room), queries, K, scale_of(a), work);
    span keys = seen(transposed(seen_keys(a, 0, t0, a->S, queries)), 0, queries);
    for (idx s = keys.first; s < keys.past; s += KEYS) {
        sight x = look(a, b, s, t0, least(keys.past - s, KEYS), queries);
        if (apart(x)) continue;
        take_in_strip(&o, a, x, reals_of(at(a->k, b, g, 0, s), x.band.rows, K, k_room),
                      reals_of(at(a->v, b, g, 0, s), x.band.rows, K, v_room), bias ? bias + s : NULL);
    }
    finish_block(&o, a->lse + ((b * a->G + g) * a->R + r) * a->T + t0);
    put_sums(y, o.y, queries, K);
}

static void zero(matrix rows, idx n, idx K) {
    for (idx i = 0; i < n; i++) memset((real *)rows.at + i * rows.down, 0, K * sizeof(real));
}

static void attend_backward(const attending *a, heads dq, heads dk, heads dv, heads dy, idx b, idx g,
                            real *work) {
    idx K = a->K, done = 0;                        /* of the keys' gradients */
    int extra = a->bias || a->softcap;
    real *p = work, *d = p + STRIP, *slope = d + STRIP, *q_columns = slope + STRIP;
    real *dy_columns = q_columns + QUERIES * K, *q_rows = dy_columns + QUERIES * K;
    real *dy_rows = q_rows + QUERIES * (K + NR), *k_rows = dy_rows + QUERIES * (K + NR);
    real *lse = k_rows + KEYS * (K + NR), *delta = lse + QUERIES, *rest = delta + QUERIES;
    real *q_room = work + attention_work(0, K) - ROOMS * (4 * QUERIES + 2 * KEYS) * K, *y_room = q_room + QUERIES * K;
    real *e_room = y_room + QUERIES * K, *dq_room = e_room + QUERIES * K, *k_room = dq_room + QUERIES * K;
    real *v_room = k_room + KEYS * K, *dk_room = v_room + KEYS * K, *dv_room = dk_room + a->S * K;
    const matrix dks = sums_at(at(dk, b, g, 0, 0), K, dk_room), dvs = sums_at(at(dv, b, g, 0, 0), K, dv_room);
    real scale = scale_of(a), inner = extra ? 1 : scale;        /* a bias needs da itself */

    for (idx r = 0; r < a->R; r++)
        for (idx t0 = 0; t0 < a->T; t0 += QUERIES) {
            idx queries = least(a->T - t0, QUERIES);
            matrix q = reals_of(at(a->q, b, g, r, t0), queries, K, q_room);
            matrix y = reals_of(at(a->y, b, g, r, t0), queries, K, y_room);
            matrix e = reals_of(at(dy, b, g, r, t0), queries, K, e_room);
            const matrix dqs = sums_at(at(dq, b, g, r, t0), K, dq_room);
            const real *bias = bias_of(a, b, g, r, t0);
            real *dbias = bias ? a->dbias + (bias - a->bias) : NULL;
            int begun = 0;
            pack_scaled(q_columns, q, K, queries, scale);
            pack(dy_columns, (matrix){e.at, 1, e.down}, K, queries);
            pack(q_rows, q, queries, K);
            pack(dy_rows, e, queries, K);
            memset(lse, 0, 2 * QUERIES * sizeof(real));
            memcpy(lse, a->lse + ((b * a->G + g) * a->R + r) * a->T + t0, queries * sizeof(real));
            for (idx t = 0; t < queries; t++) {
                const real *restrict yt = y.at + t * y.down, *restrict et = e.at + t * e.down;
                real total = 0;
                #pragma omp simd reduction(+ : total)
                for (idx i = 0; i < K; i++) total += yt[i] * et[i];
                delta[t] = total * inner;
            }
            span keys = seen(transposed(seen_keys(a, 0, t0, a->S, queries)), 0, queries);
            idx first = keys.first / KEYS * KEYS;              /* so that strips begin at the same keys */
            zero(from(dks, done, 0), first - done, K);
            zero(from(dvs, done, 0), first - done, K);
            for (idx s = first; s < keys.past; s += KEYS) {
                sight x = look(a, b, s, t0, least(a->S - s, KEYS), queries);
                band now = x.band;
                if (apart(x)) {
                    idx fresh = s < done ? 0 : now.rows;
                    zero(from(dks, s, 0), fresh, K);
                    zero(from(dvs, s, 0), fresh, K);
                    done = most(done, s + now.rows);
                    continue;
                }
                matrix k = reals_of(at(a->k, b, g, 0, s), now.rows, K, k_room);
                matrix v = reals_of(at(a->v, b, g, 0, s), now.rows, K, v_room);
                for (idx j = 0; j < queries; j += NR) {
                    scores(p, k, q_columns, K, now, j, rest);
                    scores(d, v, dy_columns, K, now, j, rest);
                    for (idx t = j; t < least(queries, j + NR); t += LANES) {
                        adjust(p, slope, now, t, a, bias ? bias + s : NULL);
                        soften_backward(p, d, x, t, lse, delta, inner);
                        if (bias) add_bias(d, NULL, dbias + s, now, t, a->S);
                        if (extra) scale_slopes(d, a->softcap ? slope : NULL, now, t, scale);
                    }
                }
                multiply(from(dvs, s, 0), (matrix){p, QUERIES, 1}, dy_rows, K, now, s < done);
                multiply(from(dks, s, 0), (matrix){d, QUERIES, 1}, q_rows, K, now, s < done);
                pack(k_rows, k, now.rows, K);
                multiply(dqs, (matrix){d, 1, QUERIES}, k_rows, K, transposed(now), begun);
                begun = 1;
                done = most(done, s + now.rows);
            }
            if (!begun) zero(dqs, queries, K);
            put_sums(at(dq, b, g, r, t0), dqs, queries, K);
        }
    zero(from(dks, done, 0), a->S - done, K);
    zero(from(dvs, done, 0), a->S - done, K);
    put_sums(at(dk, b, g, 0, 0), dks, a->S, K);
    put_sums(at(dv, b, g, 0, 0), dvs, a->S, K);
}
#endif

static void attention(const attending *a, real *work, int threads) {
    idx parts = (a->T + QUERIES - 1) / QUERIES, items = a->B * a->G * a->R * parts;
    #pragma omp parallel for schedule(dynamic) num_threads(threads) if (items * a->S * a->K > GRAIN)
    for (idx n = 0; n < items; n++) {
        idx head = n / parts, r = head % a->R, g = head / a->R % a->G, b = head / a->R / a->G;
        real *mine = work + omp_get_thread_num() * attention_work(a->S, a->K);
#if REAL != 16
        if (a->T == 1) {
            a->lse[n] = attend_one(a, b, g, r, mine);
            continue;
        }
#endif
        attend(a, b, g, r, n % parts * QUERIES, mine);
    }
}

static void attention_backward(const attending *a, heads dq, heads dk, heads dv, heads dy, real *work,
                               int threads) {
    idx parts_b = a->bias && !a->bias_b ? 1 : a->B, parts_g = a->bias && !a->bias_h ? 1 : a->G;
    #pragma omp parallel for schedule(dynamic) num_threads(threads) if (a->B * a->G * a->T * a->S * a->K > GRAIN)
    for (idx n = 0; n < parts_b * parts_g; n++)
        for (idx b = n / parts_g; b < a->B; b += parts_b)
            for (idx g = n % parts_g; g < a->G; g += parts_g)
                attend_backward(a, dq, dk, dv, dy, b, g, work + omp_get_thread_num() * attention_work(a->S, a->K));
}
