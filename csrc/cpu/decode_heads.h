/* The heads of a plan: new keys and values into the cache, attention to those that are there.  A part of decode.c. */
#pragma once

enum { LONG = 1024, SHORT = 64, TOGETHER = 4 };

/* Numbers of work to attend in blocks: the op's, a strip of keys and values, the queries, and a rotation's */
static idx block_work(idx K) { return attention_work(0, K) + (2 * KEYS + QUERIES + 2) * K; }

/* Numbers of work for heads of one row or of a block */
static idx heads_work(idx K) { return most(block_work(K), 3 * K + LONG + 2 * SHORT * K); }

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

/* The same as a matrix; a product widens halves by itself. */
static stored recalled(real *y, const void *rows, const float *scales, int kind, idx row, idx n, idx K) {
    if (kind == FLOAT16) return (stored){kind, (const half *)rows + row * K, n, K};
    return (stored){REALS, recall(y, rows, scales, kind, row, n, K), n, K};
}

/* The inverse: x [K] becomes a row. */
static void keep(void *rows, float *scales, int kind, idx row, const real *restrict x, idx K) {
    if (kind == REALS) memcpy((real *)rows + row * K, x, K * sizeof(real));
#if REAL == 32
    if (kind == FLOAT16) halve((half *)rows + row * K, x, K);
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

/* y += Σ p[i] v[i] over n rows of V vectors, `down` bytes apart */
INLINE void add_vectors(int kind, int V, real *y, const real *p, const char *v, idx n, idx down) {
    vec sum[TOGETHER];
    UNROLL for (int j = 0; j < V; j++) sum[j] = *(const loose *)(y + j * LANES);
    for (idx i = 0; i < n; i++, v += down)
        UNROLL for (int j = 0; j < V; j++) sum[j] += p[i] * numbers(kind, v + j * LANES * size_of(kind));
    UNROLL for (int j = 0; j < V; j++) *(loose *)(y + j * LANES) = sum[j];
}

/* y [D] += p [E] v[E D], in the order of the rows of v */
INLINE void add_values_of(int kind, real *y, const real *p, const stored *v) {
    const idx n = v->E, K = v->D, size = size_of(kind);
    const char *at = v->at;
    idx k = 0;
    while (k + LANES <= K) {
        const int V = least((K - k) / LANES, TOGETHER);
#define ADD(V) add_vectors(kind, V, y + k, p, at + k * size, n, K * size)
        if (V == 1) ADD(1);
        else if (V == 2) ADD(2);
        else if (V == 3) ADD(3);
        else ADD(TOGETHER);
#undef ADD
        k += V * LANES;
    }
    if (k == K) return;
    vec rest = last_numbers(REALS, y + k, K - k);
    for (idx i = 0; i < n; i++) rest += p[i] * last_numbers(kind, at + (i * K + k) * size, K - k);
    memcpy(y + k, &rest, (K - k) * sizeof(real));
}

static void add_values(real *y, const real *p, const stored *v) {
    if (v->kind == REALS) add_values_of(REALS, y, p, v);
#if REAL == 32
    else add_values_of(FLOAT16, y, p, v);
#endif
}

/* y [K] of q [K] and the rows first .. past - 1 of a cache; work: LONG + (1 + 2 SHORT) K numbers */
static void attend_to(real *y, const real *q, const kept *c, int kind, span rows, const char *mask, idx K,
                      real *work) {
    real *p = work, *keys = p + LONG, *values = keys + SHORT * K, *scaled = values + SHORT * K;
    real top = -INFINITY, sum = 0;
    idx longest = kind == INT8 ? SHORT : LONG;
    for (idx j = 0; j < K; j++) scaled[j] = q[j] / SQRT(K), y[j] = 0;
    for (idx s = rows.first; s < rows.past; s += longest) {
        idx n = least(rows.past - s, longest);
        const stored k = recalled(keys, c->k, c->k_scale, kind, s, n, K);
        const stored v = recalled(values, c->v, c->v_scale, kind, s, n, K);
        stored_product(p, n, scaled, K, NULL, &k, 1, 0, n, 0, NULL);
        for (idx i = 0; mask && i < n; i++) p[i] = mask[s - rows.first + i] ? p[i] : -INFINITY;
        weigh(y, p, n, K, &top, &sum);
        add_values(y, p, &v);
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
