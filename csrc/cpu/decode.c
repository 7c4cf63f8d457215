/* A token's way through a decoder: the steps of a plan.  See pyllama/decode/plan.py for what a step
 * computes, and team.c for the threads.
 *
 * (a) A step has one or two phases, and a phase items: rows of x, a head of a row or of a block of rows,
 *     or 16 rows of matrices.  Each is computed by one thread, so no result depends on how many there
 *     are.  (Of many rows of x, 48 rows of a matrix are an item: a whole number of gemm.c's tiles.)
 * (b) If one row comes alone, each thread norms it for itself: another phase would take longer.
 * (c) Of at most SAME_BITS rows each is computed as if it came alone, so that its bits do not depend on
 *     its company.
 * (d) Of more, those of a sequence attend in blocks, by the tiles of attention.c.  There a key or value
 *     that is not finite may reach queries nearby that do not see it.
 */
#include "team.h"

enum { LONG = 1024, SHORT = 64 };

typedef struct {                                   /* the inputs of products: a thread's own, or those of all */
    real *normed;                                  /* rows of the widest */
    void *eights, *fours;                          /* as Q8_0 and as Q4_0 want them */
} place;

static place place_in(real *normed, void *inputs, idx rows, idx widest) {
    return (place){normed, inputs, (char *)inputs + stored_work(rows, widest)};
}

typedef struct {
    job job;                                       /* first, so that its address is the program's */
    const step *steps;
    const turn *t;
    place shared;
    real *work;
    idx widest, each, blocks;
} program;

typedef struct {                                   /* a thread's own room */
    idx *ready;                                    /* the phase whose norm and inputs are in it */
    real *rest;
    place own;
} desk;

static idx rows_of(const step *s, const turn *t) { return s->wanted ? t->M : t->N; }

static idx up(idx n) { return (n + 15) / 16 * 16; }

/* Numbers of work to attend in blocks: the op's, a strip of keys and values, the queries, and a rotation's */
static idx block_work(idx K) { return attention_work(0, K) + (2 * KEYS + QUERIES + 2) * K; }

/* Numbers of a thread's work */
static idx decode_work(idx widest, idx K) {
    idx products = up(widest + 1) + up(widest) + up(2 * stored_work(1, widest) / sizeof(real) + 1);
    idx heads = up(most(block_work(K), 3 * K + LONG + 2 * SHORT * K));
    return 16 + most(most(products, up(WORK)), heads);
}

static desk desk_of(const program *p, int me) {
    real *work = p->work + me * p->each, *rest = work + 16, *normed = rest + up(p->widest + 1);
    return (desk){(idx *)work, rest, place_in(normed, normed + up(p->widest), 1, p->widest)};
}

static void embed(const step *s, const turn *t, span rows) {
    for (idx n = rows.first; n < rows.past; n++) {
        real *restrict y = s->y[0] + n * s->ldy[0];
        const real *restrict place = t->positions ? t->positions + t->place[n] * s->D : NULL;
        stored_row(y, s->w, t->ids[n]);
        for (idx d = 0; d < s->D; d++) y[d] *= (real)s->scale;
        for (idx d = 0; place && d < s->D; d++) y[d] += place[d];
    }
}

/* Rows of x to y, D numbers apart; rest: room for D + 1 numbers */
static void norm_rows(real *y, const step *s, span rows, real *rest) {
    for (idx n = rows.first; n < rows.past; n++) {
        const real *x = s->x + n * s->ldx;
        if (s->norm == RMS) rms_norm_row(y + n * s->D, x, NULL, s->norm_w, s->eps, s->D);
        else rest[s->D] = layer_norm_row(y + n * s->D, rest, x, s->norm_w, s->norm_b, mean_of(x, s->D), s->eps, s->D);
    }
}

static void pick(const step *s, const turn *t, span rows) {
    for (idx m = rows.first; m < rows.past; m++)
        memcpy(s->y[0] + m * s->ldy[0], s->x + t->wanted[m] * s->ldx, s->D * sizeof(real));
}

static int has_kind(const step *s, int kind) {
    for (int i = 0; i < s->matrices; i++)
        if (s->w[i].kind == kind) return 1;
    return 0;
}

