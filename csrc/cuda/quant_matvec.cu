// y = x wᵀ for few rows of x [N D], as when a model decodes: reading w is what takes time, so it is kept in BITS bits.
// w [E D] are whole numbers, scales [E D/G] their unit: y_ne = Σ_d x_nd w_ed scales_e,d/G.  Of 8 bits they are
// bytes from -128 to 127; of 4 bits two share a byte, the first in its low half, each from -8 to 7 and stored plus 8.
//
// A warp for OUTPUTS rows of w, so that numbers of x, which every warp reads again, serve several of them; and for all
// rows of x, ROWS at a time.  Neighboring lanes read neighboring words of PACKED weights, and the numbers of x that
// belong to them.
enum { PACKED = 32 / BITS, OUTPUTS = 4 };

__device__ __forceinline__ real weight(unsigned word, int k) {
    return BITS == 8 ? (int)(signed char)(word >> 8 * k) : (int)(word >> 4 * k & 15) - 8;
}

extern "C" __global__ void quant_matvec(real *y, const real *x, const unsigned char *w, const real *scales, idx N,
                                        idx E, idx D, idx G, idx aligned) {
    const unsigned lane = threadIdx.x % WARP;
    const idx e = ((idx)blockIdx.x * blockDim.x + threadIdx.x) / WARP * OUTPUTS, n = (idx)blockIdx.y * ROWS;
    if (e >= E) return;
    real sum[OUTPUTS][ROWS] = {};
    for (unsigned d = lane * PACKED; d < D; d += WARP * PACKED) {
        unsigned word[OUTPUTS];
        real scale[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            const idx row = e + o < E ? e + o : E - 1;      // a row too many is read, and not written
            word[o] = *(const unsigned *)(w + (row * D + d) / PACKED * sizeof(unsigned));
            scale[o] = scales[row * (D / G) + d / (unsigned)G];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const idx row = n + r < N ? n + r : N - 1;
            real dot[OUTPUTS] = {};
#pragma unroll
            for (int part = 0; part < PACKED; part += WIDE) {
                wide v = load(x + row * D, d + part, D, aligned);
#pragma unroll
                for (int k = 0; k < WIDE; k++)
#pragma unroll
                    for (int o = 0; o < OUTPUTS; o++) dot[o] += weight(word[o], part + k) * v.at[k];
            }
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) sum[o][r] += scale[o] * dot[o];
        }
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const real total = warp_sum(sum[o][r]);
            if (lane == 0 && e + o < E && n + r < N) y[(n + r) * E + e + o] = total;
        }
}
