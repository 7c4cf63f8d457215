// Shared by the kernels of attention: products of tiles, from shared memory into registers.
//
// A block has a left tile of ROWS rows and meets one right tile of COLS rows after another.  A thread takes EACH rows
// of the left, which its 8 neighbors, the LANES, share; ACROSS rows of the right; their products; and every eighth 16
// bytes of its rows of a result [ROWS WIDTH].  WIDTH, a multiple of 32, is a head's width K rounded up, with zeros.
// Tiles come a PIECE of the width at a time, 256 bytes, so that shared memory does not grow with it.
//
// Global memory: 16 neighboring threads read 256 neighboring bytes, 8 write 128.  Shared memory: a row of a tile is
// an odd number of 16 bytes long, so that the rows that 8 lanes read at once lie in different banks; a row of weights
// is 8 numbers longer than COLS, so that the lanes of the four rows of a warp write to different banks.
//
// Sums are multiply-adds in ascending order.  Tensor cores would round the factors to 11 bits (TF32) or 8 (bfloat16).
//
// Compiled for WIDTH, EACH and ALIGNED: may numbers be loaded 16 bytes at a time?  Loads that had to ask would wait for
// one another.  With EXTRA, also for attention's optional inputs and options: see the end.
enum { THREADS = 128, LANES = 8, ROWS = THREADS / LANES * EACH, COLS = 32, ACROSS = COLS / LANES };
enum { LONG = 256 / sizeof(real), PIECE = WIDTH % LONG ? 32 : LONG, SPAN = PIECE + WIDE, LINE = COLS + 8 };
enum { WORDS = EACH * WIDTH / LANES * sizeof(real) / 4 };   // registers of a thread for its share of a result

// `scale` times the rows at[i], or i step, numbers from `from`.  Past the end of `count` the last row is read again:
// to read values that nobody uses is cheaper than a branch.
struct rows {
    const real *from;
    real scale;
    const idx *at;
    idx step;
    int count;
};

__device__ __forceinline__ int lane() { return threadIdx.x % LANES; }
__device__ __forceinline__ int row(int i) { return threadIdx.x / LANES + i * (THREADS / LANES); }
__device__ __forceinline__ int col(int j) { return lane() + j * LANES; }
__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ real minus_infinity() { return log((real)0); }             // -∞; NVRTC has no INFINITY

// The queries of a block: 2^shift times from t on, of ROWS / 2^shift heads from r on, so that even a single time fills
// a tile; and the keys that any of them sees, a share of them if `splits` blocks have the same queries.  If causal,
// late queries see more keys: their blocks go first.
struct block {
    idx split, b, g;
    int r, t, shift, R, T, first, past;
    __device__ __forceinline__ block(idx G, idx R, idx T, idx S, idx behind, idx ahead, idx shift, idx splits)
        : shift(shift), R(R), T(T) {
        idx n = blockIdx.x, times = 1 << shift, parts = (T + times - 1) / times, bands = (R * times + ROWS - 1) / ROWS;
        t = (parts - 1 - n % parts) * times, n /= parts, r = n % bands * (ROWS / times), n /= bands;
        split = n % splits, n /= splits, g = n % G, b = n / G;
        first = most(t + S - T - behind, 0), past = least(least(t + times, T) + S - T + ahead, S);
        int share = ((past - first + COLS - 1) / COLS + splits - 1) / splits * COLS;
        first += split * share, past = least(first + share, past);
    }
    __device__ __forceinline__ int head(int i) { return r + (i >> shift); }
    __device__ __forceinline__ int time(int i) { return t + (i & ((1 << shift) - 1)); }
    __device__ __forceinline__ bool has(int i) { return head(i) < R && time(i) < T; }
    __device__ __forceinline__ idx place(int i, idx to_head, idx to_time) {
        return least(head(i), R - 1) * to_head + least(time(i), T - 1) * to_time;
    }
};

// tile[N PIECE] = x from column c on.  A thread's loads fly four at a time, with no branch between: past K, column 0
// is read.
template <int N> __device__ __forceinline__ void fill(real *tile, rows x, int c, idx K) {
    enum { STEP = THREADS / (PIECE / WIDE), MOST = ALIGNED ? 4 : 2, BATCH = N < MOST * STEP ? N / STEP : MOST };
    int k = threadIdx.x % (PIECE / WIDE) * WIDE, first = threadIdx.x / (PIECE / WIDE);
    bool inside = c + k < K;
#pragma unroll 1
    for (int n = 0; n < N; n += BATCH * STEP) {
        wide a[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            int i = first + n + j * STEP;
            a[j] = load(x.from + (x.at ? x.at[i] : least(i, x.count - 1) * x.step), inside ? c + k : 0, K, ALIGNED);
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
#pragma unroll
            for (int e = 0; e < WIDE; e++) a[j].at[e] = inside ? a[j].at[e] * x.scale : 0;
            *(wide *)(tile + (first + n + j * STEP) * SPAN + k) = a[j];
        }
    }
}

