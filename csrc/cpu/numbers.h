/* Numbers as files store them, to `real`, a vector of them at a time.  A half is kept as its bits: the
 * sign, 5 of exponent in a float16 and 8 in a bfloat16, the rest of fraction. */
#pragma once
#include "tile.h"
#ifdef __SSE2__
#include <immintrin.h>
#endif

typedef uint16_t half;

#if REAL != 64
typedef int32_t ints __attribute__((vector_size(WIDTH)));
typedef half halves __attribute__((vector_size(WIDTH / 2), aligned(1), may_alias));

enum { SIGN16 = 0x8000, NORMAL16 = 0x0400, INFINITE16 = 0x7c00, NAN16 = 0x7e00 };  /* of float16 */
enum { INFINITE32 = 0x7f800000 };

INLINE vec from_float16s(const half *x) {
#if defined __AVX512F__
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
#elif defined __F16C__
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
#else
    const word rebias = (BIAS - 15) << MANTISSA;
    const lanes bits = __builtin_convertvector(*(const halves *)x, lanes), size = bits & (SIGN16 - 1);
    const lanes beyond = (lanes)(size >= INFINITE16), below = (lanes)(size < NORMAL16);
    const lanes normal = (size << 13) + rebias + (beyond & rebias);
    const lanes small = (lanes)(__builtin_convertvector((ints)size, vec) * 0x1p-24f);
    return (vec)((bits & SIGN16) << 16 | (below & small) | (~below & normal));
#endif
}

INLINE vec from_bfloat16s(const half *x) {
    return (vec)(__builtin_convertvector(*(const halves *)x, lanes) << 16);
}
#endif

INLINE idx size_of(int kind) { return kind == REALS ? sizeof(real) : sizeof(half); }

/* LANES numbers, stored as `kind` */
INLINE vec numbers(int kind, const void *at) {
#if REAL != 64
    if (kind == FLOAT16) return from_float16s(at);
    if (kind == BFLOAT16) return from_bfloat16s(at);
#endif
    return *(const loose *)at;
}

/* n < LANES numbers, then zeros */
INLINE vec last_numbers(int kind, const void *at, idx n) {
    char rest[WIDTH] __attribute__((aligned(WIDTH))) = {0};
    memcpy(rest, at, n * size_of(kind));
    return numbers(kind, rest);
}

INLINE void widen(int kind, real *restrict y, const char *x, idx n) {
    for (; n >= LANES; n -= LANES, y += LANES, x += LANES * size_of(kind)) *(loose *)y = numbers(kind, x);
    const vec last = last_numbers(kind, x, n);
    memcpy(y, &last, n * sizeof(real));
}

/* K columns of `rows` <= NR rows of w, `down` halves apart, as a panel for tile().  See pack_columns(). */
INLINE void pack_halves(int kind, real *panel, const half *w, idx down, idx K, idx rows) {
    for (idx j = 0; j < rows; j += LANES)
        for (idx k = 0; k < K; k += LANES) {
            vec square[LANES];
            for (idx i = 0; i < LANES; i++) {
                const half *at = w + (j + i) * down + k;
                if (j + i >= rows) square[i] = (vec){0};
                else if (K - k < LANES) square[i] = last_numbers(kind, at, K - k);
                else square[i] = numbers(kind, at);
            }
            transpose(panel + k * NR + j, (const real *)square, LANES);
        }
}
