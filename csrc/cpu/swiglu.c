/* See pyllama/ops/swiglu.py for the derivation. */

static inline real swiglu_of(real g, real u) { return g * SIGMOID(g) * u; }

static void swiglu(number *restrict y, const number *restrict g, const number *restrict u, idx n,
                   int threads) {
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx start = 0; start < n; start += CHUNK) {
        const idx end = chunk_end(start, n);
        FETCH(y), FETCH(g), FETCH(u);
        #pragma omp simd
        for (idx i = start; i < end; i++) y[i] = put(swiglu_of(get(g[i]), get(u[i])));
    }
}

static void swiglu_backward(number *restrict dg, number *restrict du, const number *restrict dy,
                            const number *restrict g, const number *restrict u, idx n, int threads) {
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx start = 0; start < n; start += CHUNK) {
        const idx end = chunk_end(start, n);
        FETCH(dg), FETCH(du), FETCH(dy), FETCH(g), FETCH(u);
        #pragma omp simd
        for (idx i = start; i < end; i++) {
            const real gi = get(g[i]), s = SIGMOID(gi);
            dg[i] = put(get(dy[i]) * get(u[i]) * s * (1 + gi * (1 - s)));
            du[i] = put(get(dy[i]) * gi * s);
        }
    }
}
