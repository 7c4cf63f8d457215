// See pyllama/ops/layer_norm.py for the derivation.
//
// A block for each row forward, and for each share of the rows backward; neighboring threads read neighboring
// numbers.  Backward keeps a block's shares of dw and db in rows of `dws` and `dbs` [gridDim.x D], as rms_norm.cu does.

extern "C" __global__ void layer_norm(real *y, real *n, real *r, const real *x, const real *w, const real *b,
                                      double eps, idx D, idx aligned) {
    __shared__ real room[WARPS];
    const idx row = blockIdx.x * D;
    real sum = 0, squares = 0;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(x + row, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) sum += v.at[k];
    }
    const real mean = block_sum(sum, room) / D;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(x + row, d, D, aligned, mean);
#pragma unroll
        for (int k = 0; k < WIDE; k++) squares += (v.at[k] - mean) * (v.at[k] - mean);
    }
    const real inverse = 1 / sqrt(block_sum(squares, room) / D + (real)eps);
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        wide v = load(x + row, d, D, aligned), g = load(w, d, D, aligned), shift = load(b, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) {
            v.at[k] = (v.at[k] - mean) * inverse;
            g.at[k] = g.at[k] * v.at[k] + shift.at[k];
        }
        store(n + row, d, D, v, aligned);
        store(y + row, d, D, g, aligned);
    }
    if (threadIdx.x == 0) r[blockIdx.x] = inverse;
}

extern "C" __global__ void layer_norm_backward(real *dx, real *dws, real *dbs, const real *dy, const real *n,
                                               const real *w, const real *r, idx N, idx D, idx aligned) {
    __shared__ real room[WARPS];
    dws += blockIdx.x * D, dbs += blockIdx.x * D;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        store(dws, d, D, wide{}, aligned);
        store(dbs, d, D, wide{}, aligned);
    }
    for (idx i = blockIdx.x; i < N; i += gridDim.x) {
        const idx row = i * D;
        real g_sum = 0, gn_sum = 0;
        for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
            wide g = load(dy + row, d, D, aligned), v = load(n + row, d, D, aligned), b = load(w, d, D, aligned);
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                g_sum += b.at[k] * g.at[k];
                gn_sum += b.at[k] * g.at[k] * v.at[k];
            }
        }
        const real g_mean = block_sum(g_sum, room) / D, gn_mean = block_sum(gn_sum, room) / D;
        for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
            wide g = load(dy + row, d, D, aligned), v = load(n + row, d, D, aligned), b = load(w, d, D, aligned);
            wide dw = load(dws, d, D, aligned), db = load(dbs, d, D, aligned);
#pragma unroll
            for (int k = 0; k < WIDE; k++) {
                dw.at[k] += g.at[k] * v.at[k];
                db.at[k] += g.at[k];
                v.at[k] = r[i] * (b.at[k] * g.at[k] - g_mean - v.at[k] * gn_mean);
            }
            store(dx + row, d, D, v, aligned);
            store(dws, d, D, dw, aligned);
            store(dbs, d, D, db, aligned);
        }
    }
}
