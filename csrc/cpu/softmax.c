/* See pyllama/ops/softmax.py for the derivation. */
#pragma once

/* The number to subtract before an exponential: the largest of x, or 0 if none is above -inf.  NaN
 * is passed over; it comes through in the sum. */
static inline real largest(const real *restrict x, idx D) {
    real m = -INFINITY;
    #pragma omp simd reduction(max : m)
    for (idx d = 0; d < D; d++) m = x[d] > m ? x[d] : m;
    return m > -INFINITY ? m : 0;
}

static void softmax(real *y, const real *x, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const real *restrict xn = x + n * D;
        real *restrict yn = y + n * D, m = largest(xn, D), sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (idx d = 0; d < D; d++) sum += yn[d] = EXP(xn[d] - m);
        real scale = sum == 0 ? 0 : 1 / sum;
        #pragma omp simd
        for (idx d = 0; d < D; d++) yn[d] *= scale;
    }
}

static void softmax_backward(real *dx, const real *dy, const real *y, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const real *restrict yn = y + n * D, *restrict dyn = dy + n * D;
        real *restrict dxn = dx + n * D, sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (idx d = 0; d < D; d++) sum += dyn[d] * yn[d];
        #pragma omp simd
        for (idx d = 0; d < D; d++) dxn[d] = yn[d] * (dyn[d] - sum);
    }
}
