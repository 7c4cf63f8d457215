/* See pyllama/ops/rope.py for the derivation.
 *
 * x is read where it lies: the next a, t and h are xa, xt and xh numbers away.  y is dense,
 * [A T H 2P], as a model has its heads: side by side at each position. */

/* A head: x [2P] -> y [2P], with the cosines and sines [P] of its position */
static inline void rope_head(real *restrict y, const real *restrict x, const real *restrict c,
                             const real *restrict s, idx P, int interleaved) {
    if (interleaved) {
        #pragma omp simd
        for (idx k = 0; k < P; k++) {
            y[2 * k] = x[2 * k] * c[k] - x[2 * k + 1] * s[k];
            y[2 * k + 1] = x[2 * k] * s[k] + x[2 * k + 1] * c[k];
        }
    } else {
        #pragma omp simd
        for (idx k = 0; k < P; k++) {
            y[k] = x[k] * c[k] - x[P + k] * s[k];
            y[P + k] = x[k] * s[k] + x[P + k] * c[k];
        }
    }
}

static void rope(real *y, const real *x, const real *cos, const real *sin, idx A, idx T, idx H,
                 idx P, idx xa, idx xt, idx xh, int interleaved, int threads) {
    #pragma omp parallel for num_threads(threads) if (A * T * H * P > GRAIN)
    for (idx n = 0; n < A * T; n++) {
        idx a = n / T, t = n % T;
        for (idx h = 0; h < H; h++)
            rope_head(y + (n * H + h) * 2 * P, x + a * xa + t * xt + h * xh, cos + t * P, sin + t * P,
                      P, interleaved);
    }
}
