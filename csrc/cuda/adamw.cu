// See pyllama/training/optim.py for the rule.  Here it is one pass: each number is read and written once.
//
// A thread for every WIDE numbers.  g * scale is made in double: a scale that tames a huge gradient may be too
// small for float; it is on the device, because it depends on the gradient.  c1 = 1 - b1^t and c2 = √(1 - b2^t).

extern "C" __global__ void adamw(real *p, real *m, real *v, const real *g, const double *scale, double lr, double decay,
                                 double b1, double b2, double eps, double c1, double c2, idx n, idx aligned) {
    const real old1 = b1, new1 = 1 - b1, old2 = b2, new2 = 1 - b2, least = eps, rate = lr, pull = decay;
    const real correct1 = c1, correct2 = c2;
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide ps = load(p, i, n, aligned), ms = load(m, i, n, aligned), vs = load(v, i, n, aligned);
    wide gs = load(g, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) {
        const real gk = gs.at[k] * *scale;
        ms.at[k] = old1 * ms.at[k] + new1 * gk;
        vs.at[k] = old2 * vs.at[k] + new2 * (gk * gk);
        ps.at[k] -= rate * (ms.at[k] / (sqrt(vs.at[k]) / correct2 + least) / correct1 + pull * ps.at[k]);
    }
    store(p, i, n, ps, aligned);
    store(m, i, n, ms, aligned);
    store(v, i, n, vs, aligned);
}
