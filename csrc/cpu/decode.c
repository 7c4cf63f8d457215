/* A token's way through a decoder: the steps of a plan, in one parallel region.
 * See pyllama/decode/plan.py for what a step computes.
 *
 * (a) All threads run every step, each on its part: rows of matrices, heads, rows of x.  So each
 *     number is written by one thread, and no result depends on how many there are.
 * (b) A step begins when all threads have ended the one before.  They wait in a loop, because a token
 *     has some 50 steps of a few microseconds, as long as a sleeping thread takes to wake.
 * (c) With fewer rows than threads, each thread norms all of them for itself: that takes less time
 *     than waiting for another.
 * (d) A row is computed as if it came alone, so that its bits do not depend on its company.
 */
#include <sched.h>

enum { PATIENCE = 2000, LONG = 1024, SHORT = 64 };

typedef struct {                                   /* of all threads; one cache line each */
    int arrived __attribute__((aligned(64)));
    int rounds __attribute__((aligned(64)));
} meeting;

typedef struct {                                   /* a thread */
    const turn *t;
    meeting *others;
    int me, team;
    real *work, *normed;                           /* its own; normed and inputs: of fewer rows than threads */
    void *inputs;
} worker;

static inline void rest_a_little(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

/* Waits until all threads are here.  Where another program has their core, spinning would delay it. */
static void meet(const worker *w) {
    meeting *m = w->others;
    if (w->team == 1) return;
    int round = __atomic_load_n(&m->rounds, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&m->arrived, 1, __ATOMIC_ACQ_REL) == w->team) {
        __atomic_store_n(&m->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&m->rounds, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int n = 0; __atomic_load_n(&m->rounds, __ATOMIC_ACQUIRE) == round; n++)
        if (n < PATIENCE) rest_a_little();
        else sched_yield();
}

/* This thread's part of n items, in whole units. */
static span part_of(const worker *w, idx n, idx unit) {
    idx units = (n + unit - 1) / unit;
    return (span){least(units * w->me / w->team * unit, n), least(units * (w->me + 1) / w->team * unit, n)};
}

static void embed(const step *s, const worker *w) {
    const turn *t = w->t;
    span rows = part_of(w, t->N, 1);
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
        if (s->norm == RMS) rms_norm_row(y + n * s->D, x, s->norm_w, s->eps, s->D);
        else rest[s->D] = layer_norm_row(y + n * s->D, rest, x, s->norm_w, s->norm_b, s->eps, s->D);
    }
}

static idx rows_of(const step *s, const turn *t) { return s->wanted ? t->M : t->N; }

static void normalize(const step *s, const worker *w) {
    norm_rows(s->y[0], s, part_of(w, rows_of(s, w->t), 1), w->work);
}

static void activate(real *y, const real *x, const real *u, int activation, idx n) {
    switch (activation) {
    case SWIGLU: swiglu(y, x, u, n, 1); break;
    case GELU: case TANH_GELU: gelu(y, x, activation == TANH_GELU, n, 1); break;
    case RELU: relu(y, x, n, 1); break;
    case SILU: for (idx i = 0; i < n; i++) y[i] = x[i] * SIGMOID(x[i]); break;
    case HYPERBOLIC: for (idx i = 0; i < n; i++) y[i] = TANH(x[i]); break;
    }
}

/* Columns of the product of all rows with matrix i. */
static void multiply_part(const step *s, const turn *t, int i, span columns, const real *x, idx ldx,
                          const void *inputs) {
    idx N = rows_of(s, t), n = columns.past - columns.first;
    real *y = s->y[i] ? s->y[i] : t->scores;
    if (n <= 0) return;
    for (idx r = 0; s->b[i] && r < N; r++) {
        real *restrict row = y + r * s->ldy[i];
        for (idx e = columns.first; e < columns.past; e++)
            row[e] = s->b[i][e] + (s->accumulate ? row[e] : 0);
    }
    stored_product(y, s->ldy[i], x, ldx, inputs, s->w + i, N, columns.first, columns.past,
                   s->accumulate || s->b[i]);
}