/* Norms of some of N rows, and what the products want of them */
static void prepare(const step *s, idx N, span rows, place to, real *rest) {
    const real *x = s->x;
    idx ldx = s->ldx;
    if (s->norm) norm_rows(to.normed, s, rows, rest), x = to.normed, ldx = s->D;
    if (has_kind(s, Q8_0)) stored_inputs(to.eights, x, ldx, N, s->D, Q8_0, rows.first, rows.past);
    if (has_kind(s, Q4_0)) stored_inputs(to.fours, x, ldx, N, s->D, Q4_0, rows.first, rows.past);
}

static void activate(real *restrict y, const real *restrict x, const real *restrict u, int activation, idx n) {
    switch (activation) {
    case SWIGLU:
        #pragma omp simd
        for (idx i = 0; i < n; i++) y[i] = swiglu_of(x[i], u[i]);
        break;
    case GELU:
        #pragma omp simd
        for (idx i = 0; i < n; i++) y[i] = gelu_of(x[i]);
        break;
    case TANH_GELU:
        #pragma omp simd
        for (idx i = 0; i < n; i++) y[i] = tanh_gelu_of(x[i]);
        break;
    case RELU: for (idx i = 0; i < n; i++) y[i] = relu_of(x[i]); break;
    case SILU: for (idx i = 0; i < n; i++) y[i] = x[i] * SIGMOID(x[i]); break;
    case HYPERBOLIC: for (idx i = 0; i < n; i++) y[i] = TANH(x[i]); break;
    }
}

/* y[n, e] (+)= Σ_d x[n, d] w[d, e]: w is read in the order of memory, once for FEW_TOKENS rows of x */
static void turned_product(real *y, idx ldy, const real *x, idx ldx, const stored *w, idx N, span columns,
                           int accumulate, real *room) {
    enum { FEW_TOKENS = 8 };
    idx D = w->D, E = w->E, e = columns.first, n = columns.past - e;
    if (N > SAME_BITS) {
        product(REALS, y + e, ldy, (matrix){x, ldx, 1}, (matrix){(const real *)w->at + e, E, 1}, N, n, D, accumulate,
                room);
        return;
    }
    for (idx r = 0; !accumulate && r < N; r++) memset(y + r * ldy + e, 0, n * sizeof(real));
    for (idx first = 0; first < N; first += FEW_TOKENS)
        for (idx d = 0; d < D; d += DEEP)
            for (idx r = first; r < least(first + FEW_TOKENS, N); r++)
                add_rows(y + r * ldy + e, x + r * ldx + d, (const real *)w->at + d * E + e, E, n, least(D - d, DEEP));
}

/* Columns of the product of all rows with matrix i */
static void multiply_columns(const step *s, const turn *t, int i, span columns, place from, real *room) {
    idx N = rows_of(s, t), ldx = s->norm ? s->D : s->ldx;
    const void *inputs = s->w[i].kind == Q4_0 ? from.fours : from.eights;
    const real *x = s->norm ? from.normed : s->x;
    real *y = s->y[i] ? s->y[i] : t->scores;
    if (columns.first >= columns.past) return;
    for (idx n = 0; s->b[i] && n < N; n++) {
        real *restrict row = y + n * s->ldy[i];
        for (idx e = columns.first; e < columns.past; e++)
            row[e] = s->b[i][e] + (s->accumulate ? row[e] : 0);
    }
    int adds = s->accumulate || s->b[i];
    if (s->w[i].kind == TURNED) turned_product(y, s->ldy[i], x, ldx, s->w + i, N, columns, adds, room);
    else stored_product(y, s->ldy[i], x, ldx, inputs, s->w + i, N, columns.first, columns.past, adds, room);
}

static idx unit_of(idx N) { return N > SAME_BITS ? 48 : 16; }
static idx units_of(const stored *w, idx unit) { return (w->E + unit - 1) / unit; }

/* A unit of a matrix's rows is an item; of swiglu's two matrices, a unit of both */
static idx product_items(const step *s, idx N) {
    idx all = 0;
    for (int i = 0; i < s->matrices; i++) all += units_of(s->w + i, unit_of(N));
    return s->activation == SWIGLU ? units_of(s->w, unit_of(N)) : all;
}

