/* See pyllama/ops/cross_entropy.py for the derivation. */
#include "softmax.c"                               /* largest */

/* The loss of the row of logits z with the target t, and its log-sum-exp.  Terms that cancel where the
 * model is sure are added in double. */
static inline real row_loss(const number *restrict z, idx V, idx t, double smoothing, double z_loss,
                            real *lse) {
    real m = largest(z, V), sum = 0, mean = 0;
    #pragma omp simd reduction(+ : sum)
    for (idx v = 0; v < V; v++) sum += EXP(get(z[v]) - m);
    *lse = m + LOG(sum == 0 ? 1 : sum);
    double loss = *lse - (1 - smoothing) * get(z[t]) + z_loss * *lse * *lse;
    if (smoothing == 0) return loss;               /* 0 times a logit of -inf would be NaN */
    #pragma omp simd reduction(+ : mean)
    for (idx v = 0; v < V; v++) mean += get(z[v]);
    return loss - smoothing * (mean / V);
}

/* Its gradient times scale; dz may be z.  Scaled last: where p is 1, the difference is then
 * exactly 0. */
static inline void row_gradient(number *dz, const number *z, idx V, idx t, real lse, real smoothing,
                                real z_loss, real scale) {
    real slope = 1 + 2 * z_loss * lse, even = smoothing / V, target = slope * EXP(get(z[t]) - lse) - even;
    #pragma omp simd
    for (idx v = 0; v < V; v++) dz[v] = put((slope * EXP(get(z[v]) - lse) - even) * scale);
    dz[t] = put((target - (1 - smoothing)) * scale);
}

/* The sum of the rows' losses, in double and in their order. */
static double cross_entropy(real *lse, real *loss, const number *z, const idx *t, idx ignore_index,
                            double smoothing, double z_loss, idx N, idx V, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * V > GRAIN)
    for (idx n = 0; n < N; n++) {
        int counts = t[n] != ignore_index;
        real l = row_loss(z + n * V, V, counts ? t[n] : 0, smoothing, z_loss, lse + n);
        loss[n] = counts ? l : 0;
    }
    double sum = 0;
    for (idx n = 0; n < N; n++) sum += loss[n];
    return sum;
}

static void cross_entropy_backward(number *dz, const number *z, const idx *t, const real *lse,
                                   idx ignore_index, double smoothing, double z_loss,
                                   double scale, idx N, idx V, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * V > GRAIN)
    for (idx n = 0; n < N; n++) {
        number *dzn = dz + n * V;
        if (t[n] == ignore_index) memset(dzn, 0, V * sizeof(number));
        else row_gradient(dzn, z + n * V, V, t[n], lse[n], smoothing, z_loss, scale);
    }
}
