/* The backward pass of attention16.c: a part of the queries and a strip of keys at a time, in blocks of an edge of keys
 * by an edge of queries.  A tile of sums costs more to load and to store than a product.  So the blocks of an edge of
 * keys are kept for dv and dk, those of the whole strip for dqᵀ. */
enum { KEY_EDGES = KEYS / EDGE, QUERY_EDGES = QUERIES / EDGE, PAIR_OF_STRIPS = 2 * EDGE * ROW };

typedef struct {
    const attending *a;
    idx b, s, t, n, queries, deep, wide;           /* sequence, first key and first query, their numbers */
    const real *bias;                              /* of the first pair, or NULL */
    real *dbias;
    powers by;
    number *keys, *values, *key_columns, *q, *dy, *q_pairs, *dy_pairs, *p_rows, *d_rows, *d_pairs;
    real *dq, *dk, *dv, *lse, *delta, *slope, *p, *d;
} strip16;

static strip16 strip_of_keys(const attending *a, idx b, real *work) {
    strip16 o = {.a = a, .b = b, .deep = parts_of(a->K, 32), .wide = parts_of(a->K, 16), .by = powers_of(a)};
    const idx keys = KEYS / 16 * o.deep * TILE, queries = QUERIES / 16 * o.deep * TILE;
    const idx pairs = QUERIES / EDGE * o.wide * TILE, edges = parts_of(a->S, EDGE) * 2 * o.wide * SUM_TILE;
    o.keys = (number *)work;
    o.values = o.keys + keys;
    o.key_columns = o.values + keys;
    o.q = o.key_columns + KEYS / EDGE * o.wide * TILE;
    o.dy = o.q + queries;
    o.q_pairs = o.dy + queries;
    o.dy_pairs = o.q_pairs + pairs;
    o.p_rows = o.dy_pairs + pairs;
    o.d_rows = o.p_rows + EDGE * QUERIES;
    o.d_pairs = o.d_rows + EDGE * QUERIES;
    o.dq = (real *)(o.d_pairs + KEYS * QUERIES);
    o.dk = o.dq + QUERIES / 16 * o.wide * SUM_TILE;
    o.dv = o.dk + edges;
    o.lse = o.dv + edges;
    o.delta = o.lse + QUERIES;
    o.slope = o.delta + QUERIES;
    o.p = o.slope + PAIR_OF_STRIPS;
    o.d = o.p + PAIR_OF_STRIPS;
    return o;
}

/* Reals for both passes */
static idx attention_work(idx S, idx K) {
    const idx deep = parts_of(K, 32), wide = parts_of(K, 16), edges = parts_of(S, EDGE) * 2;
    const idx factors = 2 * (KEYS + QUERIES) / 16 * deep + (KEYS + 2 * QUERIES) / EDGE * wide;
    const idx tiled = factors + (KEYS + 2 * EDGE) * QUERIES / TILE;
    return tiled * TILE / 2 + (QUERIES / 16 + 2 * edges) * wide * SUM_TILE + 2 * QUERIES + 3 * PAIR_OF_STRIPS
           + 2 * (KEYS + 1) * ROW + KEYS / EDGE * TILE;
}

