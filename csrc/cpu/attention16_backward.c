/* The backward pass of attention16.c: a part of the queries and a strip of keys at a time, in blocks of a side of keys
 * by a side of queries.  p and scale dz of a whole strip are kept, for a sum's tile costs more to load and to store than
 * a product. */
enum { KEY_SIDES = KEYS / EDGE, QUERY_SIDES = QUERIES / EDGE, PAIR_OF_STRIPS = 2 * EDGE * ROW };

typedef struct {
    const attending *a;
    idx b, s, t, n, queries, deep, wide;           /* sequence, first key and first query, their numbers */
    const real *bias;                              /* of the first pair, or NULL */
    real *dbias;
    powers by;
    number *keys, *values, *key_columns, *q, *dy, *q_pairs, *dy_pairs, *p_rows, *d_rows, *d_pairs;
    real *dq, *dk, *dv, *lse, *delta, *slope, *p[2], *d[2];
} strip16;

static strip16 strip_of_keys(const attending *a, idx b, real *work) {
    strip16 o = {.a = a, .b = b, .deep = parts_of(a->K, 32), .wide = parts_of(a->K, 16), .by = powers_of(a)};
    const idx keys = KEYS / 16 * o.deep * TILE, queries = QUERIES / 16 * o.deep * TILE, blocks = KEYS * QUERIES;
    const idx pairs = QUERIES / EDGE * o.wide * TILE, sides = parts_of(a->S, EDGE) * 2 * o.wide * SUM_TILE;
    o.keys = (number *)work;
    o.values = o.keys + keys;
    o.key_columns = o.values + keys;
    o.q = o.key_columns + KEYS / EDGE * o.wide * TILE;
    o.dy = o.q + queries;
    o.q_pairs = o.dy + queries;
    o.dy_pairs = o.q_pairs + pairs;
    o.p_rows = o.dy_pairs + pairs;
    o.d_rows = o.p_rows + blocks;
    o.d_pairs = o.d_rows + blocks;
    o.dq = (real *)(o.d_pairs + blocks);
    o.dk = o.dq + QUERIES / 16 * o.wide * SUM_TILE;
    o.dv = o.dk + sides;
    o.lse = o.dv + sides;
    o.delta = o.lse + QUERIES;
    o.slope = o.delta + QUERIES;
    for (int i = 0; i < 2; i++) o.p[i] = o.slope + (1 + 2 * i) * PAIR_OF_STRIPS, o.d[i] = o.p[i] + PAIR_OF_STRIPS;
    return o;
}

/* Reals for both passes */
static idx attention_work(idx S, idx K) {
    const idx deep = parts_of(K, 32), wide = parts_of(K, 16), sides = parts_of(S, EDGE) * 2;
    const idx tiled = 2 * (KEYS + QUERIES) / 16 * deep + (KEYS + 2 * QUERIES) / EDGE * wide + 3 * KEYS * QUERIES / TILE;
    return tiled * TILE / 2 + (QUERIES / 16 + 2 * sides) * wide * SUM_TILE + 2 * QUERIES + 5 * PAIR_OF_STRIPS
           + 2 * (KEYS + 1) * ROW + KEYS / EDGE * TILE;
}

/* a to p, and dp to scale da, of 16 queries; delta was multiplied by `inner` */
static void soften_backward(real *p, real *d, const real *lse, const real *delta, real then, real inner) {
    const __m512 by = _mm512_set1_ps(then), base = _mm512_load_ps(lse), mean = _mm512_load_ps(delta);
    for (idx i = 0; i < EDGE * ROW; i += ROW) {
        const __m512 pi = power(_mm512_fmsub_ps(_mm512_load_ps(p + i), by, base));
        const __m512 di = _mm512_fmsub_ps(_mm512_load_ps(d + i), _mm512_set1_ps(inner), mean);
        _mm512_store_ps(p + i, pi);
        _mm512_store_ps(d + i, _mm512_mul_ps(pi, di));
    }
}

