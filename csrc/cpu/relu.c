/* See pyllama/ops/relu.py for the derivation.  NaN is neither <= 0 nor > 0. */

static inline real relu_of(real x) { return x <= 0 ? 0 : x; }

static void relu(real *restrict y, const real *restrict x, idx n, int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) y[i] = relu_of(x[i]);
}

static void relu_backward(real *restrict dx, const real *restrict dy, const real *restrict x, idx n,
                          int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) dx[i] = x[i] > 0 ? dy[i] : 0;
}
