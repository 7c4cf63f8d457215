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
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx start = 0; start < n; start += CHUNK) {
        const idx end = chunk_end(start, n);
        FETCH(y), FETCH(x);
        if (tanh) {
            #pragma omp simd
            for (idx i = start; i < end; i++) y[i] = put(tanh_gelu_of(get(x[i])));
        } else {
            #pragma omp simd
            for (idx i = start; i < end; i++) y[i] = put(gelu_of(get(x[i])));
        }
    }
}

static inline real tanh_gelu_gradient(real dy, real x) {
    const real square = (real)0.044715 * x * x, s = SIGMOID(2 * ROOT_2_PI * x * (1 + square));
    return dy * s * (1 + x * (1 - s) * 2 * ROOT_2_PI * (1 + 3 * square));
}

static inline real gelu_gradient(real dy, real x) {
    real gauss, phi = PHI(x, &gauss);
    return dy * (phi + x * gauss * (ROOT_2_PI / 2));
}

static void gelu_backward(number *restrict dx, const number *restrict dy, const number *restrict x,
                          int tanh, idx n, int threads) {
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx start = 0; start < n; start += CHUNK) {
        const idx end = chunk_end(start, n);
        FETCH(dx), FETCH(dy), FETCH(x);
        if (tanh) {
            #pragma omp simd
            for (idx i = start; i < end; i++) dx[i] = put(tanh_gelu_gradient(get(dy[i]), get(x[i])));
        } else {
            #pragma omp simd
            for (idx i = start; i < end; i++) dx[i] = put(gelu_gradient(get(dy[i]), get(x[i])));
        }
    }
}
