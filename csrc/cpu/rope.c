/* See pyllama/ops/rope.py for the derivation.
 *
 * x is read where it lies: the next a, t and h are xa, xt and xh numbers away.  y is dense,
 * [A T H 2P], as a model has its heads: side by side at each position. */

/* A head: x [2P] -> y [2P], with the cosines and sines [P] of its position */
static inline void rope_head(number *restrict y, const number *restrict x, const real *restrict c,
                             const real *restrict s, idx P, int interleaved) {
    if (interleaved) {
        #pragma omp simd
        for (idx k = 0; k < P; k++) {
            const real first = get(x[2 * k]), second = get(x[2 * k + 1]);
            y[2 * k] = put(first * c[k] - second * s[k]);
            y[2 * k + 1] = put(first * s[k] + second * c[k]);
        }
    } else {
        #pragma omp simd
        for (idx k = 0; k < P; k++) {
            const real first = get(x[k]), second = get(x[P + k]);
            y[k] = put(first * c[k] - second * s[k]);
            y[P + k] = put(first * s[k] + second * c[k]);
        }
    }
}

static void rope(number *y, const number *x, const real *cos, const real *sin, idx A, idx T, idx H,
                 idx P, idx xa, idx xt, idx xh, int interleaved, int threads) {
    #pragma omp parallel for num_threads(threads) if (A * T * H * P > GRAIN)
    for (idx n = 0; n < A * T; n++) {
        idx a = n / T, t = n % T;
        for (idx h = 0; h < H; h++)
            rope_head(y + (n * H + h) * 2 * P, x + a * xa + t * xt + h * xh, cos + t * P, sin + t * P,
                      P, interleaved);
    }
}
