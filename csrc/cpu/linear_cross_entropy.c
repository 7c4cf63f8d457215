/* See pyllama/ops/linear_cross_entropy.py for the derivation.
 *
 * Chunk by chunk: the logits z[C V], row by row their loss and, in place, their gradient, then its two
 * products.  A row of logits fits the second cache, so that z is written once and read thrice. */

/* The sum of the losses.  dx[N D] and dw[V D] are the gradients for dloss = 1, dw is added to if
 * accumulate.  z has room for chunk * V numbers, loss for chunk, work as gemm.c says. */
static double linear_cross_entropy(real *dx, real *dw, const real *x, const real *w, const idx *t,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx D, idx V, idx chunk, int accumulate, real *z,
                                   real *loss, real *work, int threads) {
    double sum = 0;
    for (idx n0 = 0; n0 < N; n0 += chunk) {
        idx C = N - n0 < chunk ? N - n0 : chunk;
        const real *rows = x + n0 * D;
        gemm(z, V, rows, D, 1, w, 1, D, C, V, D, 0, work, threads);
        #pragma omp parallel for num_threads(threads) if (C * V > GRAIN)
        for (idx n = 0; n < C; n++) {
            real *zn = z + n * V, lse;
            int counts = t[n0 + n] != ignore_index;
            loss[n] = counts ? row_loss(zn, V, t[n0 + n], smoothing, z_loss, &lse) : 0;
            if (counts) row_gradient(zn, zn, V, t[n0 + n], lse, smoothing, z_loss, scale);
            else memset(zn, 0, V * sizeof(real));
        }
        for (idx n = 0; n < C; n++) sum += loss[n];
        gemm(dx + n0 * D, D, z, V, 1, w, D, 1, C, D, V, 0, work, threads);
        gemm(dw, D, z, 1, V, rows, D, 1, V, D, C, accumulate || n0, work, threads);
    }
    return sum;
}
