/* See pyllama/training/optim.py for the rule.  Here it is one pass: each number is read and written once.
 *
 * g * scale is made in double: a scale that tames a huge gradient may be too small for float. */

typedef struct {
    double scale;
    real old1, new1, old2, new2, least, rate, pull, c1, c2;
} adamw_rule;

static inline real adamw_of(real p, real g, real *m, real *v, adamw_rule by) {
    const real gi = g * by.scale;
    *m = by.old1 * *m + by.new1 * gi;
    *v = by.old2 * *v + by.new2 * (gi * gi);
    return p - by.rate * (*m / (SQRT(*v) / by.c2 + by.least) / by.c1 + by.pull * p);
}

/* Updates p, m and v; `rounded` is NULL, or for floats a copy of p in bfloat16. */
static void adamw(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                  uint16_t *restrict rounded, idx n, double lr, double decay, double scale, idx t,
                  double b1, double b2, double eps, int threads) {
    const adamw_rule by = {scale, b1, 1 - b1, b2, 1 - b2, eps, lr, decay, 1 - pow(b1, t), sqrt(1 - pow(b2, t))};
    if (!rounded) {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) p[i] = adamw_of(p[i], g[i], m + i, v + i, by);
        return;
    }
#if REAL == 32
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) {
        p[i] = adamw_of(p[i], g[i], m + i, v + i, by);
        rounded[i] = rounded16(p[i]);
    }
#endif
}
