/* C = A B or C += A B of bfloat16 numbers: every product of two is exact, and they are added in float.
 *
 * (a) A block of B is packed and stays in the second cache.  A panel of A meets it a chunk along K at a time, short
 *     enough to stay in the first.
 * (b) A C of reals is the sum itself.  A C of bfloat16 is rounded once, from the sums of a panel in `work`; or of
 *     `tall` rows, where K is so long that a block has only a part of it.
 * (c) An A whose columns are contiguous is packed GROUP panels at a time: a cache line of it belongs to several.
 * (d) Each thread computes a rectangle of C by itself, cut along the longer side between tiles, and chunks depend on K
 *     alone: no bit depends on the number of threads.
 *
 * Instructions for bfloat16 take subnormal numbers for 0, and so they do with subnormal sums.
 */
#include "dots.h"

typedef struct {                                   /* element (i, j) is at[i * down + j * right] */
    const number *at;
    idx down, right;                               /* one of them is 1 */
} factor;

typedef struct {                                   /* C */
    void *at;                                      /* numbers if narrow, else reals */
    idx down;
    int narrow;
    const real *bias;                              /* of each column, or NULL; of a narrow C only */
} result;

typedef struct {                                   /* where the sums of a panel of A and a block of B are added up */
    real *sums;
    idx down;
    int padded;                                    /* with room for whole tiles */
    number *to;                                    /* where they are rounded to when they are complete, or NULL */
    idx to_down;
    const real *bias;
} target;

enum { SPAN = 256, LONGEST_CHUNK = SPAN * 3 / 2, LONG = 1024, BROAD = 1024, GROUP = 4, FEWEST = 4 };

INLINE idx whole(idx n, idx unit) { return parts_of(n, unit) * unit; }
INLINE factor part_of(factor m, idx i, idx j) { return (factor){m.at + i * m.down + j * m.right, m.down, m.right}; }

/* to[n] = sums + bias */
static void round_sums(number *restrict to, const real *restrict sums, const real *restrict bias, idx n) {
    #pragma omp simd
    for (idx j = 0; j < n; j++) to[j] = put(bias ? sums[j] + bias[j] : sums[j]);
}

#ifdef __AMX_BF16__
#include "tiles16.h"
#else
#include "panel16.h"
#endif

enum { B_BLOCK = (1 << 20) / sizeof(packed), PANELS = GROUP * DOWN * LONG, SUMS = DOWN * (BROAD + 16),
       PRODUCT_WORK = (B_BLOCK + PANELS) * sizeof(packed) / sizeof(real) + SUMS };
_Static_assert(LONG * ACROSS <= B_BLOCK, "a block has no room for one panel");
_Static_assert(LONGEST_CHUNK + 32 <= LONG, "there is no room for a panel of packed rows");
_Static_assert(BROAD / ACROSS && DOWN / FEWEST, "there is no room for the sums of a narrow C");

typedef struct {
    idx chunk, part;                               /* along K: of a panel of A, of a block of B */
    idx wide, tall;                                /* columns of a block, rows that it meets */
    idx ldc, apart;                                /* of the sums of a narrow C: between rows, between panels' rows */
} cuts;

static cuts cut(int narrow, idx M, idx N, idx K) {
    const idx half = second_cache / 2 / sizeof(packed), few = LONG * ACROSS;
    const idx block = half < few ? few : least(half, B_BLOCK);
    K += !K;                                       /* an empty sum takes a chunk, too */
    const idx chunks = K < SPAN ? 1 : (K + SPAN / 2 - 1) / SPAN, chunk = whole((K + chunks - 1) / chunks, STEP);
    const idx longest = narrow ? block / ACROSS : LONG, part = least(longest / chunk * chunk, whole(K, STEP));
    const idx most = least(block / part, BROAD) / ACROSS * ACROSS, blocks = (N + most - 1) / most;
    const idx wide = whole((N + blocks - 1) / blocks, ACROSS), ldc = wide + 16;          /* not a power of two */
    const int together = narrow && part < K;
    return (cuts){chunk, part, wide, together ? SUMS / ldc / DOWN * DOWN : M, ldc, together ? ldc : 0};
}

static void pack_block(packed *to, factor b, idx K, idx cols) {
    for (idx j = 0; j < cols; j += ACROSS)
        pack_b(to + j * whole(K, STEP), part_of(b, 0, j), K, least(cols - j, ACROSS));
}

static void pack_group(packed *to, factor a, idx rows, idx K) {
    for (idx k = 0; k < K; k += STEP)
        for (idx i = 0; i < rows; i += DOWN)
            pack_a(to + i * whole(K, STEP) + k * DOWN, part_of(a, i, k), least(rows - i, DOWN), least(K - k, STEP));
}