static void multiply_units(const step *s, const turn *t, span units, place from, real *room) {
    idx N = rows_of(s, t), unit = unit_of(N), before = 0;
    for (int i = 0; i < s->matrices; i++) {
        idx own = units_of(s->w + i, unit), E = s->w[i].E;
        idx first = unit * clip(units.first - before, own), past = unit * clip(units.past - before, own);
        multiply_columns(s, t, i, (span){first, least(past, E)}, from, room);
        before += s->activation == SWIGLU ? 0 : own;
    }
    if (!s->activation) return;
    idx e = unit * units.first, n = least(unit * units.past, s->w->E) - e;
    for (idx r = 0; r < N; r++) {
        const real *u = s->activation == SWIGLU ? s->y[1] + r * s->ldy[1] + e : NULL;
        activate(s->to + r * s->ldto + e, s->y[0] + r * s->ldy[0] + e, u, s->activation, n);
    }
}

/* The norm of several rows is a phase of its own. */
static int prepares(const step *s) { return s->norm || has_kind(s, Q8_0) || has_kind(s, Q4_0); }

static void multiply_items(const program *p, int phase, span units, int me) {
    const step *s = p->steps + phase / 2;
    const turn *t = p->t;
    desk d = desk_of(p, me);
    int alone = rows_of(s, t) == 1;
    if (alone && *d.ready != phase) {
        prepare(s, 1, (span){0, 1}, d.own, d.rest);
        *d.ready = phase;
    }
    multiply_units(s, t, units, alone ? d.own : p->shared, d.rest);
}

/* n rows of K numbers of a cache: where they lie, or as reals in y */
static const real *recall(real *restrict y, const void *rows, const float *scales, int kind, idx row, idx n, idx K) {
    if (kind == REALS) return (const real *)rows + row * K;
#if REAL == 32
    if (kind == FLOAT16) widen(kind, y, (const char *)rows + row * K * sizeof(half), n * K);
    for (idx i = 0; kind == INT8 && i < n; i++) {
        const int8_t *restrict x = (const int8_t *)rows + (row + i) * K;
        for (idx k = 0; k < K; k++) y[i * K + k] = x[k] * scales[row + i];
    }
#endif
    return y;
}

/* The inverse: x [K] becomes a row. */
static void keep(void *rows, float *scales, int kind, idx row, const real *restrict x, idx K) {
    if (kind == REALS) memcpy((real *)rows + row * K, x, K * sizeof(real));
#if REAL == 32
    if (kind == FLOAT16) to_float16((half *)rows + row * K, x, K, 1);
    if (kind == INT8) {
        int8_t *restrict y = (int8_t *)rows + row * K;
        real most = 0, zero = 0;                   /* zero is NaN if an x is NaN or infinite: then so is the scale */
        for (idx k = 0; k < K; k++) {
            most = FABS(x[k]) > most ? FABS(x[k]) : most;
            zero += 0 * x[k];
        }
        real ideal = most / 127 + zero, scale = scales[row] = ideal < 0x1p-126f ? 0x1p-126f : ideal;
        for (idx k = 0; k < K; k++) y[k] = scale == scale ? rintf(x[k] / scale) : 0;
    }
#endif
}

/* y [K] of q [K] and the rows first .. past - 1 of a cache; work: LONG + (1 + 2 SHORT) K numbers */
static void attend_to(real *y, const real *q, const kept *c, int kind, span rows, const char *mask, idx K,
                      real *work) {
    real *p = work, *keys = p + LONG, *values = keys + SHORT * K, *scaled = values + SHORT * K;
    real top = -INFINITY, sum = 0;
    idx longest = kind == REALS ? LONG : SHORT;
    for (idx j = 0; j < K; j++) scaled[j] = q[j] / SQRT(K), y[j] = 0;
    for (idx s = rows.first; s < rows.past; s += longest) {
        idx n = least(rows.past - s, longest);
        const real *k = recall(keys, c->k, c->k_scale, kind, s, n, K);
        const real *v = recall(values, c->v, c->v_scale, kind, s, n, K);
        stored_product(p, n, scaled, K, NULL, &(stored){REALS, k, n, K}, 1, 0, n, 0, NULL);
        for (idx i = 0; mask && i < n; i++) p[i] = mask[s - rows.first + i] ? p[i] : -INFINITY;
        take_in(y, p, (matrix){v, K, 1}, n, K, &top, &sum);
    }
    finish(y, K, top, sum);
}