/* da to scale dz; a hidden slope may be NaN */
static void scale_slopes(real *d, const real *slope, real scale) {
    for (idx i = 0; i < EDGE * ROW; i++) d[i] = d[i] == 0 ? 0 : d[i] * scale * (slope ? slope[i] : 1);
}

INLINE int is_whole(sight x) {
    return !x.mask && !x.pairs && !x.keys && x.band.rows == EDGE && x.band.cols == LANES
           && EDGE - 1 <= x.band.before && LANES - 1 <= x.band.after;
}

/* A block of 2 x 16 queries as tiles: by rows of keys, each the queries l and l + 16 by turns; and, unless `pairs` is
 * NULL, by pairs of keys.  See query_of for the order of queries there. */
static void put_block(number *rows, number *pairs, const real *x) {
    for (idx r = 0; r < 16; r++, x += ROW) {
        const real *low = x + 16 * ROW, *right = x + EDGE * ROW;
        const __m512i even = paired(_mm512_load_ps(x), _mm512_load_ps(right));
        const __m512i odd = paired(_mm512_load_ps(low), _mm512_load_ps(right + 16 * ROW));
        _mm512_store_si512(rows + r * 32, even);
        _mm512_store_si512(rows + QUERY_SIDES * TILE + r * 32, odd);
        if (!pairs) continue;
        _mm512_store_si512(pairs + r * 32, _mm512_unpacklo_epi16(even, odd));
        _mm512_store_si512(pairs + KEY_SIDES * TILE + r * 32, _mm512_unpackhi_epi16(even, odd));
    }
}

/* Of lane l of a tile of pairs, the first or second of a side */
INLINE idx query_of(idx second, idx l) { return l / 4 * 4 + second * 2 + l % 4 / 2 + l % 2 * 16; }

INLINE sight look_at(const strip16 *o, idx i, idx t, idx queries) {
    return look(o->a, o->b, o->s + i * EDGE, o->t + t, least(o->n - i * EDGE, EDGE), clip(o->queries - t, queries));
}

/* Products of the side i of keys with the side j of queries, and of values with dy */
static void score_block(const strip16 *o, idx i, idx j) {
    const idx deep = o->deep, k = 2 * i * deep * TILE, q = 2 * j * deep * TILE;
    sum_tiles(2, 2, (sums){o->p[j % 2], 1, 2}, (tiles){o->keys + k, deep, 1}, (tiles){o->q + q, deep, 1}, deep, 0);
    sum_tiles(2, 2, (sums){o->d[j % 2], 1, 2}, (tiles){o->values + k, deep, 1}, (tiles){o->dy + q, deep, 1}, deep, 0);
}

/* p and scale dz as tiles */
static void soften_block(const strip16 *o, idx i, idx j) {
    const attending *a = o->a;
    const int extra = a->bias || a->softcap;
    const real scale = scale_of(a), inner = extra ? 1 : scale;          /* a bias needs da itself */
    for (idx h = 0; h < 2; h++) {
        real *p = o->p[j % 2] + h * EDGE * ROW, *d = o->d[j % 2] + h * EDGE * ROW;
        const idx t = j * EDGE + h * 16, pair = t * a->S + i * EDGE;
        const sight x = look_at(o, i, t, 16);
        adjust_rows(p, o->slope, x, (span){0, x.band.rows}, a, o->bias ? o->bias + pair : NULL, o->by);
        soften_backward(p, d, o->lse + t, o->delta + t, o->by.then, inner);
        if (!is_whole(x)) hide(p, d, x, (span){0, EDGE}, 0);
        if (o->bias) add_bias(d, NULL, o->dbias + pair, x.band, 0, a->S);
        if (extra) scale_slopes(d, a->softcap ? o->slope : NULL, scale);
    }
    put_block(o->p_rows + (2 * i * QUERY_SIDES + j) * TILE, NULL, o->p[j % 2]);
    put_block(o->d_rows + (2 * i * QUERY_SIDES + j) * TILE, o->d_pairs + (2 * j * KEY_SIDES + i) * TILE, o->d[j % 2]);
}

