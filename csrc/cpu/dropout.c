/* See pyllama/ops/dropout.py for the derivation.
 *
 * NumPy's stream is Philox4x64-10 (Salmon et al., 2011): eight numbers at a time are a function of
 * a key and a count alone, so that any thread can begin anywhere.  They are drawn into L1. */
enum { BLOCK = 8, DRAWS = 32 };                   /* draws of one count; counts at a time */

/* The eight draws of 32 bits, the low half of each 64 first. */
static inline void philox(uint32_t *draws, uint64_t count, uint64_t key0, uint64_t key1) {
    uint64_t x[4] = {count};
    for (int round = 0; round < 10; round++) {
        unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93 * x[0];
        unsigned __int128 b = (unsigned __int128)0xCA5A826395121157 * x[2];
        x[0] = (uint64_t)(b >> 64) ^ x[1] ^ key0, x[1] = (uint64_t)b;
        x[2] = (uint64_t)(a >> 64) ^ x[3] ^ key1, x[3] = (uint64_t)a;
        key0 += 0x9E3779B97F4A7C15, key1 += 0xBB67AE8584CAA73B;
    }
    for (int i = 0; i < 4; i++) draws[2 * i] = x[i], draws[2 * i + 1] = x[i] >> 32;
}

/* Of the stream's numbers from `start` on, keep those with 24 bits of at least `limit`. */
static void dropout(real *y, const real *x, double scale, uint32_t limit, uint64_t start,
                    const uint64_t *key, idx n, int threads) {
    const idx TILE = BLOCK * DRAWS, before = start % BLOCK;
    #pragma omp parallel for num_threads(threads) if (n > GRAIN)
    for (idx tile = -before; tile < n; tile += TILE) {
        uint32_t draws[BLOCK * DRAWS];
        uint64_t first = (start + tile) / BLOCK + 1;   /* NumPy counts before it draws */
        for (int i = 0; i < DRAWS; i++) philox(draws + BLOCK * i, first + i, key[0], key[1]);
        idx from = tile < 0 ? 0 : tile, to = n - tile < TILE ? n : tile + TILE;
        #pragma omp simd
        for (idx i = from; i < to; i++)
            y[i] = x[i] * (draws[i - tile] >> 8 >= limit ? (real)scale : 0);
    }
}
