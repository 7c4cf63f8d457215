/* Rows of a head, where they lie; as reals, if they are bfloat16 numbers. */
#pragma once
#include "tile.h"

typedef struct {                                   /* rows of a head, one every `down` numbers */
    number *at;
    idx down;
} lines;

INLINE lines at(heads h, idx b, idx g, idx r, idx t) {
    return (lines){h.at + b * h.b + g * h.g + r * h.r + t * h.t, h.t};
}

#if REAL == 16
enum { ROOMS = 1 };                                /* arrays for numbers that are widened, and sums to be rounded */

INLINE matrix reals_of(lines x, idx rows, idx K, real *room) {
    for (idx i = 0; i < rows; i++) {
        #pragma omp simd
        for (idx k = 0; k < K; k++) room[i * K + k] = get(x.at[i * x.down + k]);
    }
    return (matrix){room, K, 1};
}

INLINE matrix sums_at(lines x, idx K, real *room) { return (void)x, (matrix){room, K, 1}; }

INLINE void put_sums(lines x, matrix sums, idx rows, idx K) {
    for (idx i = 0; i < rows; i++) {
        #pragma omp simd
        for (idx k = 0; k < K; k++) x.at[i * x.down + k] = put(sums.at[i * sums.down + k]);
    }
}
#else
enum { ROOMS = 0 };

INLINE matrix sums_at(lines x, idx K, real *room) { return (void)K, (void)room, (matrix){x.at, x.down, 1}; }
INLINE matrix reals_of(lines x, idx rows, idx K, real *room) { return (void)rows, sums_at(x, K, room); }
INLINE void put_sums(lines x, matrix sums, idx rows, idx K) { (void)x, (void)sums, (void)rows, (void)K; }
#endif