static void clear_block(const strip16 *o, idx i, idx j) {
    for (idx h = 0; h < 2; h++) {
        memset(o->p_rows + ((2 * i + h) * QUERY_SIDES + j) * TILE, 0, TILE * sizeof(number));
        memset(o->d_rows + ((2 * i + h) * QUERY_SIDES + j) * TILE, 0, TILE * sizeof(number));
        memset(o->d_pairs + ((2 * j + h) * KEY_SIDES + i) * TILE, 0, TILE * sizeof(number));
    }
}

/* The sides of columns that a side of rows sees */
INLINE span sides_seen(band b, idx side) {
    const span s = seen(b, side * EDGE, EDGE);
    return s.first < s.past ? (span){s.first / EDGE, parts_of(s.past, EDGE)} : (span){0, 0};
}

static void clear_sides(const strip16 *o, idx first, idx past) {
    const idx side = 2 * o->wide * SUM_TILE;
    if (first >= past) return;
    memset(o->dk + first * side, 0, (past - first) * side * sizeof(real));
    memset(o->dv + first * side, 0, (past - first) * side * sizeof(real));
}

/* dk and dv of the side i of keys */
static void add_to_keys(const strip16 *o, idx i, span j, int accumulate) {
    const idx wide = o->wide, tile = 2 * i * QUERY_SIDES + j.first, sum = (o->s / EDGE + i) * 2 * wide * SUM_TILE;
    sum_rows(wide, (sums){o->dv + sum, wide, 1}, (tiles){o->p_rows + tile * TILE, QUERY_SIDES, 1},
             (tiles){o->dy_pairs + j.first * wide * TILE, 1, wide}, j.past - j.first, accumulate);
    sum_rows(wide, (sums){o->dk + sum, wide, 1}, (tiles){o->d_rows + tile * TILE, QUERY_SIDES, 1},
             (tiles){o->q_pairs + j.first * wide * TILE, 1, wide}, j.past - j.first, accumulate);
}

static void add_to_queries(const strip16 *o, idx j, span i) {
    const idx wide = o->wide;
    if (i.first < i.past)
        sum_columns(wide, (sums){o->dq + 2 * j * wide * SUM_TILE, 1, wide}, (tiles){o->key_columns + i.first * wide * TILE, 1, wide},
                    (tiles){o->d_pairs + (2 * j * KEY_SIDES + i.first) * TILE, KEY_SIDES, 1}, i.past - i.first, 1);
}

static void begin_keys(const strip16 *o, lines k, lines v) {
    const idx K = o->a->K;
    tile_rows(o->keys, k, o->n, K);
    tile_rows(o->values, v, o->n, K);
    tile_pairs(o->key_columns, k, o->n, K);
    transpose_tiles(o->key_columns, parts_of(o->n, EDGE) * o->wide);
}

/* done: the sides of keys whose gradients have begun */
static void take_in_strip(const strip16 *o, idx done) {
    const band all = look_at(o, 0, 0, QUERIES).band;
    const band b = {o->n, o->queries, all.before, all.after};
    for (idx i = 0; i < parts_of(o->n, EDGE); i++) {
        const idx side = o->s / EDGE + i;
        const span j = sides_seen(b, i);
        if (j.first >= j.past) {
            clear_sides(o, most(side, done), side + 1);
            continue;
        }
        score_block(o, i, j.first);
        for (idx jj = j.first; jj < j.past; jj++) {
            if (jj + 1 < j.past) score_block(o, i, jj + 1);
            if (apart(look_at(o, i, jj * EDGE, EDGE))) clear_block(o, i, jj);
            else soften_block(o, i, jj);
        }
        add_to_keys(o, i, j, side < done);
    }
    for (idx j = 0; j < parts_of(o->queries, EDGE); j++) add_to_queries(o, j, sides_seen(transposed(b), j));
}

/* Σ x y in float */
INLINE real dot(const number *x, const number *y, idx K) {
    __m512 sum = _mm512_setzero_ps();
    for (idx k = 0; k < K; k += 32) {
        const __mmask32 there = lanes_below(K - k);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(there, x + k),
                               (__m512bh)_mm512_maskz_loadu_epi16(there, y + k));
    }
    return _mm512_reduce_add_ps(sum);
}

