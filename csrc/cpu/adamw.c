/* See pyllama/training/optim.py for the rule.  Here it is one pass: each number is read and written once.
 *
 * g * scale is made in double: a scale that tames a huge gradient may be too small for float. */

/* Updates p, m and v; `rounded` is NULL, or for floats a copy of p in bfloat16. */
static void adamw(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                  uint16_t *restrict rounded, idx n, double lr, double decay, double scale, idx t,
                  double b1, double b2, double eps, int threads) {
    const real old1 = b1, new1 = 1 - b1, old2 = b2, new2 = 1 - b2, least = eps, rate = lr,
               pull = decay, c1 = 1 - pow(b1, t), c2 = sqrt(1 - pow(b2, t));
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx start = 0; start < n; start += CHUNK) {
        const idx end = chunk_end(start, n);
        FETCH(p), FETCH(g), FETCH(m), FETCH(v);
        #pragma omp simd
        for (idx i = start; i < end; i++) {
            const real gi = g[i] * scale;
            m[i] = old1 * m[i] + new1 * gi;
            v[i] = old2 * v[i] + new2 * (gi * gi);
            p[i] -= rate * (m[i] / (SQRT(v[i]) / c2 + least) / c1 + pull * p[i]);
        }
#if REAL == 32
        for (idx i = start; rounded && i < end; i++) rounded[i] = rounded16(p[i]);
#endif
    }
}