/* A head's query or key at a position, with its norm and its rotation if it has them: x itself, or in
 * `to`, room for 2 K numbers */
static const real *turned(real *to, const real *x, const real *norm, idx place, const step *s,
                          const turn *t) {
    if (norm) rms_norm_row(to, x, NULL, norm, s->eps, s->K), x = to;
    if (!t->cos) return x;
    idx P = s->K / 2;
    rope_head(to + s->K, x, t->cos + place * P, t->sin + place * P, P, s->interleaved);
    return to + s->K;
}

/* The new keys and values of a row's groups g */
static void keep_row(const step *s, const turn *t, idx n, span groups, real *work) {
    const kept *c = t->caches + s->layer;
    idx K = s->K, G = s->G, H = G * s->R;
    for (idx g = groups.first; g < groups.past; g++) {
        idx row = (t->owner[n] * G + g) * t->room + t->place[n];
        const real *k = s->x + n * s->ldx + (H + g) * K;
        keep(c->k, c->k_scale, t->kind, row, turned(work, k, s->k_norm, t->place[n], s, t), K);
        keep(c->v, c->v_scale, t->kind, row, k + G * K, K);
    }
}

static void keep_rows(const step *s, const turn *t, span rows, real *work) {
    for (idx n = rows.first; n < rows.past; n++) keep_row(s, t, n, (span){0, s->G}, work);
}

static void attend_head(const step *s, const turn *t, idx n, idx h, real *work) {
    idx K = s->K, place = t->place[n], row = (t->owner[n] * s->G + h / s->R) * t->room;
    const real *q = turned(work, s->x + n * s->ldx + h * K, s->q_norm, place, s, t);
    attend_to(s->y[0] + n * s->ldy[0] + h * K, q, t->caches + s->layer, t->kind,
              (span){row + most(0, place + 1 - s->window), row + place + 1}, NULL, K, work + 2 * K);
}

static void cross_head(const step *s, const turn *t, idx n, idx h, real *work) {
    idx K = s->K, source = t->source[t->owner[n]], row = (source * s->G + h) * t->S;
    attend_to(s->y[0] + n * s->ldy[0] + h * K, s->x + n * s->ldx + h * K, t->memory + s->layer, REALS,
              (span){row, row + t->S}, t->mask + source * t->S, K, work);
}

/* y of the queries q of a sequence and the rows of a cache from `first` on; work: block_work(K) numbers */
static void attend_strips(matrix y, matrix q, const attending *a, const kept *c, int kind, idx first, real *work) {
    idx K = a->K;
    real *keys = work + attention_work(0, K), *values = keys + KEYS * K;
    block o = block_of(q, y, a->T, K, scale_of(a), work);
    span all = seen(transposed(seen_keys(a, 0, 0, a->S, a->T)), 0, a->T);
    for (idx s = all.first; s < all.past; s += KEYS) {
        idx n = least(all.past - s, KEYS);
        const real *k = recall(keys, c->k, c->k_scale, kind, first + s, n, K);
        const real *v = recall(values, c->v, c->v_scale, kind, first + s, n, K);
        take_in_strip(&o, a, look(a, 0, s, 0, n, a->T), (matrix){k, K, 1}, (matrix){v, K, 1}, NULL);
    }
    finish_block(&o, NULL);
}

static void attend_block(const step *s, const turn *t, span rows, idx h, real *work) {
    idx K = s->K, n = rows.first, queries = rows.past - n, first = (t->owner[n] * s->G + h / s->R) * t->room;
    real *q = work + block_work(K) - (QUERIES + 2) * K, *rest = q + QUERIES * K;
    if (queries == 1) {
        attend_head(s, t, n, h, work);
        return;
    }
    attending a = {.T = queries, .S = t->place[n] + queries, .K = K, .behind = s->window - 1, .scale = NAN};
    for (idx i = 0; i < queries; i++) {
        const real *x = s->x + (n + i) * s->ldx + h * K;
        memcpy(q + i * K, turned(rest, x, s->q_norm, t->place[n + i], s, t), K * sizeof(real));
    }
    attend_strips((matrix){s->y[0] + n * s->ldy[0] + h * K, s->ldy[0], 1}, (matrix){q, K, 1}, &a,
                  t->caches + s->layer, t->kind, first, work);
}

