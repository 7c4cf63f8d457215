/* `real`, the precision being compiled (-DREAL=32 or 64), and its functions of one variable. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "../kernels.h"

#if REAL == 32
typedef float real;
typedef uint32_t word;
#define SQRT sqrtf
#define FABS fabsf
#define LOG logf
enum { MANTISSA = 23, BIAS = 127, TERMS = 7 };
static const real LN2_HIGH = 0x1.63p-1f, LN2_LOW = -0x1.bd0106p-13f;
static const real EXP_LOW = -104, EXP_HIGH = 89;
#else
typedef double real;
typedef uint64_t word;
#define SQRT sqrt
#define FABS fabs
#define LOG log
enum { MANTISSA = 52, BIAS = 1023, TERMS = 13 };
static const real LN2_HIGH = 0x1.62e42fee00000p-1, LN2_LOW = 0x1.a39ef35793c76p-33;
static const real EXP_LOW = -746, EXP_HIGH = 710;
#endif

/* Below this many numbers a loop stays on the calling thread: waking the others costs about 4 us,
 * in which one core passes over some 10,000 numbers. */
enum { GRAIN = 1 << 15 };

static const real INVERSE_FACTORIAL[] = {
    1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
    1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
_Static_assert(TERMS < sizeof INVERSE_FACTORIAL / sizeof(real), "the series reads past its table");

static inline real from_bits(word bits) {
    real x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline word to_bits(real x) {
    word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* e^x = 2^n e^f, n = round(x / ln 2), |f| <= ln 2 / 2, e^f by Taylor's series.  Unlike libm's it
 * vectorises.  Within 1.1 ulp everywhere; results under the normal range are rounded, not flushed;
 * NaN and the infinities come out as they should.
 *   ROUND: adding 1.5 * 2^MANTISSA leaves n in the low bits, as an integer.
 *   LN2_HIGH has so few digits that n * LN2_HIGH is exact.
 *   2^n is two factors, for 2^-150 and 2^128 are no normal numbers, but e^f times them may be. */
static inline real EXP(real x) {
    const real ROUND = (real)3 / 2 * ((word)1 << MANTISSA), LOG2E = 1.44269504088896340736;
    x = x < EXP_LOW ? EXP_LOW : x > EXP_HIGH ? EXP_HIGH : x;
    real shifted = x * LOG2E + ROUND, n = shifted - ROUND, f = x - n * LN2_HIGH - n * LN2_LOW;
    real p = INVERSE_FACTORIAL[TERMS];
    for (int k = TERMS - 1; k >= 2; k--) p = p * f + INVERSE_FACTORIAL[k];
    p = 1 + (f + f * f * p);
    word whole = to_bits(shifted) - to_bits(ROUND);
    word half = ((whole + 2 * (BIAS + 1)) >> 1) - 1, rest = whole - half + 2 * BIAS;
    return p * from_bits(half << MANTISSA) * from_bits(rest << MANTISSA);
}

/* sigma(x), from e^-|x|, which never overflows */
static inline real SIGMOID(real x) {
    real e = EXP(-FABS(x));
    return (x < 0 ? e : 1) / (1 + e);
}