// a[ROWS COLS] += x yᵀ; an x of one piece need not be filled again.
__device__ __forceinline__ void multiply(real (&a)[EACH][ACROSS], real *left, rows x, bool again, real *right, rows y,
                                         idx K) {
#pragma unroll 1
    for (int c = 0; c < WIDTH; c += PIECE) {
        __syncthreads();
        if (WIDTH > PIECE || again) fill<ROWS>(left, x, c, K);
        fill<COLS>(right, y, c, K);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < PIECE; k += WIDE) {
            wide p[EACH], q[ACROSS];
#pragma unroll
            for (int i = 0; i < EACH; i++) p[i] = *(wide *)(left + row(i) * SPAN + k);
#pragma unroll
            for (int j = 0; j < ACROSS; j++) q[j] = *(wide *)(right + col(j) * SPAN + k);
#pragma unroll
            for (int e = 0; e < WIDE; e++)
#pragma unroll
                for (int i = 0; i < EACH; i++)
#pragma unroll
                    for (int j = 0; j < ACROSS; j++) a[i][j] += p[i].at[e] * q[j].at[e];
        }
    }
}

// sums[ROWS WIDTH] += weights[ROWS COLS] y.  A warp reads the weights of its own rows, which it has written itself.
__device__ __forceinline__ void add(real (&sums)[EACH][WIDTH / LANES], real *weights, real *right, rows y, bool again,
                                    idx K) {
#pragma unroll
    for (int c = 0; c < WIDTH; c += PIECE) {
        __syncthreads();
        if (WIDTH > PIECE || again) {
            fill<COLS>(right, y, c, K);
            __syncthreads();
        }
#pragma unroll 1
        for (int s = 0; s < COLS; s += WIDE) {
            wide p[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) p[i] = *(wide *)(weights + row(i) * LINE + s);
#pragma unroll
            for (int e = 0; e < WIDE; e++)
#pragma unroll
                for (int k = 0; k < PIECE / LANES; k += WIDE) {
                    wide q = *(wide *)(right + (s + e) * SPAN + k * LANES + lane() * WIDE);
#pragma unroll
                    for (int i = 0; i < EACH; i++)
#pragma unroll
                        for (int l = 0; l < WIDE; l++) sums[i][c / LANES + k + l] += p[i].at[e] * q.at[l];
                }
        }
    }
}

// x[K] = scale times one of the thread's rows
__device__ __forceinline__ void put(real *x, const real (&sums)[WIDTH / LANES], real scale, idx K) {
#pragma unroll
    for (int k = 0; k < WIDTH / LANES; k += WIDE) {
        int c = k * LANES + lane() * WIDE;
        wide a;
#pragma unroll
        for (int l = 0; l < WIDE; l++) a.at[l] = sums[k + l] * scale;
        if (c < K) store(x, c, K, a, ALIGNED);
    }
}

// Masks of pairs, segments, a bias, a scale and a softcap take registers, so they are compiled only where they are used.
// A kernel makes `more` of its last parameters; FEWER blocks then share the registers.
#ifdef EXTRA
enum { FEWER = 1 };
#define SCALE (real)factor
#define EXTRAS                                                                                                         \
    , const idx *of_keys, const idx *of_queries, const real *bias, real *dbias, idx mask_b, idx mask_t, idx bias_b,    \
        idx bias_h, double factor, double softcap
#define MORE(b)                                                                                                        \
    extras more = {mask ? mask + b * mask_b : mask, of_keys ? of_keys + b * S : of_keys,                               \
                   of_keys ? of_queries + b * T : of_queries, bias ? bias + b * bias_b : bias, mask_t, bias_h, S,      \
                   (real)softcap}

struct extras {                                                                      // of one sequence
    const bool *mask;
    const idx *keys, *queries;
    const real *bias;
    idx mask_t, bias_h, S;
    real softcap;
    __device__ __forceinline__ bool hides(idx t, idx s) {
        return (mask && !mask[t * mask_t + s]) || (keys && keys[s] != queries[t]);
    }
    __device__ __forceinline__ real capped(real z) { return softcap ? softcap * tanh(z / softcap) : z; }
    __device__ __forceinline__ real slope(real u) { return softcap ? 1 - u / softcap * (u / softcap) : 1; }
    __device__ __forceinline__ real added(idx h, idx t, idx s) { return bias ? bias[h * bias_h + t * S + s] : 0; }
};
#else
enum { FEWER = 0 };
#define SCALE 1 / sqrt((real)K)
#define EXTRAS
#define MORE(b)
#endif
