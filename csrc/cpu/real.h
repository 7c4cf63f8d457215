/* `real`, in which a table computes (-DREAL: see kernels.h), and its functions of one variable; a `number` read and
 * written. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "../kernels.h"

#if REAL != 64
typedef uint32_t word;
#define SQRT sqrtf
#define FABS fabsf
#define LOG logf
enum { MANTISSA = 23, BIAS = 127, TERMS = 7, DEGREE = 4 };
static const real LN2_HIGH = 0x1.63p-1f, LN2_LOW = -0x1.bd0106p-13f;
static const real EXP_LOW = -104, EXP_HIGH = 89, DECAY_LOW = -87, FAR = 15;
static const real OVER[] = {48.38615687, 42.45152268, 17.75499646, 3.938639102, 0.398946591};
static const real UNDER[] = {96.77231333, 162.1162131, 116.4734564, 45.49114568, 9.873298338};
#else
typedef uint64_t word;
#define SQRT sqrt
#define FABS fabs
#define LOG log
enum { MANTISSA = 52, BIAS = 1023, TERMS = 13, DEGREE = 10 };
static const real LN2_HIGH = 0x1.62e42fee00000p-1, LN2_LOW = 0x1.a39ef35793c76p-33;
static const real EXP_LOW = -746, EXP_HIGH = 710, DECAY_LOW = -708, FAR = 40;
static const real OVER[] = {
    913248.30989094765, 1509488.0612826203, 1236964.3427637471, 649266.73513523815,
    239466.74349324367, 64550.353369413766, 12860.862299377222, 1872.2897564530977,
    191.31292931993303, 12.475196070036272, 0.39894228040152635};
static const real UNDER[] = {
    1826496.6197818953, 4476309.5758478362, 5132258.6755795516, 3641106.4593990101,
    1780200.7998981886, 631542.39674632938, 166434.33452594993, 32714.951456771105,
    4724.4051214090114, 480.55039792995609, 31.270679200773444};
#endif

/* Below this many numbers a loop stays on the calling thread: waking the others costs about 4 us,
 * in which one core passes over some 10,000 numbers.  Sanitizers are given -DGRAIN=1. */
#ifndef GRAIN
enum { GRAIN = 1 << 15 };
#endif

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

/* A bfloat16 is the upper half of a float.  A carry out of the fraction belongs to the exponent. */
#if REAL != 64
static inline real widened(uint16_t x) { return from_bits((word)x << 16); }

/* to the nearest, ties to even; a NaN stays one and keeps its sign */
static inline uint16_t rounded16(real x) {
    const word bits = to_bits(x);
    return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : (bits >> 16 & 0x8000) | 0x7fc0;
}
#endif

#if REAL == 16
static inline real get(number x) { return widened(x); }
static inline number put(real x) { return rounded16(x); }
#else
static inline real get(number x) { return x; }
static inline number put(real x) { return x; }
#endif

/* e^(x - low) = 2^n e^f, n = round((x - low) / ln 2), |f| <= ln 2 / 2, e^f by Taylor's series.
 * Unlike libm's it vectorizes.  `low` holds the digits that x has no room for; it is mostly 0.
 * Within 1.1 ulp everywhere; results under the normal range are rounded, not flushed; NaN and the
 * infinities come out as they should.
 *   ROUND: adding 1.5 * 2^MANTISSA leaves n in the low bits, as an integer.
 *   LN2_HIGH has so few digits that n * LN2_HIGH is exact.
 *   2^n is two factors: 2^-150 and 2^128 are not normal numbers, but e^f times them may be. */
