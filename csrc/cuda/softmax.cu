// See pyllama/ops/softmax.py for the derivation.
//
// A block for each row; neighboring threads read neighboring numbers.  One pass finds both the highest entry and the
// sum of the exponentials: a thread scales its sum down when it meets a higher entry.

// Of a row: the number to subtract before an exponential (the highest entry, or 0 if none is above -∞), and
// Σ exp(x - high).  NaN is passed over by the maximum; it comes through in the sum.
struct exponentials {
    real high, total;
};

__device__ __forceinline__ exponentials exponentials_of(const real *x, idx D, idx aligned, real *room) {
    const real least = -1 / (real)0;
    real high = least, total = 0;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(x, d, D, aligned, least);
        real before = high;
#pragma unroll
        for (int k = 0; k < WIDE; k++) high = v.at[k] > high ? v.at[k] : high;
        const real base = high > least ? high : 0;
        if (high > before) total *= exp(before - base);
#pragma unroll
        for (int k = 0; k < WIDE; k++) total += exp(v.at[k] - base);
    }
    const real highest = block_max(high, room), base = highest > least ? highest : 0;
    return {base, block_sum(total * exp(high - base), room)};
}

extern "C" __global__ void softmax(real *y, const real *x, idx D, idx aligned) {
    __shared__ real room[WARPS];
    const idx row = blockIdx.x * D;
    const exponentials e = exponentials_of(x + row, D, aligned, room);
    const real scale = e.total == 0 ? 0 : 1 / e.total;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(x + row, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) v.at[k] = exp(v.at[k] - e.high) * scale;
        store(y + row, d, D, v, aligned);
    }
}

extern "C" __global__ void softmax_backward(real *dx, const real *dy, const real *y, idx D, idx aligned) {
    __shared__ real room[WARPS];
    const idx row = blockIdx.x * D;
    real sum = 0;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide g = load(dy + row, d, D, aligned), p = load(y + row, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) sum += g.at[k] * p.at[k];
    }
    sum = block_sum(sum, room);
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide g = load(dy + row, d, D, aligned), p = load(y + row, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) p.at[k] *= g.at[k] - sum;
        store(dx + row, d, D, p, aligned);
    }
}