/* a to p, and dp to scale da, of 16 queries; delta was multiplied by `inner` */
static void soften_backward(real *p, real *d, const real *lse, const real *delta, real then, real inner) {
    const __m512 by = _mm512_set1_ps(then), base = _mm512_load_ps(lse), mean = _mm512_load_ps(delta);
    for (idx i = 0; i < EDGE * ROW; i += ROW) {
        const __m512 pi = weight(p + i, by, base);
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
    return !x.mask && !x.pairs && !x.keys && x.band.rows == EDGE && x.band.cols == EDGE
           && EDGE - 1 <= x.band.before && EDGE - 1 <= x.band.after;
}

/* A block of 2 x 16 queries as tiles: by rows of keys, each the queries l and l + 16 by turns; and, unless `pairs` is
 * NULL, by pairs of keys.  See query_of for the order of queries there. */
static void put_block(number *rows, number *pairs, const real *x) {
    for (idx r = 0; r < 16; r++, x += ROW) {
        const real *low = x + 16 * ROW, *right = x + EDGE * ROW;
        const __m512i even = paired(_mm512_load_ps(x), _mm512_load_ps(right));
        const __m512i odd = paired(_mm512_load_ps(low), _mm512_load_ps(right + 16 * ROW));
        _mm512_store_si512(rows + r * 32, even);
        _mm512_store_si512(rows + QUERY_EDGES * TILE + r * 32, odd);
        if (!pairs) continue;
        _mm512_store_si512(pairs + r * 32, _mm512_unpacklo_epi16(even, odd));
        _mm512_store_si512(pairs + KEY_EDGES * TILE + r * 32, _mm512_unpackhi_epi16(even, odd));
    }
}

/* soften_backward() and put_block() in one pass, for a block that is seen as a whole: nothing is written twice. */
static void soften_whole(const strip16 *o, idx j, number *p_rows, number *d_rows, number *d_pairs, real inner) {
    const __m512 by = _mm512_set1_ps(o->by.then), times = _mm512_set1_ps(inner);
    const real *lse = o->lse + j * EDGE, *delta = o->delta + j * EDGE;
    for (idx r = 0; r < 16; r++) {
        __m512 p[2][2], d[2][2];                   /* rows r and r + 16, queries 0 .. 15 and 16 .. 31 */
        __m512i d_row[2];
        UNROLL for (int i = 0; i < 2; i++) {
            UNROLL for (int h = 0; h < 2; h++) {
                const idx at = h * EDGE * ROW + (r + 16 * i) * ROW;
                const __m512 mean = _mm512_load_ps(delta + 16 * h);
                p[i][h] = weight(o->p + at, by, _mm512_load_ps(lse + 16 * h));
                d[i][h] = _mm512_mul_ps(p[i][h], _mm512_fmsub_ps(_mm512_load_ps(o->d + at), times, mean));
            }
            _mm512_store_si512(p_rows + i * QUERY_EDGES * TILE + r * 32, paired(p[i][0], p[i][1]));
            d_row[i] = paired(d[i][0], d[i][1]);
            _mm512_store_si512(d_rows + i * QUERY_EDGES * TILE + r * 32, d_row[i]);
        }
        _mm512_store_si512(d_pairs + r * 32, _mm512_unpacklo_epi16(d_row[0], d_row[1]));
        _mm512_store_si512(d_pairs + KEY_EDGES * TILE + r * 32, _mm512_unpackhi_epi16(d_row[0], d_row[1]));
    }
}

/* Of lane l of a tile of pairs, the first or second of an edge: which query it is */
INLINE idx query_of(idx second, idx l) { return l / 4 * 4 + second * 2 + l % 4 / 2 + l % 2 * 16; }

INLINE sight look_at(const strip16 *o, idx i, idx t, idx queries) {
    return look(o->a, o->b, o->s + i * EDGE, o->t + t, least(o->n - i * EDGE, EDGE), clip(o->queries - t, queries));
}

/* Products of edge i of keys with edge j of queries, and of values with dy */
static void score_block(const strip16 *o, idx i, idx j) {
    const idx deep = o->deep, k = 2 * i * deep * TILE, q = 2 * j * deep * TILE;
    sum_tiles(2, 2, (sums){o->p, 1, 2}, (tiles){o->keys + k, deep, 1}, (tiles){o->q + q, deep, 1}, deep, 0);
    sum_tiles(2, 2, (sums){o->d, 1, 2}, (tiles){o->values + k, deep, 1}, (tiles){o->dy + q, deep, 1}, deep, 0);
}

/* p and scale dz as tiles */
static void soften_block(const strip16 *o, idx i, idx j) {
    const attending *a = o->a;
    const int extra = a->bias || a->softcap;
    const real scale = scale_of(a), inner = extra ? 1 : scale;          /* a bias needs da itself */
    number *p_rows = o->p_rows + j * TILE, *d_rows = o->d_rows + j * TILE;
    number *d_pairs = o->d_pairs + (2 * j * KEY_EDGES + i) * TILE;
    if (!extra && o->by.first == 1 && is_whole(look_at(o, i, j * EDGE, EDGE))) {
        soften_whole(o, j, p_rows, d_rows, d_pairs, inner);
        return;
    }
    for (idx h = 0; h < 2; h++) {
        real *p = o->p + h * EDGE * ROW, *d = o->d + h * EDGE * ROW;
        const idx t = j * EDGE + h * 16, pair = t * a->S + i * EDGE;
        const sight x = look_at(o, i, t, 16);
        adjust_rows(p, o->slope, x, (span){0, x.band.rows}, a, o->bias ? o->bias + pair : NULL, o->by);
        soften_backward(p, d, o->lse + t, o->delta + t, o->by.then, inner);
        hide(p, d, x, (span){0, EDGE}, 0);
        if (o->bias) add_bias(d, NULL, o->dbias + pair, x.band, 0, a->S);
        if (extra) scale_slopes(d, a->softcap ? o->slope : NULL, scale);
    }
    put_block(p_rows, NULL, o->p);
    put_block(d_rows, d_pairs, o->d);
}

static void clear_block(const strip16 *o, idx i, idx j) {
    for (idx h = 0; h < 2; h++) {
        memset(o->p_rows + (h * QUERY_EDGES + j) * TILE, 0, TILE * sizeof(number));
        memset(o->d_rows + (h * QUERY_EDGES + j) * TILE, 0, TILE * sizeof(number));
        memset(o->d_pairs + ((2 * j + h) * KEY_EDGES + i) * TILE, 0, TILE * sizeof(number));
    }
}

/* The edges of columns that an edge of rows sees */
INLINE span edges_seen(band b, idx edge) {
    const span s = seen(b, edge * EDGE, EDGE);
    return s.first < s.past ? (span){s.first / EDGE, parts_of(s.past, EDGE)} : (span){0, 0};
}

static void clear_edges(const strip16 *o, idx first, idx past) {
    const idx edge = 2 * o->wide * SUM_TILE;
    if (first >= past) return;
    memset(o->dk + first * edge, 0, (past - first) * edge * sizeof(real));
    memset(o->dv + first * edge, 0, (past - first) * edge * sizeof(real));
}

/* dk and dv of edge i of keys */
static void add_to_keys(const strip16 *o, idx i, span j, int accumulate) {
    const idx wide = o->wide, sum = (o->s / EDGE + i) * 2 * wide * SUM_TILE;
    sum_rows(wide, (sums){o->dv + sum, wide, 1}, (tiles){o->p_rows + j.first * TILE, QUERY_EDGES, 1},
             (tiles){o->dy_pairs + j.first * wide * TILE, 1, wide}, j.past - j.first, accumulate);
    sum_rows(wide, (sums){o->dk + sum, wide, 1}, (tiles){o->d_rows + j.first * TILE, QUERY_EDGES, 1},
             (tiles){o->q_pairs + j.first * wide * TILE, 1, wide}, j.past - j.first, accumulate);
}

static void add_to_queries(const strip16 *o, idx j, span i) {
    const idx wide = o->wide;
    if (i.first < i.past)
        sum_columns(wide, (sums){o->dq + 2 * j * wide * SUM_TILE, 1, wide},
                    (tiles){o->key_columns + i.first * wide * TILE, 1, wide},
                    (tiles){o->d_pairs + (2 * j * KEY_EDGES + i.first) * TILE, KEY_EDGES, 1}, i.past - i.first, 1);
}

static void begin_keys(const strip16 *o, lines k, lines v) {
    const idx K = o->a->K;
    tile_rows(o->keys, k, o->n, K);
    tile_rows(o->values, v, o->n, K);
    tile_pairs(o->key_columns, k, o->n, K);
    transpose_tiles(o->key_columns, parts_of(o->n, EDGE) * o->wide);
}

/* done: the edges of keys whose gradients have begun */
static void take_in_strip(const strip16 *o, idx done) {
    const band all = look_at(o, 0, 0, QUERIES).band;
    const band b = {o->n, o->queries, all.before, all.after};
    for (idx i = 0; i < parts_of(o->n, EDGE); i++) {
        const idx edge = o->s / EDGE + i;
        const span j = edges_seen(b, i);
        if (j.first >= j.past) {
            clear_edges(o, most(edge, done), edge + 1);
            continue;
        }
        for (idx jj = j.first; jj < j.past; jj++) {
            if (apart(look_at(o, i, jj * EDGE, EDGE))) clear_block(o, i, jj);
            else {
                score_block(o, i, jj);
                soften_block(o, i, jj);
            }
        }
        add_to_keys(o, i, j, edge < done);
    }
    for (idx j = 0; j < parts_of(o->queries, EDGE); j++) add_to_queries(o, j, edges_seen(transposed(b), j));
}

/* Σ y dy of up to 16 rows; room: a tile of sums */
INLINE __m512 deltas_of(lines y, lines dy, idx rows, idx K, real *room) {
    for (idx i = 0; i < 16; i++) {
        __m512 sum = _mm512_setzero_ps();
        for (idx k = 0; k < K; k += 32) {
            const __mmask32 there = i < rows ? lanes_below(K - k) : 0;
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(there, y.at + i * y.down + k),
                                   (__m512bh)_mm512_maskz_loadu_epi16(there, dy.at + i * dy.down + k));
        }
        _mm512_store_ps(room + i * 16, sum);
    }
    transpose_tile(room);
    __m512 sum = _mm512_load_ps(room);
    for (idx i = 1; i < 16; i++) sum = _mm512_add_ps(sum, _mm512_load_ps(room + i * 16));
    return sum;
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
    for (idx t = 0; t < parts_of(o->queries, EDGE) * EDGE; t += 16) {
        const idx n = o->queries - t;
        const lines yt = {y.at + t * y.down, y.down}, dyt = {dy.at + t * dy.down, dy.down};
        const __m512 lse_t = _mm512_maskz_loadu_ps(lanes_below(n), lse + t);
        _mm512_store_ps(o->lse + t, _mm512_mul_ps(lse_t, _mm512_set1_ps(LOG2_E)));
        _mm512_store_ps(o->delta + t, _mm512_mul_ps(deltas_of(yt, dyt, n, a->K, o->slope), _mm512_set1_ps(inner)));
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
        for (idx k = 0; k < wide; k++) {
            const real *at = x + (i / 16 * wide + k) * SUM_TILE + i % 16 * 16;
            put_lanes(to.at + i * to.down + k * 16, _mm512_load_ps(at), K - k * 16);
        }
}

static void attend_backward(const attending *a, heads dq, heads dk, heads dv, heads dy, idx b, idx g, real *work) {
    idx done = 0;
    strip16 o = strip_of_keys(a, b, work);
    begin_tiles();
    for (idx r = 0; r < a->R; r++)
        for (o.t = 0; o.t < a->T; o.t += QUERIES) {
            const real *bias = bias_of(a, b, g, r, o.t);
            o.queries = least(a->T - o.t, QUERIES);
            begin_queries(&o, at(a->q, b, g, r, o.t), at(a->y, b, g, r, o.t), at(dy, b, g, r, o.t),
                          a->lse + ((b * a->G + g) * a->R + r) * a->T + o.t);
            const span keys = seen(transposed(seen_keys(a, 0, o.t, a->S, o.queries)), 0, o.queries);
            const idx first = keys.first / KEYS * KEYS;        /* so that strips begin at the same keys */
            clear_edges(&o, done, first / EDGE);
            for (o.s = first; o.s < keys.past; o.s += KEYS) {
                o.n = least(a->S - o.s, KEYS);
                o.bias = bias ? bias + o.s : NULL, o.dbias = bias ? a->dbias + (o.bias - a->bias) : NULL;
                const idx past = (o.s + o.n + EDGE - 1) / EDGE;
                if (apart(look(a, b, o.s, o.t, o.n, o.queries))) clear_edges(&o, most(done, o.s / EDGE), past);
                else {
                    begin_keys(&o, at(a->k, b, g, 0, o.s), at(a->v, b, g, 0, o.s));
                    take_in_strip(&o, done);
                }
                done = most(done, past);
            }
            finish_dq(&o, at(dq, b, g, r, o.t));
        }
    clear_edges(&o, done, parts_of(a->S, EDGE));
    put_rows(at(dk, b, g, 0, 0), o.dk, a->S, a->K);
    put_rows(at(dv, b, g, 0, 0), o.dv, a->S, a->K);
    release_tiles();
}
