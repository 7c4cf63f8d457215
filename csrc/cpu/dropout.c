/* See pyllama/ops/dropout.py for the derivation.
 *
 * The stream is NumPy's, Philox4x64-10 (Salmon et al., 2011): a block of draws depends only on its
 * number and a key, so that any thread can begin anywhere. */
enum { BLOCK = 8, DRAWS = 32 };                   /* draws of a block; blocks drawn at a time */

/* A block of 32-bit draws: the low half of each 64 bits comes first. */
static inline void philox(uint32_t *draws, uint64_t number, uint64_t key0, uint64_t key1) {
    uint64_t x[4] = {number};
    for (int round = 0; round < 10; round++) {
        unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93 * x[0];
        unsigned __int128 b = (unsigned __int128)0xCA5A826395121157 * x[2];
        x[0] = (uint64_t)(b >> 64) ^ x[1] ^ key0, x[1] = (uint64_t)b;
        x[2] = (uint64_t)(a >> 64) ^ x[3] ^ key1, x[3] = (uint64_t)a;
        key0 += 0x9E3779B97F4A7C15, key1 += 0xBB67AE8584CAA73B;
    }
    for (int i = 0; i < 4; i++) draws[2 * i] = x[i], draws[2 * i + 1] = x[i] >> 32;
}

/* A number is kept if the first 24 bits of its draw, for x[0] draw `start`, are `limit` or more. */
static void dropout(number *y, const number *x, double scale, uint32_t limit, uint64_t start,
                    const uint64_t *key, idx n, int threads) {
    const idx TILE = BLOCK * DRAWS, before = start % BLOCK;
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx tile = -before; tile < n; tile += TILE) {
        uint32_t draws[BLOCK * DRAWS];
        uint64_t first = (start + tile) / BLOCK + 1;   /* NumPy's first block is 1 */
        for (int i = 0; i < DRAWS; i++) philox(draws + BLOCK * i, first + i, key[0], key[1]);
        idx from = tile < 0 ? 0 : tile, to = n - tile < TILE ? n : tile + TILE;
        #pragma omp simd
        for (idx i = from; i < to; i++)
            y[i] = put(get(x[i]) * (draws[i - tile] >> 8 >= limit ? (real)scale : 0));
    }
}
