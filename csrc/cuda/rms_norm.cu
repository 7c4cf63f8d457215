// See pyllama/ops/rms_norm.py for the derivation.  The rows are those of add_rms_norm.cu too, which has an addend.
//
// A block for each row forward, and for each share of the rows backward; neighboring threads read neighboring
// numbers.  Backward keeps a block's share of dw in `parts` [gridDim.x D], which the caller adds up: each of its
// numbers belongs to one thread, so that no barrier is needed and the order of the sum is fixed.

// The block's row of y, and r.  With an addend `a` the row is that of s = x + a, which is kept.
__device__ __forceinline__ void rms_norm_row(real *y, real *r, real *s, const real *x, const real *a, const real *w,
                                             double eps, idx D, idx aligned, real *room) {
    const idx row = blockIdx.x * D;
    const real *from = a ? s : x;
    real squares = 0;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(x + row, d, D, aligned);
        if (a) {
            wide addend = load(a + row, d, D, aligned);
#pragma unroll
            for (int k = 0; k < WIDE; k++) v.at[k] += addend.at[k];
            store(s + row, d, D, v, aligned);
        }
#pragma unroll
        for (int k = 0; k < WIDE; k++) squares += v.at[k] * v.at[k];
    }
    real inverse = 1 / sqrt(block_sum(squares, room) / D + (real)eps);
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(from + row, d, D, aligned), g = load(w, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) v.at[k] *= g.at[k] * inverse;
        store(y + row, d, D, v, aligned);
    }
    if (threadIdx.x == 0) r[blockIdx.x] = inverse;
}

// The block's rows of dx, to which those of `ds` are added if it is given, and its share of dw.
__device__ __forceinline__ void rms_norm_rows_backward(real *dx, real *parts, const real *ds, const real *dy,
                                                       const real *x, const real *w, const real *r, idx N, idx D,
                                                       idx aligned, real *room) {
    real *part = parts + blockIdx.x * D;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) store(part, d, D, wide{}, aligned);
    for (idx n = blockIdx.x; n < N; n += gridDim.x) {
        const idx row = n * D;
        real gn = 0;
        for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
            wide g = load(dy + row, d, D, aligned), v = load(x + row, d, D, aligned), b = load(w, d, D, aligned);
#pragma unroll
            for (int k = 0; k < WIDE; k++) gn += b.at[k] * g.at[k] * v.at[k];
        }
        gn = block_sum(gn, room) * r[n] * r[n] / D;                                     // r mean(g n)
        for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
            wide g = load(dy + row, d, D, aligned), v = load(x + row, d, D, aligned), b = load(w, d, D, aligned);
            wide sum = load(part, d, D, aligned), other = ds ? load(ds + row, d, D, aligned) : wide{};
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                sum.at[k] += g.at[k] * v.at[k] * r[n];
                v.at[k] = other.at[k] + r[n] * (b.at[k] * g.at[k] - v.at[k] * gn);
            }
            store(dx + row, d, D, v, aligned);
            store(part, d, D, sum, aligned);
        }
    }
}

extern "C" __global__ void rms_norm(real *y, real *r, const real *x, const real *w, double eps, idx D, idx aligned) {
    __shared__ real room[WARPS];
    rms_norm_row(y, r, nullptr, x, nullptr, w, eps, D, aligned, room);
}

extern "C" __global__ void rms_norm_backward(real *dx, real *parts, const real *dy, const real *x, const real *w,
                                             const real *r, idx N, idx D, idx aligned) {
    __shared__ real room[WARPS];
    rms_norm_rows_backward(dx, parts, nullptr, dy, x, w, r, N, D, aligned, room);
}
