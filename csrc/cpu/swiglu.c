/* See pyllama/ops/swiglu.py for the derivation. */

static inline real swiglu_of(real g, real u) { return g * SIGMOID(g) * u; }

static void swiglu(number *restrict y, const number *restrict g, const number *restrict u, idx n,
                   int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) y[i] = put(swiglu_of(get(g[i]), get(u[i])));
}

static void swiglu_backward(number *restrict dg, number *restrict du, const number *restrict dy,
                            const number *restrict g, const number *restrict u, idx n, int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) {
        const real gi = get(g[i]), s = SIGMOID(gi);
        dg[i] = put(get(dy[i]) * get(u[i]) * s * (1 + gi * (1 - s)));
        du[i] = put(get(dy[i]) * gi * s);
    }
}
