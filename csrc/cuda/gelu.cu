// See pyllama/ops/gelu.py for the derivation.
//
// A thread for every WIDE numbers.  1 + tanh u and 1 + erf(x/√2) would cancel in the lower tail; 2σ(2u) and
// erfc(-x/√2), which are the same, do not.

const real ROOT_2_PI = 0.79788456080286535588;              // √(2/π)

// Φ(x) and φ(x), or their tanh approximation and its slope.
struct normal {
    real below, density;
};

__device__ __forceinline__ normal normal_of(real x, bool tanh) {
    if (!tanh) return {erfc(x * (real)-0.70710678118654752440) / 2, exp(x * x / -2) * ROOT_2_PI / 2};
    const real square = (real)0.044715 * x * x, s = sigmoid(2 * ROOT_2_PI * x * (1 + square));
    return {s, s * (1 - s) * 2 * ROOT_2_PI * (1 + 3 * square)};
}

extern "C" __global__ void gelu(real *y, const real *x, idx tanh, idx n, idx aligned) {
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide v = load(x, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) v.at[k] *= normal_of(v.at[k], tanh).below;
    store(y, i, n, v, aligned);
}

extern "C" __global__ void gelu_backward(real *dx, const real *dy, const real *x, idx tanh, idx n, idx aligned) {
    const idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE;
    if (i >= n) return;
    wide g = load(dy, i, n, aligned), v = load(x, i, n, aligned);
#pragma unroll
    for (int k = 0; k < WIDE; k++) {
        const normal at = normal_of(v.at[k], tanh);
        g.at[k] *= at.below + v.at[k] * at.density;
    }
    store(dx, i, n, g, aligned);
}
