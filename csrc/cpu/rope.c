/* See pyllama/ops/rope.py for the derivation.
 *
 * x is read where it lies: the next a, t and h are xa, xt and xh numbers away.  y is dense,
 * [A T H 2P], as a model has its heads: side by side at each position. */

static void rope(real *y, const real *x, const real *cos, const real *sin, idx A, idx T, idx H,
                 idx P, idx xa, idx xt, idx xh, int interleaved, int threads) {
    #pragma omp parallel for num_threads(threads) if (A * T * H * P > GRAIN)
    for (idx n = 0; n < A * T; n++) {
        idx a = n / T, t = n % T;
        const real *restrict c = cos + t * P, *restrict s = sin + t * P;
        for (idx h = 0; h < H; h++) {
            const real *restrict xn = x + a * xa + t * xt + h * xh;
            real *restrict yn = y + (n * H + h) * 2 * P;
            if (interleaved) {
                #pragma omp simd
                for (idx k = 0; k < P; k++) {
                    yn[2 * k] = xn[2 * k] * c[k] - xn[2 * k + 1] * s[k];
                    yn[2 * k + 1] = xn[2 * k] * s[k] + xn[2 * k + 1] * c[k];
                }
            } else {
                #pragma omp simd
                for (idx k = 0; k < P; k++) {
                    yn[k] = xn[k] * c[k] - xn[P + k] * s[k];
                    yn[P + k] = xn[k] * s[k] + xn[P + k] * c[k];
                }
            }
        }
    }
}
