/* See pyllama/ops/rms_norm.py for the derivation.
 *
 * dw is parallel over columns, each thread taking a share of whole cache lines: every sum is one
 * thread's, in the order of the rows, so that no result depends on how many threads there are. */
enum { LINE = 64 / sizeof(real), WIDEST = 1024 };

static void rms_norm(real *y, real *r, const real *x, const real *w, double eps, idx N, idx D,
                     int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        const real *restrict xn = x + n * D;
        real *restrict yn = y + n * D, squares = 0;
        #pragma omp simd reduction(+ : squares)
        for (idx d = 0; d < D; d++) squares += xn[d] * xn[d];
        real rn = r[n] = 1 / SQRT(squares / D + (real)eps);
        #pragma omp simd
        for (idx d = 0; d < D; d++) yn[d] = w[d] * xn[d] * rn;
    }
}

static void rms_norm_backward(real *dx, real *dw, const real *dy, const real *x, const real *w,
                              const real *r, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)  /* dx: by rows */
    for (idx n = 0; n < N; n++) {
        const real *restrict xn = x + n * D, *restrict dyn = dy + n * D;
        real *restrict dxn = dx + n * D, rn = r[n], gn = 0;
        #pragma omp simd reduction(+ : gn)
        for (idx d = 0; d < D; d++) gn += w[d] * dyn[d] * xn[d];
        gn *= rn * rn / D;                                        /* r mean(g n) */
        #pragma omp simd
        for (idx d = 0; d < D; d++) dxn[d] = rn * (w[d] * dyn[d] - xn[d] * gn);
    }
    idx share = D / (threads * LINE) * LINE + LINE;               /* 1 line or more, if D = 0 too */
    if (share > WIDEST) share = WIDEST;
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)  /* dw: by columns */
    for (idx d0 = 0; d0 < D; d0 += share) {
        idx width = D - d0 < share ? D - d0 : share;
        real sum[WIDEST] = {0};
        for (idx n = 0; n < N; n++) {
            const real *restrict xn = x + n * D + d0, *restrict dyn = dy + n * D + d0;
            #pragma omp simd
            for (idx d = 0; d < width; d++) sum[d] += dyn[d] * xn[d] * r[n];
        }
        memcpy(dw + d0, sum, width * sizeof(real));
    }
}
