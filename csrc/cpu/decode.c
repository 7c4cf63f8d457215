/* A token's way through a decoder: the steps of a plan.  See pyllama/decode/plan.py for what a step
 * computes, and team.c for the threads.
 *
 * (a) A step has one or two phases, and a phase items: rows of x, a head of a row or of a block of rows,
 *     or 16 rows of matrices.  Each is computed by one thread, so no result depends on how many there
 *     are.  (Of many rows of x, 48 rows of a matrix are an item: a whole number of gemm.c's tiles.)
 * (b) If one row comes alone, each thread norms it for itself: another phase would take longer.  So it
 *     would for attention: where a thread has as many groups of heads as the others, it computes their
 *     queries, keys and values, and attends.
 * (c) Of at most SAME_BITS rows each is computed as if it came alone, so that its bits do not depend on
 *     its company.
 * (d) Of more, those of a sequence attend in blocks, by the tiles of attention.c.  There a key or value
 *     that is not finite may reach queries nearby that do not see it.
 * (e) A turn with a choice goes through the steps for one token after the other: each thread keeps the
 *     highest of the scores that it computed, and a last phase takes the highest of these.
 */
#include "decode_heads.h"
#include "team.h"

enum { SOON = 16384 };                             /* bytes that a thread requests while it waits */

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
    idx count;
    turn *t;
    place shared;
    real *work;
    idx widest, each, blocks;
    int threads;
} program;

typedef struct {                                   /* of a thread */
    idx ready;                                     /* the phase whose norm and inputs are in its room */
    idx best;                                      /* of the scores it computed, the place of the highest */
    real top;
    int finite;
} note;

typedef struct {                                   /* a thread's own room */
    note *note;
    real *rest, *heads;
    place own;
} desk;

static idx rows_of(const step *s, const turn *t) { return s->wanted ? t->M : t->N; }

static idx up(idx n) { return (n + 15) / 16 * 16; }

/* Numbers of a thread's work for products */
static idx product_work(idx widest) {
    return up(widest + 1) + up(widest) + up(2 * stored_work(1, widest) / sizeof(real) + 1);
}

/* Numbers of a thread's work */
static idx decode_work(idx widest, idx K) {
    return 16 + most(product_work(widest) + up(heads_work(K)), up(WORK));
}

