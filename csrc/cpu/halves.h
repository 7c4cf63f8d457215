/* Halves to float, one or a vector of them: see cast.c for the formats. */
#pragma once
#include "tile.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

typedef uint16_t half;
typedef uint16_t loose_halves __attribute__((vector_size(WIDTH / 2), aligned(sizeof(half)), may_alias));

enum { SIGN16 = 0x8000, NORMAL16 = 0x0400, INFINITE16 = 0x7c00, NAN16 = 0x7e00 };  /* of float16 */
enum { INFINITE32 = 0x7f800000 };

INLINE real from_half(half x) {
    const word rebias = (BIAS - 15) << MANTISSA;
    const word sign = (word)(x & SIGN16) << 16, size = x & ~SIGN16;
    const word normal = (size << 13) + (size < INFINITE16 ? rebias : 2 * rebias);
    return from_bits(sign | (size < NORMAL16 ? to_bits(size * 0x1p-24f) : normal));
}

INLINE vec from_halves(const half *x) {
#if defined __AVX512F__
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
#elif defined __F16C__
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
#else
    vec y;
    for (int l = 0; l < LANES; l++) y[l] = from_half(x[l]);
    return y;
#endif
}

INLINE vec from_bhalves(const half *x) {
    return (vec)(__builtin_convertvector(*(const loose_halves *)x, lanes) << 16);
}
