// See pyllama/ops/embedding.py for the derivation.
//
// Forward a block for each position, backward one for each piece of a position's row; neighboring threads read
// neighboring numbers.  Backward the caller sorts the positions by their ids, stably: the first of equal ones has the
// row of dw, to which it adds them all in their order, and the others do nothing.  (A block for each row of dw would
// find no position for most of the vocabulary.)  An id outside 0 .. V-1 gives NaN, and adds nothing.

extern "C" __global__ void embedding(real *y, const idx *ids, const real *w, idx D, idx V, idx aligned) {
    const idx id = ids[blockIdx.x];
    wide row;
#pragma unroll
    for (int k = 0; k < WIDE; k++) row.at[k] = 0 / (real)0;
    y += blockIdx.x * D;
    for (idx d = threadIdx.x * WIDE; d < D; d += blockDim.x * WIDE) {
        if (0 <= id && id < V) row = load(w + id * D, d, D, aligned);
        store(y, d, D, row, aligned);
    }
}

// Adds to dw.  Of the positions in the order of their ids: `order` is where each is, `ids` its id, `ends` the number of
// the first with a higher id.
extern "C" __global__ void embedding_backward(real *dw, const real *dy, const idx *order, const idx *ids,
                                              const idx *ends, idx D, idx V, idx aligned) {
    const unsigned pieces = (D + blockDim.x * WIDE - 1) / (blockDim.x * WIDE);
    const idx n = blockIdx.x / pieces, d = (blockIdx.x % pieces * blockDim.x + threadIdx.x) * WIDE;
    const idx id = ids[n], end = ends[n];
    if (d >= D || id < 0 || id >= V || (n > 0 && ids[n - 1] == id)) return;
    dw += id * D;
    wide sum = load(dw, d, D, aligned);
#pragma unroll 4
    for (idx i = n; i < end; i++) {
        wide addend = load(dy + order[i] * D, d, D, aligned);
#pragma unroll
        for (int k = 0; k < WIDE; k++) sum.at[k] += addend.at[k];
    }
    store(dw, d, D, sum, aligned);
}
