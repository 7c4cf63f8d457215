// See pyllama/ops/cross_entropy.py for the derivation.  After softmax.cu; linear_cross_entropy.cu uses the rows too.
//
// A block for each row of logits z [N V]; neighboring threads read neighboring numbers.  A target outside 0 .. V-1
// that is not ignore_index makes its row NaN.

// The loss of a row with the target t, and its log-sum-exp.  Terms that cancel where the model is sure are added in
// double.
__device__ __forceinline__ real row_loss(real *lse, const real *z, idx t, double smoothing, double z_loss, idx V,
                                         idx aligned, real *room) {
    const real target = 0 <= t && t < V ? z[t] : 0 / (real)0;           // read before a barrier: z may become dz
    const exponentials e = exponentials_of(z, V, aligned, room);
    *lse = e.high + log(e.total == 0 ? 1 : e.total);
    const double loss = *lse - (1 - smoothing) * target + z_loss * *lse * *lse;
    if (smoothing == 0) return loss;                                    // 0 times a logit of -∞ would be NaN
    real sum = 0;
    for (idx v = threadIdx.x * WIDE; v < V; v += blockDim.x * WIDE) {
        wide some = load(z, v, V, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) sum += some.at[k];
    }
    return loss - smoothing * (block_sum(sum, room) / V);
}

// Its gradient times scale, or zeros; dz may be z.  Scaled last: where p is 1, the difference is then exactly 0.
__device__ __forceinline__ void row_gradient(real *dz, const real *z, idx t, bool counts, real lse, double smoothing,
                                             double z_loss, real scale, idx V, idx aligned) {
    const real slope = 1 + 2 * z_loss * lse, even = smoothing / V, peak = 1 - smoothing;
    if (t < 0 || t >= V) scale = 0 / (real)0;
    for (idx v = threadIdx.x * WIDE; v < V; v += blockDim.x * WIDE) {
        wide d = {};
        if (counts) d = load(z, v, V, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) {
            real q = v + k == t ? peak : 0;
            if (counts) d.at[k] = (slope * exp(d.at[k] - lse) - even - q) * scale;
        }
        store(dz, v, V, d, aligned);
    }
}

extern "C" __global__ void cross_entropy(real *lse, real *loss, const real *z, const idx *t, idx ignore_index,
                                         double smoothing, double z_loss, idx V, idx aligned) {
    __shared__ real room[WARPS];
    const idx n = blockIdx.x;
    const bool counts = t[n] != ignore_index;
    real of_row, here = row_loss(&of_row, z + n * V, t[n], smoothing, z_loss, V, aligned, room);
    if (threadIdx.x > 0) return;
    lse[n] = of_row;
    loss[n] = counts ? here : 0;
}

extern "C" __global__ void cross_entropy_backward(real *dz, const real *z, const idx *t, const real *lse,
                                                  const real *scale, idx ignore_index, double smoothing, double z_loss,
                                                  idx V, idx aligned) {
    const idx n = blockIdx.x;
    row_gradient(dz + n * V, z + n * V, t[n], t[n] != ignore_index, lse[n], smoothing, z_loss, *scale, V, aligned);
}
