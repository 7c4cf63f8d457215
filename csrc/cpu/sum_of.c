/* The sum of arrays, added in their order in float and rounded once: see pyllama/low.py. */

static void sum_of(number *y, const number *const *x, idx count, idx n, int threads) {
    enum { PIECE = 1 << 10 };
    #pragma omp parallel for num_threads(threads) if (n * count > GRAIN)
    for (idx start = 0; start < n; start += PIECE) {
        const idx width = n - start < PIECE ? n - start : PIECE;
        const number *restrict first = x[0] + start, *restrict last = x[count - 1] + start;
        real sum[PIECE];
        for (idx i = 0; i < width; i++) sum[i] = get(first[i]);
        for (idx k = 1; k < count - 1; k++) {
            const number *restrict addend = x[k] + start;
            for (idx i = 0; i < width; i++) sum[i] += get(addend[i]);
        }
        number *restrict to = y + start;
        for (idx i = 0; i < width; i++) to[i] = put(count > 1 ? sum[i] + get(last[i]) : sum[i]);
    }
}
