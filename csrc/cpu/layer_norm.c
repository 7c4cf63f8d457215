/* See pyllama/ops/layer_norm.py for the derivation.
 *
 * g waits in dx, rounded: multiplied out again in g - mean(g), it might not be (a compiler may fuse
 * the two), and then a row of one column would not give 0. */

/* Normalizes a row, to n and y; returns its r. */
static inline real layer_norm_row(real *restrict y, real *restrict n, const real *restrict x,
                                  const real *restrict w, const real *restrict b, real eps, idx D) {
    real sum = 0, squares = 0;
    #pragma omp simd reduction(+ : sum)
    for (idx d = 0; d < D; d++) sum += x[d];
    real mean = sum / D;
    #pragma omp simd reduction(+ : squares)
    for (idx d = 0; d < D; d++) squares += (x[d] - mean) * (x[d] - mean);
    real r = 1 / SQRT(squares / D + eps);
    #pragma omp simd
    for (idx d = 0; d < D; d++) {
        n[d] = (x[d] - mean) * r;
        y[d] = w[d] * n[d] + b[d];
    }
    return r;
}

static void layer_norm(real *y, real *n, real *r, const real *x, const real *w, const real *b,
                       double eps, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx i = 0; i < N; i++)
        r[i] = layer_norm_row(y + i * D, n + i * D, x + i * D, w, b, eps, D);
}

static void layer_norm_backward(real *dx, real *dw, real *db, real *parts, const real *dy,
                                const real *n, const real *w, const real *r, idx N, idx D,
                                int threads) {
    real *dw_parts = parts, *db_parts = parts + BLOCKS * D;
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx b = 0; b < BLOCKS; b++) {
        real *restrict dwb = memset(dw_parts + b * D, 0, D * sizeof(real));
        real *restrict dbb = memset(db_parts + b * D, 0, D * sizeof(real));
        for (idx i = first_row(b, N); i < first_row(b + 1, N); i++) {
            const real *restrict ni = n + i * D, *restrict dyi = dy + i * D;
            real *restrict dxi = dx + i * D, g = 0, gn = 0;
            #pragma omp simd reduction(+ : g, gn)
            for (idx d = 0; d < D; d++) {
                dxi[d] = w[d] * dyi[d];
                g += dxi[d];
                gn += dxi[d] * ni[d];
            }
            g /= D, gn /= D;
            #pragma omp simd
            for (idx d = 0; d < D; d++) {
                dxi[d] = r[i] * (dxi[d] - g - ni[d] * gn);
                dwb[d] += dyi[d] * ni[d];
                dbb[d] += dyi[d];
            }
        }
    }
    add_parts(dw, dw_parts, D);
    add_parts(db, db_parts, D);
}
