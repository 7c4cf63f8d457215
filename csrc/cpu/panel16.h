/* A panel of A times a block of B, of pairs along K: by an instruction for pairs (pairs16.h), or widened (widened16.h).
 * The bits are the same, but for subnormal numbers: a sum takes the second product of each pair, then the first. */
#pragma once
#include "tile.h"

enum { STEP = 2, DOWN = MR, ACROSS = NR, LONG_ROW = LONGEST_CHUNK + 32 };   /* of packed rows; not a power of two */

INLINE void begin_tiles(void) {}
INLINE void release_tiles(void) {}

#ifdef __AVX512BF16__
#include "pairs16.h"
#else
#include "widened16.h"
#endif

/* a[rows K], which is packed in `ready` unless that is NULL, times a block of N columns; room: for a chunk of a */
static void panel(target t, factor a, const packed *ready, packed *room, const packed *block, idx rows, idx N, idx K,
                  idx chunk, int accumulate) {
    idx k0 = 0;
    do {
        const idx k = least(K - k0, chunk);
        const factor from = part_of(a, 0, k0);
        const rows_of_a panel = ready ? packed_rows_of_a(ready + k0 * DOWN, a) : ready_rows(from, room, rows, k);
        for (idx j = 0; j < N; j += ACROSS)
            add_products_of_rows(whole(k, STEP), panel, block + j * whole(K, STEP) + k0 * ACROSS, t.sums + j, t.down,
                                 rows, least(N - j, ACROSS), accumulate || k0);
        k0 += k;
    } while (k0 < K);
    for (idx i = 0; t.to && i < rows; i++) round_sums(t.to + i * t.to_down, t.sums + i * t.down, t.bias, N);
}