static void begin_queries(const strip16 *o, lines q, lines y, lines dy, const real *lse) {
    const attending *a = o->a;
    const real inner = a->bias || a->softcap ? 1 : scale_of(a);
    const idx tiles = parts_of(o->queries, EDGE) * 2 * o->deep;
    tile_rows(o->q, q, o->queries, a->K);
    tile_rows(o->dy, dy, o->queries, a->K);
    transpose_tiles(o->q, tiles);
    transpose_tiles(o->dy, tiles);
    tile_pairs(o->q_pairs, q, o->queries, a->K);
    tile_pairs(o->dy_pairs, dy, o->queries, a->K);
    memset(o->lse, 0, 2 * QUERIES * sizeof(real));
    for (idx t = 0; t < o->queries; t++) {
        o->lse[t] = lse[t] * LOG2_E;
        o->delta[t] = dot(y.at + t * y.down, dy.at + t * dy.down, a->K) * inner;
    }
    memset(o->dq, 0, parts_of(o->queries, EDGE) * 2 * o->wide * SUM_TILE * sizeof(real));
}

static void finish_dq(const strip16 *o, lines dq) {
    for (idx j = 0; j < 2 * parts_of(o->queries, EDGE); j++) {
        idx where[16];
        for (idx l = 0; l < 16; l++) {
            const idx t = j / 2 * EDGE + query_of(j % 2, l);
            where[l] = t < o->queries ? t : -1;
        }
        put_transposed(dq, o->dq + j * o->wide * SUM_TILE, o->a->K, where);
    }
}

static void put_rows(lines to, const real *x, idx rows, idx K) {
    const idx wide = parts_of(K, 16);
    for (idx i = 0; i < rows; i++)
        for (idx k = 0; k < wide; k++)
            put_lanes(to.at + i * to.down + k * 16, _mm512_load_ps(x + (i / 16 * wide + k) * SUM_TILE + i % 16 * 16), K - k * 16);
}

static void attend_backward(const attending *a, heads dq, heads dk, heads dv, heads dy, idx b, idx g, real *work) {
    idx done = 0;
    strip16 o = strip_of_keys(a, b, work);
    begin_whole_tiles();
    for (idx r = 0; r < a->R; r++)
        for (o.t = 0; o.t < a->T; o.t += QUERIES) {
            const real *bias = bias_of(a, b, g, r, o.t);
            o.queries = least(a->T - o.t, QUERIES);
            begin_queries(&o, at(a->q, b, g, r, o.t), at(a->y, b, g, r, o.t), at(dy, b, g, r, o.t),
                          a->lse + ((b * a->G + g) * a->R + r) * a->T + o.t);
            const span keys = seen(transposed(seen_keys(a, 0, o.t, a->S, o.queries)), 0, o.queries);
            const idx first = keys.first / KEYS * KEYS;        /* so that strips begin at the same keys */
            clear_sides(&o, done, first / EDGE);
            for (o.s = first; o.s < keys.past; o.s += KEYS) {
                o.n = least(a->S - o.s, KEYS);
                o.bias = bias ? bias + o.s : NULL, o.dbias = bias ? a->dbias + (o.bias - a->bias) : NULL;
                const idx past = (o.s + o.n + EDGE - 1) / EDGE;
                if (apart(look(a, b, o.s, o.t, o.n, o.queries))) clear_sides(&o, most(done, o.s / EDGE), past);
                else {
                    begin_keys(&o, at(a->k, b, g, 0, o.s), at(a->v, b, g, 0, o.s));
                    take_in_strip(&o, done);
                }
                done = most(done, past);
            }
            finish_dq(&o, at(dq, b, g, r, o.t));
        }
    clear_sides(&o, done, parts_of(a->S, EDGE));
    put_rows(at(dk, b, g, 0, 0), o.dk, a->S, a->K);
    put_rows(at(dv, b, g, 0, 0), o.dv, a->S, a->K);
    release_tiles();
}
