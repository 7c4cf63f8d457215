/* See pyllama/training/optim.py.  g[0] becomes the sum of the lanes, added in their order, and its norm is
 * returned: one pass over memory, because PIECE sums are squared while they are in the first cache.
 *
 * The vector is cut into PARTS, however many threads there are.  A part's squares are summed by one
 * thread, and the parts' sums in their order, so that the norm does not depend on the threads. */
static double sum_and_norm(real *const *g, idx lanes, idx n, int threads) {
    enum { PARTS = 64, PIECE = 1 << 11 };
    double squares[PARTS] = {0}, total = 0;
    #pragma omp parallel for num_threads(threads) if (n * lanes > GRAIN)
    for (idx k = 0; k < PARTS; k++) {
        const idx end = n * (k + 1) / PARTS;
        for (idx start = n * k / PARTS; start < end; start += PIECE) {
            const idx width = end - start < PIECE ? end - start : PIECE;
            real *restrict sum = g[0] + start;
            for (idx lane = 1; lane < lanes; lane++) {
                const real *restrict addend = g[lane] + start;
                #pragma omp simd
                for (idx i = 0; i < width; i++) sum[i] += addend[i];
            }
            double here = 0;
            #pragma omp simd reduction(+ : here)
            for (idx i = 0; i < width; i++) here += (double)sum[i] * sum[i];
            squares[k] += here;
        }
    }
    for (idx k = 0; k < PARTS; k++) total += squares[k];
    return sqrt(total);
}
