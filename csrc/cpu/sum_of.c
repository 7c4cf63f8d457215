/* The sum of arrays, added in their order in float and rounded once: see pyllama/low.py. */

static void sum_of(number *y, const number *const *x, idx count, idx n, int threads) {
    enum { CHUNK = 1 << 10 };
    #pragma omp parallel for num_threads(threads) if (n * count > GRAIN)
    for (idx start = 0; start < n; start += CHUNK) {
        const idx width = n - start < CHUNK ? n - start : CHUNK;
        real sum[CHUNK];
        for (idx i = 0; i < width; i++) sum[i] = get(x[0][start + i]);
        for (idx k = 1; k < count; k++) {
            const number *restrict addend = x[k] + start;
            #pragma omp simd
            for (idx i = 0; i < width; i++) sum[i] += get(addend[i]);
        }
        #pragma omp simd
        for (idx i = 0; i < width; i++) y[start + i] = put(sum[i]);
    }
}
