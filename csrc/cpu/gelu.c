/* See pyllama/ops/gelu.py for the derivation.
 *
 * Written with t = tanh u the approximation would lose its lower tail, where 1 + t cancels;
 * (1 + t) / 2 = sigma(2u) does not, and (1 - t^2) / 4 is sigma's own slope. */
static const real ROOT_2_PI = 0.79788456080286535588;           /* sqrt(2 / pi) */

static inline real tanh_gelu_of(real x) {
    return x * SIGMOID(2 * ROOT_2_PI * (x + (real)0.044715 * x * x * x));
}

static inline real gelu_of(real x) {
    real gauss;
    return x * PHI(x, &gauss);
}

static void gelu(number *restrict y, const number *restrict x, int tanh, idx n, int threads) {
    if (tanh) {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) y[i] = put(tanh_gelu_of(get(x[i])));
    } else {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) y[i] = put(gelu_of(get(x[i])));
    }
}

static void gelu_backward(number *restrict dx, const number *restrict dy, const number *restrict x,
                          int tanh, idx n, int threads) {
    if (tanh) {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) {
            const real xi = get(x[i]), square = (real)0.044715 * xi * xi;
            const real s = SIGMOID(2 * ROOT_2_PI * xi * (1 + square));
            dx[i] = put(get(dy[i]) * s * (1 + xi * (1 - s) * 2 * ROOT_2_PI * (1 + 3 * square)));
        }
    } else {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) {
            const real xi = get(x[i]);
            real gauss, phi = PHI(xi, &gauss);
            dx[i] = put(get(dy[i]) * (phi + xi * gauss * (ROOT_2_PI / 2)));
        }
    }
}
