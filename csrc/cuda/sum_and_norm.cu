// See pyllama/training/optim.py.
//
// Squares are made and added in double.  Each block adds up a share of them that depends on n and gridDim.x alone,
// which the caller takes from n: the same norm in every run.  Neighboring threads read neighboring numbers.

extern "C" __global__ void sum_and_norm(const real *g, double *parts, idx n, idx aligned) {
    __shared__ double room[WARPS];
    double squares = 0;
    for (idx i = ((idx)blockIdx.x * blockDim.x + threadIdx.x) * WIDE; i < n; i += (idx)gridDim.x * blockDim.x * WIDE) {
        wide v = load(g, i, n, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) squares += (double)v.at[k] * v.at[k];
    }
    squares = block_sum(squares, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = squares;
}
