// See pyllama/training/optim.py for the rule.  Here it is one pass: each number is read and written once.
//
// A thread for every WIDE numbers.  g * scale is made in double, and scale is a number on the device, as in adamw.cu.

extern "C" __global__ void sgd(real *p, const real *g, const double *scale, double lr, double decay, idx n,
                               idx aligned) {
    const real rate = lr, pull = decay;
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide ps = load(p, i, n, aligned), gs = load(g, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) ps.at[k] -= rate * ((real)(gs.at[k] * *scale) + pull * ps.at[k]);
    store(p, i, n, ps, aligned);
}

extern "C" __global__ void sgd_with_momentum(real *p, real *v, const real *g, const double *scale, double lr,
                                             double decay, double momentum, idx nesterov, idx n, idx aligned) {
    const real rate = lr, pull = decay, mu = momentum, now = nesterov ? 1 : 0, past = nesterov ? mu : 1;
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide ps = load(p, i, n, aligned), vs = load(v, i, n, aligned), gs = load(g, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) {
        const real gk = gs.at[k] * *scale;
        vs.at[k] = mu * vs.at[k] + gk;
        ps.at[k] -= rate * (now * gk + past * vs.at[k] + pull * ps.at[k]);
    }
    store(p, i, n, ps, aligned);
    store(v, i, n, vs, aligned);
}
