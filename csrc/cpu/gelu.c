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

static void gelu(real *restrict y, const real *restrict x, int tanh, idx n, int threads) {
    if (tanh) {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) y[i] = tanh_gelu_of(x[i]);
    } else {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) y[i] = gelu_of(x[i]);
    }
}

static void gelu_backward(real *restrict dx, const real *restrict dy, const real *restrict x,
                          int tanh, idx n, int threads) {
    if (tanh) {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) {
            real square = (real)0.044715 * x[i] * x[i];
            real s = SIGMOID(2 * ROOT_2_PI * x[i] * (1 + square));
            dx[i] = dy[i] * s * (1 + x[i] * (1 - s) * 2 * ROOT_2_PI * (1 + 3 * square));
        }
    } else {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) {
            real gauss, phi = PHI(x[i], &gauss);
            dx[i] = dy[i] * (phi + x[i] * gauss * (ROOT_2_PI / 2));
        }
    }
}
