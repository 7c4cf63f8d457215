/* See pyllama/training/optim.py for the rule.  Here it is one pass: each number is read and written once.
 * Without momentum v is NULL.  g * scale is made in double, as in adamw.c. */

static void sgd(real *restrict p, const real *restrict g, real *restrict v, idx n, double lr,
                double decay, double scale, double momentum, int nesterov, int threads) {
    const real rate = lr, pull = decay, mu = momentum;
    const real now = nesterov ? 1 : 0, past = nesterov ? mu : 1;
    if (!v) {
        #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
        for (idx i = 0; i < n; i++) p[i] -= rate * ((real)(g[i] * scale) + pull * p[i]);
        return;
    }
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) {
        const real gi = g[i] * scale;
        v[i] = mu * v[i] + gi;
        p[i] -= rate * (now * gi + past * v[i] + pull * p[i]);
    }
}
