/* See pyllama/ops/embedding.py for the derivation. */

static void embedding(number *restrict y, const idx *restrict ids, const number *restrict w, idx N,
                      idx D, int threads) {
    #pragma omp parallel for num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) memcpy(y + n * D, w + ids[n] * D, D * sizeof(number));
}

/* Adds to dw.  A static schedule gives a thread the same columns at every position: no sum is two
 * threads', and each is in the order of the positions.  (Shares of the vocabulary would be of
 * unequal work, because some tokens are far more frequent.) */
static void embedding_backward(real *dw, const number *dy, const idx *ids, idx N, idx D,
                               int threads) {
    #pragma omp parallel num_threads(threads) if (N * D > GRAIN)
    for (idx n = 0; n < N; n++) {
        real *restrict sum = dw + ids[n] * D;
        const number *restrict dyn = dy + n * D;
        #pragma omp for simd schedule(static) nowait
        for (idx d = 0; d < D; d++) sum[d] += get(dyn[d]);
    }
}
