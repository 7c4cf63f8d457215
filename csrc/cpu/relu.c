/* See pyllama/ops/relu.py for the derivation.  NaN is neither <= 0 nor > 0. */

static inline real relu_of(real x) { return x <= 0 ? 0 : x; }

static void relu(number *restrict y, const number *restrict x, idx n, int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) y[i] = put(relu_of(get(x[i])));
}

static void relu_backward(number *restrict dx, const number *restrict dy, const number *restrict x, idx n,
                          int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) dx[i] = get(x[i]) > 0 ? dy[i] : 0;
}
