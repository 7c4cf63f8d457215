/* float32 to and from the halves: to the nearest, ties to even; what is too large becomes infinite.
 * (table.c takes this file for float alone.) */
#include "numbers.h"

/* Adding 2^13 times the power of two at or below |x| leaves |x| in the low bits, rounded by the
 * processor, in units of the last place of a float16.  The unit is 2^-24 below its normal range. */
static void halve(half *restrict y, const real *restrict x, idx n) {
    const word least = to_bits(0x1p-14f), top = to_bits(0x1p16f);
    #pragma omp simd
    for (idx i = 0; i < n; i++) {
        const word sign = to_bits(x[i]) >> 16 & SIGN16, size = to_bits(FABS(x[i]));
        const word finite = size < top ? size : top, exponent = finite & INFINITE32;
        const word power = exponent > least ? exponent : least, shift = power + (13 << MANTISSA);
        const word units = to_bits(from_bits(finite) + from_bits(shift)) - shift;
        y[i] = sign | (size > INFINITE32 ? NAN16 : ((power - least) >> 13) + units);
    }
}

/* A row of a cache takes less time than a region of one thread. */
static void to_float16(half *y, const real *x, idx n, int threads) {
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx i = 0; i < n; i += GRAIN) halve(y + i, x + i, least(n - i, GRAIN));
}

static void from_float16(real *restrict y, const half *restrict x, idx n, int threads) {
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx i = 0; i < n; i += GRAIN) widen(FLOAT16, y + i, (const char *)(x + i), least(n - i, GRAIN));
}

static void to_bfloat16(half *restrict y, const real *restrict x, idx n, int threads) {
    #pragma omp parallel for simd num_threads(threads) if (parallel : n > GRAIN)
    for (idx i = 0; i < n; i++) y[i] = rounded16(x[i]);
}

static void from_bfloat16(real *restrict y, const half *restrict x, idx n, int threads) {
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx i = 0; i < n; i += GRAIN) widen(BFLOAT16, y + i, (const char *)(x + i), least(n - i, GRAIN));
}
