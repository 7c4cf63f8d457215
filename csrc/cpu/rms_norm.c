/* See pyllama/ops/rms_norm.py for the derivation. */

/* x + a, where a may be NULL */
static inline real plus(const number *x, const number *a, idx d) {
    return a ? get(x[d]) + get(a[d]) : get(x[d]);
}

/* Normalizes a row x + a; returns its r. */
static inline real rms_norm_row(number *restrict y, const number *restrict x, const number *restrict a,
                                const real *restrict w, real eps, idx D) {
    real squares = 0;
    #pragma omp simd reduction(+ : squares)
    for (idx d = 0; d < D; d++) squares += plus(x, a, d) * plus(x, a, d);
    real r = 1 / SQRT(squares / D + eps);
    #pragma omp simd
    for (idx d = 0; d < D; d++) y[d] = put(w[d] * plus(x, a, d) * r);
    return r;
}

/* Writes a row of dx, and adds the row's share to dw. */
static inline void rms_norm_row_backward(real *restrict dx, real *restrict dw,
                                         const number *restrict dy, const number *restrict x,
                                         const real *restrict w, real r, idx D) {
    real gn = 0;
    #pragma omp simd reduction(+ : gn)
    for (idx d = 0; d < D; d++) gn += w[d] * get(dy[d]) * get(x[d]);
    gn *= r * r / D;                                              /* r mean(g n) */
    #pragma omp simd
    for (idx d = 0; d < D; d++) {
        dx[d] = r * (w[d] * get(dy[d]) - get(x[d]) * gn);
        dw[d] += get(dy[d]) * get(x[d]) * r;
    }
}

static void rms_norm(number *y, real *r, const number *x, const real *w, double eps, idx N, idx D,
                     int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) r[n] = rms_norm_row(y + n * D, x + n * D, NULL, w, eps, D);
}

static void rms_norm_backward(number *dx, real *dw, real *parts, const number *dy, const number *x,
                              const real *w, const real *r, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx b = 0; b < BLOCKS; b++) {
        real *part = memset(parts + b * D, 0, D * sizeof(real));
        for (idx n = first_row(b, N); n < first_row(b + 1, N); n++) {
            real *row = wide_row(dx + n * D, parts + (BLOCKS + b) * D);
            rms_norm_row_backward(row, part, dy + n * D, x + n * D, w, r[n], D);
            narrow_row(dx + n * D, row, D);
        }
    }
    add_parts(dw, parts, D);
}
