/* See pyllama/training/optim.py for the rule.  Here it is one pass: each number is read and written once.
 *
 * g * scale is made in double: a scale that tames a huge gradient may be too small for float. */

static void adamw(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                  idx n, double lr, double decay, double scale, idx t, double b1, double b2,
                  double eps, int threads) {
    const real old1 = b1, new1 = 1 - b1, old2 = b2, new2 = 1 - b2, least = eps, rate = lr,
               pull = decay, c1 = 1 - pow(b1, t), c2 = sqrt(1 - pow(b2, t));
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) {
        const real gi = g[i] * scale;
        m[i] = old1 * m[i] + new1 * gi;
        v[i] = old2 * v[i] + new2 * (gi * gi);
        p[i] -= rate * (m[i] / (SQRT(v[i]) / c2 + least) / c1 + pull * p[i]);
    }
}
