// The beginning of every kernel: `real`, the precision being compiled (-Dreal=float or double), and what a warp and a
// block do together.  CUDA text alone, without #include, so that NVRTC needs no headers.
//
// Arrays are dense and row-major unless a kernel says otherwise: N rows of D, or n numbers in all.  Whole numbers are
// idx, other scalars double, whatever the precision.  Nothing is added by atomics: a result does not depend on the
// order in which blocks run, so that it is the same in every run.
typedef long long idx;

enum { WARP = 32, WARPS = 32 };                             // threads of a warp; warps of a block at most
enum { WIDE = 16 / sizeof(real) };                          // numbers that one instruction loads: 16 bytes
const unsigned ALL = 0xffffffffu;                           // every lane of a warp

struct __align__(16) wide {
    real at[WIDE];
};

// x[i .. i + WIDE) of n numbers, and `outside` for those before or past them; in one piece where the caller knows that
// i and n are multiples of WIDE and that the address of x is one of 16 bytes.
__device__ __forceinline__ wide load(const real *x, idx i, idx n, idx aligned, real outside = 0) {
    if (aligned) return *(const wide *)(x + i);
    wide v;
#pragma unroll
    for (int k = 0; k < WIDE; k++) v.at[k] = 0 <= i + k && i + k < n ? x[i + k] : outside;
    return v;
}

__device__ __forceinline__ void store(real *y, idx i, idx n, wide v, idx aligned) {
    if (aligned) {
        *(wide *)(y + i) = v;
        return;
    }
#pragma unroll
    for (int k = 0; k < WIDE; k++)
        if (0 <= i + k && i + k < n) y[i + k] = v.at[k];
}

// The sum over a warp, in every lane of it: the same bits, because each lane adds the same pairs.
template <class T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL, v, step);
    return v;
}

__device__ __forceinline__ real warp_max(real v) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) v = fmax(v, __shfl_xor_sync(ALL, v, step));
    return v;
}

// The sum over a block of whole warps, in every thread.  All threads must call it; `room` holds WARPS numbers, and may
// be the same for call after call: the first barrier waits until the call before has been read.
template <class T> __device__ __forceinline__ T block_sum(T v, T *room) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % WARP < blockDim.x / WARP ? room[threadIdx.x % WARP] : 0);
}

// The largest of a block, as block_sum.  NaN is passed over.
__device__ __forceinline__ real block_max(real v, real *room) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    return warp_max(threadIdx.x % WARP < blockDim.x / WARP ? room[threadIdx.x % WARP] : v);
}

__device__ __forceinline__ real sigmoid(real x) {
    real e = exp(-fabs(x));                                 // never overflows
    return (x < 0 ? e : 1) / (1 + e);
}
