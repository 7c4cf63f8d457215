// See pyllama/ops/dropout.py for the derivation.
//
// The stream is NumPy's, Philox4x64-10 (Salmon et al., 2011): a block of draws is a function of its number and a key
// alone, so that any thread can begin anywhere.  A thread for each block of draws, neighboring ones for neighboring
// numbers.
enum { DRAWS = 8 };                                         // of a block

// A block of 32-bit draws: the low half of each 64 bits comes first.
__device__ __forceinline__ void philox(unsigned *draws, unsigned long long number, unsigned long long key0,
                                       unsigned long long key1) {
    unsigned long long x[4] = {number, 0, 0, 0};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long A = 0xD2E7470EE14C6C93, B = 0xCA5A826395121157, a = x[0], b = x[2];
        x[0] = __umul64hi(B, b) ^ x[1] ^ key0, x[1] = B * b;
        x[2] = __umul64hi(A, a) ^ x[3] ^ key1, x[3] = A * a;
        key0 += 0x9E3779B97F4A7C15, key1 += 0xBB67AE8584CAA73B;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) draws[2 * i] = x[i], draws[2 * i + 1] = x[i] >> 32;
}

// A number is kept if the first 24 bits of its draw, for x[0] draw `start`, are `limit` or more.
extern "C" __global__ void dropout(real *y, const real *x, double scale, idx limit, idx start, idx key0, idx key1,
                                   idx n, idx aligned) {
    const idx block = (idx)blockIdx.x * blockDim.x + threadIdx.x, first = block * DRAWS - start % DRAWS;
    if (first >= n) return;
    unsigned draws[DRAWS];
    philox(draws, start / DRAWS + block + 1, key0, key1);   // NumPy's first block is 1
#pragma unroll
    for (int j = 0; j < DRAWS; j += WIDE) {
        if (first + j >= n) break;
        wide v = load(x, first + j, n, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) v.at[k] *= draws[j + k] >> 8 >= limit ? (real)scale : 0;
        store(y, first + j, n, v, aligned);
    }
}