static void cross_block(const step *s, const turn *t, span rows, idx h, real *work) {
    idx K = s->K, n = rows.first, queries = rows.past - n, source = t->source[t->owner[n]], S = t->S;
    if (queries == 1) {
        cross_head(s, t, n, h, work);
        return;
    }
    attending a = {.T = queries, .S = S, .K = K, .behind = S, .ahead = queries, .scale = NAN,
                   .mask = t->mask + source * S};
    attend_strips((matrix){s->y[0] + n * s->ldy[0] + h * K, s->ldy[0], 1},
                  (matrix){s->x + n * s->ldx + h * K, s->ldx, 1}, &a, t->memory + s->layer, REALS,
                  (source * s->G + h) * S, work);
}

/* The first rows of the blocks, and the number of rows; returns how many blocks there are. */
static idx cut_into_blocks(const turn *t) {
    idx *blocks = t->blocks, count = 0;
    for (idx n = 0; n < t->N; n++) {
        int follows = n && t->owner[n] == t->owner[n - 1] && t->place[n] == t->place[n - 1] + 1;
        if (t->N <= SAME_BITS || !follows || n - blocks[count - 1] == QUERIES) blocks[count++] = n;
    }
    blocks[count] = t->N;
    return count;
}

/* A row whose sequence has no other needs only its own key of the new ones: one phase is enough. */
static int at_once(const step *s, const turn *t) { return t->N == 1 && s->R == 1; }

static void heads_items(const program *p, int phase, span items, int me) {
    const step *s = p->steps + phase / 2;
    const turn *t = p->t;
    real *work = desk_of(p, me).rest;
    for (idx i = items.first; i < items.past; i++) {
        const idx h = i / p->blocks, *block = t->blocks + i % p->blocks;
        span rows = {block[0], block[1]};
        if (s->kind == CROSS) cross_block(s, t, rows, h, work);
        else {
            if (at_once(s, t)) keep_row(s, t, 0, (span){h, h + 1}, work);
            attend_block(s, t, rows, h, work);
        }
    }
}

/* The items of a phase; step i has the phases 2 i, which is often left out, and 2 i + 1. */
static idx items_of(const job *j, int phase) {
    const program *p = (const program *)j;
    const step *s = p->steps + phase / 2;
    idx N = rows_of(s, p->t);
    if (!N) return 0;
    if (phase % 2) return s->kind == PRODUCT ? product_items(s, N) : s->kind >= HEADS ? p->blocks * s->G * s->R : N;
    if (s->kind == HEADS) return at_once(s, p->t) ? 0 : N;
    return s->kind == PRODUCT && N > 1 && prepares(s) ? N : 0;
}

static void run_items(const job *j, int phase, idx first, idx past, int me) {
    const program *p = (const program *)j;
    const step *s = p->steps + phase / 2;
    const turn *t = p->t;
    span items = {first, past};
    switch (s->kind) {
    case EMBED: embed(s, t, items); break;
    case NORM: norm_rows(s->y[0], s, items, desk_of(p, me).rest); break;
    case PICK: pick(s, t, items); break;
    case HEADS: case CROSS:
        if (phase % 2) heads_items(p, phase, items, me);
        else keep_rows(s, t, items, desk_of(p, me).rest);
        break;
    case PRODUCT:
        if (phase % 2) multiply_items(p, phase, items, me);
        else prepare(s, rows_of(s, t), items, p->shared, desk_of(p, me).rest);
    }
}

static void decode(const step *steps, idx count, const turn *t, real *work, idx widest, idx K, int threads) {
    program p = {{2 * count, items_of, run_items}, steps, t,
                 place_in(t->normed, t->inputs, t->rows, widest), work, widest, decode_work(widest, K),
                 cut_into_blocks(t)};
    for (int me = 0; me < threads; me++) *desk_of(&p, me).ready = -1;
    team_run(&p.job, threads);
}
