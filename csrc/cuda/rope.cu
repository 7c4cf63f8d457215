// See pyllama/ops/rope.py for the derivation.
//
// A block for each position of each sequence, whose heads share a row of cos and sin; a thread turns WIDE neighboring
// pairs at a time.  x is read where it lies: the next sequence, position and head are xa, xt and xh numbers away.  y is
// dense, [A T H 2P], as a model has its heads: side by side at each position.

__device__ __forceinline__ void rotate(real &a, real &b, real cos, real sin) {
    real before = a;
    a = before * cos - b * sin;
    b = before * sin + b * cos;
}

extern "C" __global__ void rope(real *y, const real *x, const real *cos, const real *sin, double direction,
                                idx interleaved, idx T, idx H, idx P, idx xa, idx xt, idx xh, idx aligned) {
    // Quotients of 32 bits: those of 64 take several times as long.
    const unsigned sequence = blockIdx.x / (unsigned)T, t = blockIdx.x % (unsigned)T;
    const unsigned groups = (P + WIDE - 1) / WIDE, all = H * groups;
    for (unsigned i = threadIdx.x; i < all; i += blockDim.x) {
        const idx h = i / groups, p = i % groups * WIDE;
        const real *from = x + sequence * xa + t * xt + h * xh;
        real *to = y + (blockIdx.x * H + h) * 2 * P;
        wide c = load(cos + t * P, p, P, aligned), s = load(sin + t * P, p, P, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) s.at[k] *= (real)direction;
        if (interleaved) {
            wide u = load(from, 2 * p, 2 * P, aligned), v = load(from, 2 * p + WIDE, 2 * P, aligned);
#pragma unroll
            for (int k = 0; k < WIDE / 2; k++) {
                rotate(u.at[2 * k], u.at[2 * k + 1], c.at[k], s.at[k]);
                rotate(v.at[2 * k], v.at[2 * k + 1], c.at[WIDE / 2 + k], s.at[WIDE / 2 + k]);
            }
            store(to, 2 * p, 2 * P, u, aligned);
            store(to, 2 * p + WIDE, 2 * P, v, aligned);
        } else {
            wide u = load(from, p, P, aligned), v = load(from + P, p, P, aligned);
#pragma unroll
            for (int k = 0; k < WIDE; k++) rotate(u.at[k], v.at[k], c.at[k], s.at[k]);
            store(to, p, P, u, aligned);
            store(to + P, p, P, v, aligned);
        }
    }
}