static void multiply_all(const step *s, const worker *w) {
    const turn *t = w->t;
    idx N = rows_of(s, t), D = s->D, ldx = s->ldx;
    const real *x = s->x;
    int alone = N < w->team, encoded = s->w->kind == Q8_0 || s->w->kind == Q4_0;
    void *inputs = alone ? w->inputs : t->inputs;
    if (s->norm || encoded) {
        span rows = alone ? (span){0, N} : part_of(w, N, 1);
        real *normed = alone ? w->normed : t->normed;
        if (s->norm) norm_rows(normed, s, rows, w->work), x = normed, ldx = D;
        if (encoded) stored_inputs(inputs, x, ldx, N, D, s->w->kind, rows.first, rows.past);
        if (!alone) meet(w);
    }
    if (s->activation == SWIGLU) {
        span e = part_of(w, s->w->E, 16);
        for (int i = 0; i < 2; i++) multiply_part(s, t, i, e, x, ldx, inputs);
    } else {
        idx before = 0, all = 0;                   /* units of 16 rows, of all matrices together */
        for (int i = 0; i < s->matrices; i++) all += (s->w[i].E + 15) / 16;
        span units = part_of(w, all, 1);
        for (int i = 0; i < s->matrices; i++) {
            idx E = s->w[i].E, own = (E + 15) / 16;
            span e = {16 * clip(units.first - before, own), least(16 * clip(units.past - before, own), E)};
            multiply_part(s, t, i, e, x, ldx, inputs);
            before += own;
        }
    }
    if (s->activation) {
        span e = part_of(w, s->w->E, 16);
        for (idx n = 0; n < N; n++) {
            const real *u = s->y[1] ? s->y[1] + n * s->ldy[1] + e.first : NULL;
            activate(s->to + n * s->ldto + e.first, s->y[0] + n * s->ldy[0] + e.first, u, s->activation,
                     e.past - e.first);
        }
    }
}

static void pick(const step *s, const worker *w) {
    const turn *t = w->t;
    span rows = part_of(w, t->M, 1);
    for (idx m = rows.first; m < rows.past; m++)
        memcpy(s->y[0] + m * s->ldy[0], s->x + t->wanted[m] * s->ldx, s->D * sizeof(real));
}

/* Rows of K numbers of a cache, of its kind, to y */
static void recall(real *restrict y, const void *rows, const float *scales, int kind, idx row, idx n, idx K) {
#if REAL == 32
    if (kind == FLOAT16) from_float16(y, (const half *)rows + row * K, n * K, 1);
    for (idx i = 0; kind == INT8 && i < n; i++) {
        const int8_t *restrict x = (const int8_t *)rows + (row + i) * K;
        for (idx k = 0; k < K; k++) y[i * K + k] = x[k] * scales[row + i];
    }
#endif
}

/* The inverse: x [K] becomes a row. */
static void keep(void *rows, float *scales, int kind, idx row, const real *restrict x, idx K) {
    if (kind == REALS) memcpy((real *)rows + row * K, x, K * sizeof(real));
#if REAL == 32
    if (kind == FLOAT16) to_float16((half *)rows + row * K, x, K, 1);
    if (kind == INT8) {
        int8_t *restrict y = (int8_t *)rows + row * K;
        real most = 0;
        for (idx k = 0; k < K; k++) most = FABS(x[k]) > most ? FABS(x[k]) : most;
        real scale = scales[row] = most / 127;
        for (idx k = 0; k < K; k++) y[k] = most > 0 ? rintf(x[k] / scale) : 0;
    }
#endif
}

/* y [K] of q [K] and the rows first .. past - 1 of a cache; work: LONG + 2 SHORT K numbers */
static void attend_to(real *y, const real *q, const kept *c, int kind, span rows, const char *mask, idx K,
                      real *work) {
    real *p = work, *k = p + LONG, *v = k + SHORT * K, top = -INFINITY, sum = 0, scale = 1 / SQRT(K);
    idx longest = kind == REALS ? LONG : SHORT;
    memset(y, 0, K * sizeof(real));
    for (idx s = rows.first; s < rows.past; s += longest) {
        idx n = least(rows.past - s, longest);
        if (kind == REALS) k = (real *)c->k + s * K, v = (real *)c->v + s * K;
        else {
            recall(k, c->k, c->k_scale, kind, s, n, K);
            recall(v, c->v, c->v_scale, kind, s, n, K);
        }
        score(p, q, (matrix){k, K, 1}, n, K, scale);
        for (idx i = 0; mask && i < n; i++) p[i] = mask[s - rows.first + i] ? p[i] : -INFINITY;
        take_in(y, p, (matrix){v, K, 1}, n, K, &top, &sum);
    }
    finish(y, K, top, sum);
}