/* C[M N] and a block of B; complete: its last part along K */
static void product_of_block(result c, factor a, packed *block, cuts by, idx M, idx N, idx K, int accumulate,
                             int complete) {
    packed *panels = block + B_BLOCK;
    real *sums = (real *)(panels + PANELS);
    const int grouped = a.right != 1 && !c.narrow;
    for (idx i = 0; i < M; i += DOWN) {
        const idx rows = least(M - i, DOWN);
        const packed *ready = grouped ? panels + i / DOWN % GROUP * DOWN * whole(K, STEP) : NULL;
        if (grouped && i % (GROUP * DOWN) == 0) pack_group(panels, part_of(a, i, 0), least(M - i, GROUP * DOWN), K);
        target t = {sums + i * by.apart, by.ldc, 1, complete ? (number *)c.at + i * c.down : NULL, c.down, c.bias};
        if (!c.narrow) t = (target){(real *)c.at + i * c.down, c.down, 0, NULL, 0, NULL};
        panel(t, part_of(a, i, 0), ready, panels, block, rows, N, K, by.chunk, accumulate);
    }
}

INLINE result part_of_result(result c, idx i, idx j) {
    c.at = (char *)c.at + (i * c.down + j) * (c.narrow ? sizeof(number) : sizeof(real));
    if (c.bias) c.bias += j;
    return c;
}

/* work: PRODUCT_WORK reals */
static void product_of_part(result c, factor a, factor b, idx M, idx N, idx K, int accumulate, real *work) {
    packed *block = (packed *)work;
    const cuts by = cut(c.narrow, M, N, K);
    begin_tiles();
    for (idx j = 0; j < N; j += by.wide)
        for (idx i = 0; i < M; i += by.tall) {
            const idx m = least(M - i, by.tall), n = least(N - j, by.wide);
            idx k = 0;
            do {
                const idx part = least(K - k, by.part);
                if (by.part < K || !i) pack_block(block, part_of(b, k, j), part, n);
                product_of_block(part_of_result(c, i, j), part_of(a, i, k), block, by, m, n, part, accumulate || k,
                               k + part == K);
                k += part;
            } while (k < K);
        }
    release_tiles();
}

/* Few rows of a times bᵀ: see dots.h. */
static void product_of_few(result c, factor a, factor b, idx M, idx N, idx K, int accumulate, real *work) {
    real *wide = work, *sums = work + PRODUCT_WORK - SUMS;
    for (idx i = 0; i < M; i++) widen(BFLOAT16, wide + i * K, (const char *)(a.at + i * a.down), K);
    for (idx j = 0; j < N; j += BROAD) {
        const idx n = least(N - j, BROAD);
        const result part = part_of_result(c, 0, j);
        real *to = c.narrow ? sums : part.at;
        dots(BFLOAT16, to, c.narrow ? BROAD : c.down, wide, K, (const char *)(b.at + j * b.right),
             b.right * sizeof(number), M, n, K, accumulate);
        for (idx i = 0; c.narrow && i < M; i++)
            round_sums((number *)part.at + i * c.down, sums + i * BROAD, part.bias, n);
    }
}

/* C[M N] from A[M K] and B[K N]; work: PRODUCT_WORK reals for each thread, aligned to 64 bytes */
static void product(void *c, idx ldc, int narrow, const real *bias, const number *a, idx a_down, idx a_right,
                    const number *b, idx b_down, idx b_right, idx M, idx N, idx K, int accumulate, real *work,
                    int threads) {
    const factor A = {a, a_down, a_right}, B = {b, b_down, b_right};
    const result C = {c, ldc, narrow, bias};
    const int by_rows = M > N;
    const int few = M <= FEWEST && a_right == 1 && b_down == 1 && M * K <= PRODUCT_WORK - SUMS;
    const idx share = by_rows ? share_of(M, DOWN, threads) : share_of(N, ACROSS, threads);
    #pragma omp parallel for num_threads(threads) if (M * N * K > 64 * GRAIN)
    for (int t = 0; t < threads; t++) {
        const idx i = by_rows ? t * share : 0, m = least(M - i, by_rows ? share : M);
        const idx j = by_rows ? 0 : t * share, n = least(N - j, by_rows ? N : share);
        if (m <= 0 || n <= 0) continue;
        (few ? product_of_few : product_of_part)(part_of_result(C, i, j), part_of(A, i, 0), part_of(B, 0, j), m, n, K,
                                        accumulate, work + t * PRODUCT_WORK);
    }
}

/* The product as linear_cross_entropy.c calls it */
static void gemm(real *c, idx ldc, const number *a, idx a_down, idx a_right, const number *b, idx b_down, idx b_right,
                 idx M, idx N, idx K, int accumulate, real *work, int threads) {
    product(c, ldc, 0, NULL, a, a_down, a_right, b, b_down, b_right, M, N, K, accumulate, work, threads);
}
