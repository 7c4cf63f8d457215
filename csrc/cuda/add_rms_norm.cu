// See pyllama/ops/add_rms_norm.py for the derivation.  After rms_norm.cu, which says how the work is laid out.

extern "C" __global__ void add_rms_norm(real *s, real *y, real *r, const real *x, const real *a, const real *w,
                                        double eps, idx D, idx aligned) {
    __shared__ real room[WARPS];
    rms_norm_row(y, r, s, x, a, w, eps, D, aligned, room);
}

extern "C" __global__ void add_rms_norm_backward(real *dx, real *parts, const real *ds, const real *dy, const real *s,
                                                 const real *w, const real *r, idx N, idx D, idx aligned) {
    __shared__ real room[WARPS];
    rms_norm_rows_backward(dx, parts, ds, dy, s, w, r, N, D, aligned, room);
}
