/* See pyllama/ops/linear_cross_entropy.py for the derivation.
 *
 * (a) Chunk by chunk of C rows of x: their logits, and in place the logits' gradient when the sums of
 *     the softmax are known.
 * (b) Logits are held transposed, zᵀ[V C], and made a block of the vocabulary at a time: w is read
 *     where it lies, the softmax runs down columns while a block is in the second cache, and of z
 *     memory sees one write and one read.
 * (c) One exponential serves both: e^(z - high), high the column's highest of the block; the gradient
 *     multiplies it by e^(high - lse).
 * (d) The second time the blocks come in reverse, for the last ones are still in cache.
 */
enum { WORDS = 576 };                             /* rows of zᵀ */

typedef struct {                                   /* numbers of the C columns */
    real *high, *total;                            /* [blocks C]: highest logit, sum of the exponentials */
    real *sum, *target, *lse;                      /* [C]: of all logits, the one of t, log-sum-exp */
} columns;

static idx blocks_of(idx V) { return (V + WORDS - 1) / WORDS; }

/* Numbers of `z` for chunks of C rows. */
static idx linear_cross_entropy_work(idx C, idx V) { return C * (V + 2 * blocks_of(V) + 3); }

/* Logits to exponentials, of `rows` rows from v0 on and the columns first .. past - 1. */
static void exponentials(real *restrict z, columns of, idx v0, idx rows, idx C, idx first, idx past, const idx *t) {
    real *restrict high = of.high + v0 / WORDS * C, *restrict total = of.total + v0 / WORDS * C;
    real *restrict sum = of.sum;
    for (idx c = first; c < past; c++) {
        high[c] = -INFINITY, total[c] = 0;
        if (t[c] >= v0 && t[c] < v0 + rows) of.target[c] = z[(t[c] - v0) * C + c];
    }
    for (idx v = 0; v < rows; v++) {
        const real *restrict row = z + v * C;
        #pragma omp simd
        for (idx c = first; c < past; c++) {
            high[c] = row[c] > high[c] ? row[c] : high[c];
            sum[c] += row[c];
        }
    }
    for (idx v = 0; v < rows; v++) {
        real *restrict row = z + v * C;
        #pragma omp simd
        for (idx c = first; c < past; c++) {
            row[c] = DECAY(row[c] - (high[c] > -INFINITY ? high[c] : 0));
            total[c] += row[c];
        }
    }
}

/* The log-sum-exp of column c, and its loss; terms that cancel where the model is sure are added in double. */
static double column_loss(columns of, idx c, idx C, idx V, double smoothing, double z_loss) {
    real top = -INFINITY, total = 0;
    for (idx b = 0; b < blocks_of(V); b++) top = of.high[b * C + c] > top ? of.high[b * C + c] : top;
    for (idx b = 0; b < blocks_of(V); b++) total += of.total[b * C + c] * DECAY(of.high[b * C + c] - top);
    double lse = of.lse[c] = top + LOG(total), loss = lse - (1 - smoothing) * of.target[c] + z_loss * lse * lse;
    return smoothing == 0 ? loss : loss - smoothing * (of.sum[c] / V);     /* 0 times a logit of -inf would be NaN */
}

/* Exponentials to the gradient times scale, scaled last: where p is 1, what is subtracted leaves nothing. */
static void gradients(real *restrict z, columns of, idx v0, idx rows, idx C, idx first, idx past, const idx *t,
                      idx ignore_index, real smoothing, real z_loss, real scale, idx V) {
    real *restrict high = of.high + v0 / WORDS * C;
    const real even = smoothing / V;
    for (idx c = first; c < past; c++) high[c] = (1 + 2 * z_loss * of.lse[c]) * EXP(high[c] - of.lse[c]);
    for (idx v = 0; v < rows; v++) {
        real *restrict row = z + v * C;
        #pragma omp simd
        for (idx c = first; c < past; c++) row[c] = t[c] == ignore_index ? 0 : (row[c] * high[c] - even) * scale;
    }
    for (idx c = first; c < past; c++)
        if (t[c] != ignore_index && t[c] >= v0 && t[c] < v0 + rows) {
            real p = (1 + 2 * z_loss * of.lse[c]) * EXP(of.target[c] - of.lse[c]);
            z[(t[c] - v0) * C + c] = (p - even - (1 - smoothing)) * scale;
        }
}

/* The sum of the losses.  dx[N D] and dw[V D] are the gradients for dloss = 1, dw is added to if
 * accumulate.  z: linear_cross_entropy_work(chunk, V) numbers; work as gemm.c says. */
static double linear_cross_entropy(real *dx, real *dw, const real *x, const real *w, const idx *t,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx D, idx V, idx chunk, int accumulate, real *z,
                                   real *work, int threads) {
    double loss = 0;
    const idx last = (blocks_of(V) - 1) * WORDS;
    for (idx n0 = 0; n0 < N; n0 += chunk, t += chunk) {
        const idx C = N - n0 < chunk ? N - n0 : chunk, share = (C / LANES / threads + 1) * LANES;
        const real *rows = x + n0 * D;
        columns of = {z + C * V, z + C * (V + blocks_of(V))};
        of.sum = of.total + C * blocks_of(V), of.target = of.sum + C, of.lse = of.target + C;
        memset(of.sum, 0, 2 * C * sizeof(real));
        for (idx v0 = 0; v0 < V; v0 += WORDS) {
            idx wide = least(V - v0, WORDS);
            gemm(z + v0 * C, C, w + v0 * D, D, 1, rows, 1, D, wide, C, D, 0, work, threads);
            #pragma omp parallel for num_threads(threads) if (wide * C > GRAIN)
            for (idx c = 0; c < C; c += share) exponentials(z + v0 * C, of, v0, wide, C, c, least(c + share, C), t);
        }
        for (idx c = 0; c < C; c++) {
            double of_row = column_loss(of, c, C, V, smoothing, z_loss);
            loss += t[c] == ignore_index ? 0 : of_row;
        }
        for (idx v0 = last; v0 >= 0; v0 -= WORDS) {
            idx wide = least(V - v0, WORDS);
            #pragma omp parallel for num_threads(threads) if (wide * C > GRAIN)
            for (idx c = 0; c < C; c += share)
                gradients(z + v0 * C, of, v0, wide, C, c, least(c + share, C), t, ignore_index, smoothing, z_loss,
                          scale, V);
            gemm(dx + n0 * D, D, z + v0 * C, 1, C, w + v0 * D, D, 1, C, D, wide, v0 < last, work, threads);
            gemm(dw + v0 * D, D, z + v0 * C, C, 1, rows, D, 1, wide, D, C, accumulate || n0, work, threads);
        }
    }
    return loss;
}
