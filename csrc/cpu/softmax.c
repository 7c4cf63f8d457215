/* See pyllama/ops/softmax.py for the derivation. */
#pragma once

/* An exponential waits in y until the sum is known, but not rounded to a bfloat16: there it is computed again. */
#if REAL == 16
#define KEPT(y, e) (e)
#define AGAIN(y, e) (e)
#else
#define KEPT(y, e) (y = e)
#define AGAIN(y, e) (y)
#endif

/* The number to subtract before an exponential: the largest of x, or 0 if none is above -inf.  NaN
 * is passed over; it comes through in the sum. */
static inline real largest(const number *restrict x, idx D) {
    real m = -INFINITY;
    #pragma omp simd reduction(max : m)
    for (idx d = 0; d < D; d++) m = get(x[d]) > m ? get(x[d]) : m;
    return m > -INFINITY ? m : 0;
}

static void softmax(number *y, const number *x, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const number *restrict xn = x + n * D;
        number *restrict yn = y + n * D;
        real m = largest(xn, D), sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (idx d = 0; d < D; d++) sum += KEPT(yn[d], EXP(get(xn[d]) - m));
        real scale = sum == 0 ? 0 : 1 / sum;
        #pragma omp simd
        for (idx d = 0; d < D; d++) yn[d] = put(AGAIN(yn[d], EXP(get(xn[d]) - m)) * scale);
    }
}

static void softmax_backward(number *dx, const number *dy, const number *y, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const number *restrict yn = y + n * D, *restrict dyn = dy + n * D;
        number *restrict dxn = dx + n * D;
        real sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (idx d = 0; d < D; d++) sum += get(dyn[d]) * get(yn[d]);
        #pragma omp simd
        for (idx d = 0; d < D; d++) dxn[d] = put(get(yn[d]) * (get(dyn[d]) - sum));
    }
}