/* A head's query or key at a position, with its norm and its rotation if it has them: x itself, or in
 * `to`, room for 2 K numbers */
static const real *turned(real *to, const real *x, const real *norm, idx place, const step *s,
                          const turn *t) {
    if (norm) rms_norm_row(to, x, norm, s->eps, s->K), x = to;
    if (!t->cos) return x;
    idx P = s->K / 2;
    rope_head(to + s->K, x, t->cos + place * P, t->sin + place * P, P, s->interleaved);
    return to + s->K;
}

static void attend_to_self(const step *s, const worker *w) {
    const turn *t = w->t;
    const kept *c = t->caches + s->layer;
    idx N = t->N, K = s->K, G = s->G, H = G * s->R;
    span items = part_of(w, N * G, 1);
    for (idx i = items.first; i < items.past; i++) {
        idx n = i / G, g = i % G, row = (t->owner[n] * G + g) * t->room + t->place[n];
        const real *k = s->x + n * s->ldx + (H + g) * K;
        keep(c->k, c->k_scale, t->kind, row, turned(w->work, k, s->k_norm, t->place[n], s, t), K);
        keep(c->v, c->v_scale, t->kind, row, k + G * K, K);
    }
    meet(w);                                       /* a row's keys may be another thread's */
    items = part_of(w, N * H, 1);
    for (idx i = items.first; i < items.past; i++) {
        idx h = i / N, n = i % N, place = t->place[n], row = (t->owner[n] * G + h / s->R) * t->room;
        const real *q = turned(w->work, s->x + n * s->ldx + h * K, s->q_norm, place, s, t);
        span seen = {row + most(0, place + 1 - s->window), row + place + 1};
        attend_to(s->y[0] + n * s->ldy[0] + h * K, q, c, t->kind, seen, NULL, K, w->work + 2 * K);
    }
}

static void attend_to_memory(const step *s, const worker *w) {
    const turn *t = w->t;
    idx N = t->N, K = s->K, H = s->G, S = t->S;
    span items = part_of(w, N * H, 1);
    for (idx i = items.first; i < items.past; i++) {
        idx h = i / N, n = i % N, source = t->source[t->owner[n]], row = (source * H + h) * S;
        attend_to(s->y[0] + n * s->ldy[0] + h * K, s->x + n * s->ldx + h * K, t->memory + s->layer, REALS,
                  (span){row, row + S}, t->mask + source * S, K, w->work);
    }
}

static void run(const step *s, const worker *w) {
    switch (s->kind) {
    case EMBED: embed(s, w); break;
    case NORM: normalize(s, w); break;
    case PRODUCT: multiply_all(s, w); break;
    case PICK: pick(s, w); break;
    case HEADS: attend_to_self(s, w); break;
    case CROSS: attend_to_memory(s, w); break;
    }
}

/* Numbers of a thread's work, cut as multiply_all() and attend_to_self() need it. */
static idx decode_work(idx widest, idx K, int threads) {
    idx norms = (1 + threads) * widest + 1, heads = 2 * K + LONG + 2 * SHORT * K;
    idx inputs = stored_work(threads, widest) / (idx)sizeof(real);
    return most((norms + 15) / 16 * 16 + (inputs + 15) / 16 * 16, heads) / 16 * 16 + 16;
}

static void decode(const step *steps, idx count, const turn *t, real *work, idx widest, idx K, int threads) {
    meeting others = {0, 0};
    idx each = decode_work(widest, K, threads);
    #pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num();
        worker w = {t, &others, me, omp_get_num_threads(), work + me * each, NULL, NULL};
        w.normed = w.work + widest + 1;
        w.inputs = w.work + ((1 + threads) * widest + 1 + 15) / 16 * 16;
        for (idx i = 0; i < count; i++) {
            run(steps + i, &w);
            if (i + 1 < count) meet(&w);
        }
    }
}
