/* See pyllama/ops/swiglu.py for the derivation. */

static inline real swiglu_of(real g, real u) { return g * SIGMOID(g) * u; }

static void swiglu(real *restrict y, const real *restrict g, const real *restrict u, idx n,
                   int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) y[i] = swiglu_of(g[i], u[i]);
}

static void swiglu_backward(real *restrict dg, real *restrict du, const real *restrict dy,
                            const real *restrict g, const real *restrict u, idx n, int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) {
        real s = SIGMOID(g[i]);
        dg[i] = dy[i] * u[i] * s * (1 + g[i] * (1 - s));
        du[i] = dy[i] * g[i] * s;
    }
}
