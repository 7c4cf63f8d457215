// See pyllama/ops/relu.py for the derivation.  NaN is neither <= 0 nor > 0.
//
// A thread for every WIDE numbers.

extern "C" __global__ void relu(real *y, const real *x, idx n, idx aligned) {
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide v = load(x, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) v.at[k] = v.at[k] <= 0 ? 0 : v.at[k];
    store(y, i, n, v, aligned);
}

extern "C" __global__ void relu_backward(real *dx, const real *dy, const real *x, idx n, idx aligned) {
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide g = load(dy, i, n, aligned), v = load(x, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) g.at[k] = v.at[k] > 0 ? g.at[k] : 0;
    store(dx, i, n, g, aligned);
}
