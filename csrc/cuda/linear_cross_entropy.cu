// See pyllama/ops/linear_cross_entropy.py for the derivation.  After cross_entropy.cu, with its layout of the work.
//
// Of a chunk of rows: logits z [N V] become losses and, in place, their gradients for dloss = 1.

extern "C" __global__ void linear_cross_entropy(real *loss, real *z, const idx *t, const real *scale, idx ignore_index,
                                                double smoothing, double z_loss, idx V, idx aligned) {
    __shared__ real room[WARPS];
    const idx n = blockIdx.x;
    const bool counts = t[n] != ignore_index;
    real lse = 0, here = counts ? row_loss(&lse, z + n * V, t[n], smoothing, z_loss, V, aligned, room) : 0;
    row_gradient(z + n * V, z + n * V, t[n], counts, lse, smoothing, z_loss, *scale, V, aligned);
    if (threadIdx.x == 0) loss[n] = here;
}
