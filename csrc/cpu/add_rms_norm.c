/* See pyllama/ops/add_rms_norm.py for the derivation.  A row is in cache from its first loop on. */

static void add_rms_norm(number *s, number *y, real *r, const number *x, const number *a, const real *w,
                         double eps, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const number *restrict xn = x + n * D, *restrict an = a + n * D;
        number *restrict sn = s + n * D;
        #pragma omp simd
        for (idx d = 0; d < D; d++) sn[d] = put(plus(xn, an, d));
        r[n] = rms_norm_row(y + n * D, xn, an, w, eps, D);         /* of the sum before it is rounded */
    }
}

static void add_rms_norm_backward(number *dx, real *dw, real *parts, const number *ds, const number *dy,
                                  const number *s, const real *w, const real *r, idx N, idx D,
                                  int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx b = 0; b < BLOCKS; b++) {
        real *part = memset(parts + b * D, 0, D * sizeof(real));
        for (idx n = first_row(b, N); n < first_row(b + 1, N); n++) {
            const number *restrict dsn = ds + n * D;
            number *dxn = dx + n * D;
            real *row = wide_row(dxn, parts + (BLOCKS + b) * D);
            rms_norm_row_backward(row, part, dy + n * D, s + n * D, w, r[n], D);
            #pragma omp simd
            for (idx d = 0; d < D; d++) dxn[d] = put(row[d] + get(dsn[d]));
        }
    }
    add_parts(dw, parts, D);
}
