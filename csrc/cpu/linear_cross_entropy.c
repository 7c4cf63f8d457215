/* See pyllama/ops/linear_cross_entropy.py for the derivation.
 *
 * (a) Chunk by chunk of C rows of x: their logits, and in place the logits' gradient when the sums
 *     of the softmax are known.
 * (b) Logits are held transposed, zᵀ[V C], and made a block of the vocabulary at a time: w is read
 *     where it lies, and the softmax runs down columns while the block is in cache.
 * (c) One exponential serves both passes: e^(z - high), high the column's highest of the block; the
 *     gradient multiplies it by e^(high - lse).
 * (d) The second time the blocks come in reverse, because the last ones are still in cache.
 * (e) Logits and dx are reals, in bfloat16 too.  There a block of the logits' gradient is rounded, to be a factor of dx
 *     and dw, into room of its own: threads take columns, and one's numbers would lie over another's reals.
 * (f) In bfloat16 a block's logits are not kept but made again, because a product costs less than to write them to
 *     memory and to read them.  Chunks of more rows then have room, and the traffic of dw is less, too.
 */
enum { TOKENS = 576 };                             /* of a block: half a megabyte at C = 240 */

typedef struct {                                   /* of the columns */
    real *high, *total, *sum;                      /* [blocks C]: highest z, sums of e^(z - high), z */
    real *target, *lse;                            /* [C]: the target's logit, log-sum-exp */
} columns;

static idx blocks_of(idx V) { return (V + TOKENS - 1) / TOKENS; }

enum { AGAIN = REAL == 16, ROUNDED = AGAIN ? TOKENS / 2 : 0 };  /* see (f); reals of a column of a block's gradient */

static idx held(idx V) { return AGAIN ? TOKENS : V; }            /* logits of a row */

/* Reals of `z` for chunks of C rows. */
static idx linear_cross_entropy_work(idx C, idx V) { return C * (ROUNDED + held(V) + 3 * blocks_of(V) + 2); }

static columns columns_of(real *work, idx C, idx V) {
    const idx each = C * blocks_of(V);
    return (columns){work, work + each, work + 2 * each, work + 3 * each, work + 3 * each + C};
}

/* The arguments of a block's pass: its first token and their number, some columns, and the whole. */
typedef struct {
    idx v0, tokens, first, past, C, V;
    const idx *t;
    idx ignore_index;
    real smoothing, z_loss, scale;
} pass;

/* Logits to exponentials. */
static void exponentials(real *restrict z, columns of, pass p) {
    const idx C = p.C, block = p.v0 / TOKENS * C;
    real *restrict high = of.high + block, *restrict total = of.total + block;
    real *restrict sum = of.sum + block;
    for (idx c = p.first; c < p.past; c++) {
        const idx row = p.t[c] - p.v0;
        high[c] = -INFINITY, total[c] = sum[c] = 0;
        if (row >= 0 && row < p.tokens) of.target[c] = z[row * C + c];
    }
    for (idx v = 0; v < p.tokens; v++) {
        const real *restrict zv = z + v * C;
        #pragma omp simd
        for (idx c = p.first; c < p.past; c++) {
            high[c] = zv[c] > high[c] ? zv[c] : high[c];
            sum[c] += zv[c];
        }
    }
    for (idx v = 0; v < p.tokens; v++) {
        real *restrict zv = z + v * C;
        #pragma omp simd
        for (idx c = p.first; c < p.past; c++) {
            zv[c] = DECAY(zv[c] - (high[c] > -INFINITY ? high[c] : 0));
            total[c] += zv[c];
        }
    }
}

/* The loss of column c, and its log-sum-exp.  Terms that cancel where the model is sure are added
 * in double. */
static double column_loss(columns of, idx c, idx C, idx V, double smoothing, double z_loss) {
    real top = -INFINITY;
    double total = 0, sum = 0;
    for (idx i = c; i < C * blocks_of(V); i += C) top = of.high[i] > top ? of.high[i] : top;
    const real base = top > -INFINITY ? top : 0;
    for (idx i = c; i < C * blocks_of(V); i += C) {
        total += of.total[i] * DECAY(of.high[i] - base);
        sum += of.sum[i];
    }
    const double lse = of.lse[c] = base + LOG(total == 0 ? 1 : (real)total);
    const double loss = lse - (1 - smoothing) * of.target[c] + z_loss * lse * lse;
    return smoothing == 0 ? loss : loss - smoothing * (sum / V);   /* 0 times -inf would be NaN */
}

