/* See pyllama/ops/add_rms_norm.py for the derivation.  A row is in cache from its first loop on. */

static void add_rms_norm(real *s, real *y, real *r, const real *x, const real *a, const real *w,
                         double eps, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const real *restrict xn = x + n * D, *restrict an = a + n * D;
        real *restrict sn = s + n * D;
        #pragma omp simd
        for (idx d = 0; d < D; d++) sn[d] = xn[d] + an[d];
        r[n] = rms_norm_row(y + n * D, sn, w, eps, D);
    }
}

static void add_rms_norm_backward(real *dx, real *dw, real *parts, const real *ds, const real *dy,
                                  const real *s, const real *w, const real *r, idx N, idx D,
                                  int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx b = 0; b < BLOCKS; b++) {
        real *part = memset(parts + b * D, 0, D * sizeof(real));
        for (idx n = first_row(b, N); n < first_row(b + 1, N); n++) {
            const real *restrict dsn = ds + n * D;
            real *restrict dxn = dx + n * D;
            rms_norm_row_backward(dxn, part, dy + n * D, s + n * D, w, r[n], D);
            #pragma omp simd
            for (idx d = 0; d < D; d++) dxn[d] += dsn[d];
        }
    }
    add_parts(dw, parts, D);
}