static inline real EXP_IN_RANGE(real x, real low) {
    const real ROUND = (real)3 / 2 * ((word)1 << MANTISSA), LOG2E = 1.44269504088896340736;
    real shifted = (x - low) * LOG2E + ROUND, n = shifted - ROUND;
    real f = x - n * LN2_HIGH - n * LN2_LOW - low;
    real p = INVERSE_FACTORIAL[TERMS];
    for (int k = TERMS - 1; k >= 2; k--) p = p * f + INVERSE_FACTORIAL[k];
    p = 1 + (f + f * f * p);
    word whole = to_bits(shifted) - to_bits(ROUND);
    word half = ((whole + 2 * (BIAS + 1)) >> 1) - 1, rest = whole - half + 2 * BIAS;
    return p * from_bits(half << MANTISSA) * from_bits(rest << MANTISSA);
}

static inline real EXP(real x) {
    return EXP_IN_RANGE(x < EXP_LOW ? EXP_LOW : x > EXP_HIGH ? EXP_HIGH : x, 0);
}

/* e^x for x <= 0, at half the cost of EXP: results below the normal range become 0, and BIAS, added
 * beforehand, makes the low bits those of 2^n.  Within 1.3 ulp; e^NaN = NaN. */
static inline real DECAY(real x) {
    const real ROUND = (real)3 / 2 * ((word)1 << MANTISSA) + BIAS, LOG2E = 1.44269504088896340736;
    real shifted = x * LOG2E + ROUND, n = shifted - ROUND, f = x - n * LN2_HIGH - n * LN2_LOW;
    real p = INVERSE_FACTORIAL[TERMS];
    for (int k = TERMS - 1; k >= 0; k--) p = p * f + INVERSE_FACTORIAL[k];
    return x < DECAY_LOW ? 0 : p * from_bits(to_bits(shifted) << MANTISSA);
}

/* tanh x = -e / (2 + e), e = e^(-2|x|) - 1 = 2^n (e^f - 1) + 2^n - 1, as in DECAY: near 0, where
 * n is 0, nothing cancels. */
static inline real TANH(real x) {
    const real ROUND = (real)3 / 2 * ((word)1 << MANTISSA) + BIAS, LOG2E = 1.44269504088896340736;
    real z = -2 * FABS(x), shifted = z * LOG2E + ROUND, n = shifted - ROUND;
    real f = z - n * LN2_HIGH - n * LN2_LOW, p = INVERSE_FACTORIAL[TERMS];
    for (int k = TERMS - 1; k >= 1; k--) p = p * f + INVERSE_FACTORIAL[k];
    real power = from_bits(to_bits(shifted) << MANTISSA);
    real e = z < DECAY_LOW ? -1 : power * (p * f) + (power - 1), y = -e / (2 + e);
    return x < 0 ? -y : y;
}

/* sigma(x), from e^-|x|, which never overflows */
static inline real SIGMOID(real x) {
    real e = EXP(-FABS(x));
    return (x < 0 ? e : 1) / (1 + e);
}

/* Phi(x) = (1 + erf(x / sqrt 2)) / 2, the normal distribution, and e^(-x^2/2).  Its relative error
 * is at most 3 epsilons above x = -2, and 7 in the tail below, down to the subnormal numbers.
 *   1 + erf would cancel: Phi(-z) = e^(-z^2/2) R(z), where R is a quotient of two polynomials whose
 *   coefficients are all positive, the one that is exact at Chebyshev's points in (z - c) / (z + c),
 *   c = 3 for float and 4 for double.
 *   Rounding z^2 would cost up to z^2/4 ulp, so z is split: high^2 is exact. */
static inline real PHI(real x, real *gauss) {
    real z = FABS(x);
    z = z > FAR ? FAR : z;
    real high = from_bits(to_bits(z) >> (MANTISSA / 2 + 1) << (MANTISSA / 2 + 1));
    *gauss = EXP_IN_RANGE(-high * high / 2, (z - high) * (z + high) / 2);
    real over = OVER[DEGREE], under = z + UNDER[DEGREE];
    for (int k = DEGREE - 1; k >= 0; k--) over = over * z + OVER[k], under = under * z + UNDER[k];
    real tail = *gauss * (over / under);
    return x < 0 ? tail : 1 - tail;
}
