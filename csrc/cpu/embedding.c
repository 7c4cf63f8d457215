/* See pyllama/ops/embedding.py for the derivation.
 *
 * Backward is parallel over columns, each thread taking a share of whole cache lines: every sum is
 * one thread's, in the order of the positions, so that no result depends on how many threads there
 * are.  Shares of the vocabulary would be of unequal work: some tokens are far more frequent. */

static void embedding(real *restrict y, const idx *restrict ids, const real *restrict w, idx N,
                      idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) memcpy(y + n * D, w + ids[n] * D, D * sizeof(real));
}

/* Adds to dw. */
static void embedding_backward(real *dw, const real *dy, const idx *ids, idx N, idx D,
                               int threads) {
    enum { LINE = 64 / sizeof(real) };
    idx lines = (D + LINE - 1) / LINE, shares = lines < threads ? lines : threads;
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx share = 0; share < shares; share++) {
        idx from = lines * share / shares * LINE, to = lines * (share + 1) / shares * LINE;
        if (to > D) to = D;
        for (idx n = 0; n < N; n++) {
            real *restrict sum = dw + ids[n] * D;
            const real *restrict dyn = dy + n * D;
            #pragma omp simd
            for (idx d = from; d < to; d++) sum[d] += dyn[d];
        }
    }
}