/* Exponentials to the gradient dz times scale, scaled last: where p is 1, the difference
 * is then exactly 0.  dz may be z. */
static void gradients(number *dz, const real *z, columns of, pass p) {
    const idx C = p.C;
    const real even = p.smoothing / p.V;
    real *restrict factor = of.high + p.v0 / TOKENS * C;
    for (idx c = p.first; c < p.past; c++)
        factor[c] = (1 + 2 * p.z_loss * of.lse[c]) * EXP(factor[c] - of.lse[c]);
    for (idx v = 0; v < p.tokens; v++) {
        const real *zv = z + v * C;
        number *dzv = dz + v * C;
        #pragma omp simd
        for (idx c = p.first; c < p.past; c++)
            dzv[c] = p.t[c] == p.ignore_index ? 0 : put((zv[c] * factor[c] - even) * p.scale);
    }
    for (idx c = p.first; c < p.past; c++) {
        const idx row = p.t[c] - p.v0;
        if (p.t[c] == p.ignore_index || row < 0 || row >= p.tokens) continue;
        real slope = (1 + 2 * p.z_loss * of.lse[c]) * EXP(of.target[c] - of.lse[c]);
        dz[row * C + c] = put((slope - even - (1 - p.smoothing)) * p.scale);
    }
}

/* A block of zᵀ, as exponentials: of w [tokens D] and x [C D] */
static void make_block(real *block, const number *x, const number *w, idx D, columns of, pass p, real *work,
                       int threads) {
    const idx C = p.C, share = share_of(C, LANES, threads);
    gemm(block, C, w, D, 1, x, 1, D, p.tokens, C, D, 0, work, threads);
    #pragma omp parallel for firstprivate(p) num_threads(threads) if (p.tokens * C > GRAIN)
    for (idx c = 0; c < C; c += share) {
        p.first = c, p.past = least(c + share, C);
        exponentials(block, of, p);
    }
}

/* The sum of the losses, and the gradients for dloss = 1: dx[N D]; that of w is added to dw[V D], if not NULL.
 * z: linear_cross_entropy_work(chunk, V) reals; work as gemm() says. */
static double linear_cross_entropy(real *dx, real *dw, const number *x, const number *w, const idx *t,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx D, idx V, idx chunk, real *z, real *work,
                                   int threads) {
    double loss = 0;
    const idx last = (blocks_of(V) - 1) * TOKENS;
    for (idx n0 = 0; n0 < N; n0 += chunk) {
        const number *xs = x + n0 * D;
        const idx C = least(N - n0, chunk), share = share_of(C, LANES, threads);
        number *rounded = (number *)z;
        real *logits = z + C * ROUNDED;
        const columns of = columns_of(logits + C * held(V), C, V);
        pass p = {.C = C, .V = V, .t = t + n0, .ignore_index = ignore_index,
                  .smoothing = smoothing, .z_loss = z_loss, .scale = scale};
        for (idx v0 = 0; v0 < V; v0 += TOKENS) {
            p.v0 = v0, p.tokens = least(V - v0, TOKENS);
            make_block(logits + (AGAIN ? 0 : v0 * C), xs, w + v0 * D, D, of, p, work, threads);
        }
        for (idx c = 0; c < C; c++) {
            double of_row = column_loss(of, c, C, V, smoothing, z_loss);
            loss += p.t[c] == ignore_index ? 0 : of_row;
        }
        for (idx v0 = last; v0 >= 0; v0 -= TOKENS) {
            real *block = logits + (AGAIN ? 0 : v0 * C);
            number *dz = ROUNDED ? rounded : (number *)block;
            p.v0 = v0, p.tokens = least(V - v0, TOKENS);
            if (AGAIN && v0 < last) make_block(block, xs, w + v0 * D, D, of, p, work, threads);
            #pragma omp parallel for firstprivate(p) num_threads(threads) if (p.tokens * C > GRAIN)
            for (idx c = 0; c < C; c += share) {
                p.first = c, p.past = least(c + share, C);
                gradients(dz, block, of, p);
            }
            gemm(dx + n0 * D, D, dz, 1, C, w + v0 * D, D, 1, C, D, p.tokens, v0 < last, work,
                 threads);
            if (dw) gemm(dw + v0 * D, D, dz, C, 1, xs, D, 1, p.tokens, D, C, 1, work, threads);
        }
    }
    return loss;
}