static desk desk_of(const program *p, int me) {
    real *work = p->work + me * p->each, *rest = work + 16, *normed = rest + up(p->widest + 1);
    return (desk){(note *)work, rest, rest + product_work(p->widest),
                  place_in(normed, normed + up(p->widest), 1, p->widest)};
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

static void heads_items(const program *p, const step *s, span items, int me) {
    const turn *t = p->t;
    real *work = desk_of(p, me).heads;
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

/* Does the product compute queries, keys and values of one row, so that a group of heads can attend as soon as its
 * own are there?  Each thread takes as many groups. */
static int is_joined(const program *p, const step *s) {
    const step *heads = s + 1;
    if (p->t->N > 1 || s->kind != PRODUCT || s->matrices != 3 || s + 1 == p->steps + p->count) return 0;
    if (heads->kind != HEADS || heads->K % 16 || heads->G % p->threads || has_kind(s, TURNED)) return 0;
    return s->w[0].E == heads->G * heads->R * heads->K && s->w[1].E == heads->G * heads->K;
}

static void join_groups(const program *p, const step *s, span groups, place from, int me) {
    const step *heads = s + 1;
    const turn *t = p->t;
    const idx K = heads->K, R = heads->R;
    real *work = desk_of(p, me).heads;
    for (idx g = groups.first; g < groups.past; g++) {
        multiply_columns(s, t, 0, (span){g * R * K, (g + 1) * R * K}, from, NULL);
        for (int i = 1; i < 3; i++) multiply_columns(s, t, i, (span){g * K, (g + 1) * K}, from, NULL);
        keep_row(heads, t, 0, (span){g, g + 1}, work);
        for (idx h = g * R; h < (g + 1) * R; h++) attend_head(heads, t, 0, h, work);
    }
}

/* The highest of the scores that this thread has computed; of equal ones the first */
static void compare_some(note *n, const real *scores, span tokens) {
    real top = -INFINITY;
    int odd = 0;
    #pragma omp simd reduction(max : top) reduction(| : odd)
    for (idx e = tokens.first; e < tokens.past; e++) {
        top = scores[e] > top ? scores[e] : top;
        odd |= !(scores[e] < INFINITY);            /* NaN, too */
    }
    n->finite &= !odd;
    if (top < n->top) return;
    idx e = tokens.first;
    while (e < tokens.past && scores[e] != top) e++;
    if (top > n->top || e < n->best) n->top = top, n->best = e;
}

/* Some at a time: only among those with a new highest is its place looked for, one by one. */
static void compare(note *n, const real *scores, span tokens) {
    enum { SOME = 256 };
    for (idx e = tokens.first; e < tokens.past; e += SOME)
        compare_some(n, scores, (span){e, least(e + SOME, tokens.past)});
}

static void clear(const program *p) {
    for (int me = 0; me < p->threads; me++) *desk_of(p, me).note = (note){-1, 0, -INFINITY, 1};
}

/* Appends the most likely token, and makes it the next row.  What is not finite has no order: nothing is chosen. */
static void choose(const program *p) {
    choice *c = p->t->choice;
    note best = *desk_of(p, 0).note;
    for (int me = 1; me < p->threads; me++) {
        note n = *desk_of(p, me).note;
        best.finite &= n.finite;
        if (n.top > best.top || (n.top == best.top && n.best < best.best)) best.top = n.top, best.best = n.best;
    }
    clear(p);
    c->over = !best.finite || best.top == -INFINITY;
    if (c->over) return;
    c->ids[c->count++] = p->t->ids[0] = best.best;
    p->t->place[0]++;
    for (idx i = 0; i < c->ends; i++) c->over |= best.best == c->end[i];
}

static void multiply_items(const program *p, const step *s, int phase, span items, int me) {
    const turn *t = p->t;
    desk d = desk_of(p, me);
    int alone = rows_of(s, t) == 1;
    if (alone && d.note->ready != phase) {
        prepare(s, 1, (span){0, 1}, d.own, d.rest);
        d.note->ready = phase;
    }
    if (is_joined(p, s)) {
        join_groups(p, s, items, d.own, me);
        return;
    }
    multiply_units(s, t, items, alone ? d.own : p->shared, d.rest);
    if (t->choice && !s->y[0])
        compare(d.note, t->scores, (span){least(16 * items.first, t->choice->V), least(16 * items.past, t->choice->V)});
}

/* The items of a phase.  Step i has the phases 2 i, which is often left out, and 2 i + 1; after the steps comes the
 * choice of the next token, and then they begin again. */
static idx items_of(const job *j, int phase) {
    const program *p = (const program *)j;
    const int each = 2 * p->count + 1, own = phase % each;
    const step *s = p->steps + own / 2;
    const turn *t = p->t;
    if (t->choice && t->choice->over) return 0;
    if (own == each - 1) return t->choice != NULL;
    idx N = rows_of(s, t);
    if (!N || (s->kind == HEADS && own > 1 && is_joined(p, s - 1))) return 0;
    if (own % 2) {
        if (s->kind == PRODUCT) return is_joined(p, s) ? s[1].G : product_items(s, N);
        return s->kind >= HEADS ? p->blocks * s->G * s->R : N;
    }
    if (s->kind == HEADS) return at_once(s, t) ? 0 : N;
    return s->kind == PRODUCT && N > 1 && prepares(s) ? N : 0;
}

static void run_items(const job *j, int phase, idx first, idx past, int me) {
    const program *p = (const program *)j;
    const int each = 2 * p->count + 1, own = phase % each;
    const step *s = p->steps + own / 2;
    const turn *t = p->t;
    span items = {first, past};
    if (own == each - 1) {
        choose(p);
        return;
    }
    switch (s->kind) {
    case EMBED: embed(s, t, items); break;
    case NORM: norm_rows(s->y[0], s, items, desk_of(p, me).rest); break;
    case PICK: pick(s, t, items); break;
    case HEADS: case CROSS:
        if (own % 2) heads_items(p, s, items, me);
        else keep_rows(s, t, items, desk_of(p, me).heads);
        break;
    case PRODUCT:
        if (own % 2) multiply_items(p, s, phase, items, me);
        else prepare(s, rows_of(s, t), items, p->shared, desk_of(p, me).rest);
    }
}

/* The first rows of the next matrix that are a thread's */
static stretch soon(const job *j, int phase, int team, int me) {
    const program *p = (const program *)j;
    const step *s = p->steps + phase % (2 * p->count + 1) / 2, *past = p->steps + p->count;
    if (p->t->N > 1) return (stretch){NULL, 0};
    do s = s + 1 < past ? s + 1 : p->steps;
    while (s->kind != PRODUCT);
    const idx unit = units_of(s->w, 16) * me / team;
    return (stretch){(const char *)s->w->at + stored_bytes(s->w, 16 * unit), SOON};
}

static void decode(const step *steps, idx count, turn *t, real *work, idx widest, idx K, int threads) {
    const idx tokens = t->choice ? t->choice->most : 1;
    program p = {{tokens * (2 * count + 1), items_of, run_items, soon}, steps, count, t,
                 place_in(t->normed, t->inputs, t->rows, widest), work, widest, decode_work(widest, K),
                 cut_into_blocks(t), threads};
    clear(&p);
    team_run(&p.job, threads);
}
