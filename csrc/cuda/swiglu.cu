// See pyllama/ops/swiglu.py for the derivation.
//
// A thread for every WIDE numbers.

extern "C" __global__ void swiglu(real *y, const real *g, const real *u, idx n, idx aligned) {
    idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide a = load(g, i, n, aligned), b = load(u, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) a.at[k] *= sigmoid(a.at[k]) * b.at[k];
    store(y, i, n, a, aligned);
}

extern "C" __global__ void swiglu_backward(real *dg, real *du, const real *dy, const real *g, const real *u, idx n,
                                           idx aligned) {
    idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide d = load(dy, i, n, aligned), a = load(g, i, n, aligned), b = load(u, i, n, aligned), c;
#pragma unroll
    for (int k = 0; k < WIDE; k++) {
        real s = sigmoid(a.at[k]);
        c.at[k] = d.at[k] * b.at[k] * s * (1 + a.at[k] * (1 - s));
        b.at[k] = d.at[k] * a.at[k] * s;
    }
    store(dg, i, n, c, aligned);
    store(du, i, n, b, aligned);
}
