/* AMX: eight registers of tiles, a thread's own, which hold nothing until it configures them.
 *
 * Not by the compiler's intrinsics: GCC 12 tells its optimizer that ldtilecfg reads 8 bytes of the 64, and that
 * tileloadd reads none, so the stores before them may be left out.
 */
#pragma once
#include "tile.h"

typedef struct {                                   /* of tile t: rows[t] rows of bytes[t] */
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "ldtilecfg reads 64 bytes");

INLINE void configure_tiles(const tile_shapes *shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(*shapes)); }

INLINE void begin_tiles(void) {                    /* eight of 16 rows of 64 bytes, the most there are */
    configure_tiles(&(tile_shapes){.palette = 1, .rows = {16, 16, 16, 16, 16, 16, 16, 16},
                                   .bytes = {64, 64, 64, 64, 64, 64, 64, 64}});
}

/* A thread that keeps tiles makes every switch to another one slower. */
INLINE void release_tiles(void) { __asm__ volatile("tilerelease"); }

INLINE void zero_tile(const int t) { __asm__ volatile("tilezero %%tmm%c0" : : "i"(t)); }

INLINE void load_tile(const int t, const void *at, idx down) {
    __asm__ volatile("tileloadd (%1,%2), %%tmm%c0" : : "i"(t), "r"(at), "r"(down) : "memory");
}

INLINE void store_tile(void *at, idx down, const int t) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2)" : : "i"(t), "r"(at), "r"(down) : "memory");
}

/* sums[i, j] += Σ_k Σ_l a[i, 4 k + l] b[k, 4 j + l] of bytes with signs; the sums have 32 bits */
INLINE void multiply_tiles(const int sums, const int a, const int b) {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}

/* sums[i, j] += Σ_k a[i, 2 k] b[k, 2 j] + Σ_k a[i, 2 k + 1] b[k, 2 j + 1] of bfloat16 numbers, in float.
 * Subnormal numbers count as 0. */
INLINE void multiply_pairs(const int sums, const int a, const int b) {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}
