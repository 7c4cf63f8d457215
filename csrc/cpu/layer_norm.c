/* See pyllama/ops/layer_norm.py for the derivation.
 *
 * (a) g waits in dx (or beside it: see rows.h), rounded: multiplied out again in g - mean(g), it might not
 *     be (a compiler may fuse the two), and then a row of one column would not give 0.
 * (b) A bfloat16 would round n.  So there the caller keeps x in its place, and the means behind r, to make n
 *     again. */

static inline real mean_of(const number *restrict x, idx D) {
    real sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (idx d = 0; d < D; d++) sum += get(x[d]);
    return sum / D;
}

/* Normalizes a row with this mean, to n and y; returns its r. */
static inline real layer_norm_row(number *restrict y, real *restrict n, const number *restrict x,
                                  const real *restrict w, const real *restrict b, real mean, real eps, idx D) {
    real squares = 0;
    #pragma omp simd reduction(+ : squares)
    for (idx d = 0; d < D; d++) squares += (get(x[d]) - mean) * (get(x[d]) - mean);
    real r = 1 / SQRT(squares / D + eps);
    #pragma omp simd
    for (idx d = 0; d < D; d++) {
        const real normal = (get(x[d]) - mean) * r;
        if (n) n[d] = normal;
        y[d] = put(w[d] * normal + b[d]);
    }
    return r;
}

static void layer_norm(number *y, number *n, real *r, const number *x, const real *w, const real *b,
                       double eps, idx N, idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx i = 0; i < N; i++) {
        const real mean = mean_of(x + i * D, D);
        real *row = REAL == 16 ? NULL : (real *)n + i * D;
        if (REAL == 16) r[N + i] = mean;
        r[i] = layer_norm_row(y + i * D, row, x + i * D, w, b, mean, eps, D);
    }
}

/* An entry of n, from what is kept of it. */
static inline real normal(number kept, real mean, real r) {
    return REAL == 16 ? (get(kept) - mean) * r : get(kept);
}

static void layer_norm_backward(number *dx, real *dw, real *db, real *parts, const number *dy,
                                const number *n, const real *w, const real *r, idx N, idx D,
                                int threads) {
    real *dw_parts = parts, *db_parts = parts + BLOCKS * D, *room = parts + 2 * BLOCKS * D;
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx b = 0; b < BLOCKS; b++) {
        real *restrict dwb = memset(dw_parts + b * D, 0, D * sizeof(real));
        real *restrict dbb = memset(db_parts + b * D, 0, D * sizeof(real));
        for (idx i = first_row(b, N); i < first_row(b + 1, N); i++) {
            const number *restrict ni = n + i * D, *restrict dyi = dy + i * D;
            number *dxi = dx + i * D;
            real *wide = wide_row(dxi, room + b * D), g = 0, gn = 0;
            const real ri = r[i], mean = REAL == 16 ? r[N + i] : 0;
            #pragma omp simd reduction(+ : g, gn)
            for (idx d = 0; d < D; d++) {
                wide[d] = w[d] * get(dyi[d]);
                g += wide[d];
                gn += wide[d] * normal(ni[d], mean, ri);
            }
            g /= D, gn /= D;
            #pragma omp simd
            for (idx d = 0; d < D; d++) {
                dxi[d] = put(ri * (wide[d] - g - normal(ni[d], mean, ri) * gn));
                dwb[d] += get(dyi[d]) * normal(ni[d], mean, ri);
                dbb[d] += get(dyi[d]);
            }
        }
    }
    add_parts(dw, dw_parts, D);
    add_parts(db, db_parts, D);
}
