/* C = A B or C += A B, every large product: see tile.h for the inside.
 *
 * (a) A block of B, LONGEST x wide(), is packed and stays in the second cache, a panel of A in the first.
 * (b) K is cut into equal parts of at most LONGEST: a short rest would write C for few sums.  C is
 *     written once for each, TALL rows at a time, which stay in the third cache meanwhile.  A panel of B
 *     that long, some 30 KiB, leaves room in the first cache.
 * (c) Each thread computes a rectangle of C by itself, cut along the longer side.  It packs what it
 *     needs of A and B in its own part of `work`: no thread waits for another.
 * (d) The next tile of C, the next GROUP panels of A and the next block of B are fetched meanwhile: see
 *     tile.h.  Of a step's arrays little is in cache yet when they are needed.
 * (e) A BLAS may take the place of all this but (c), for comparison: use_blas() in pyllama/cpu.pyx.
 */
#include "dots.h"
#include "tile.h"

enum { WIDEST = (720 << 10) / LONGEST / sizeof(real) / NR * NR, GROUP = 8, TALL = 224 * MR,
       WORK = LONGEST * WIDEST + GROUP * PANEL, FEW = 576 / sizeof(real), FEW_ROWS = 4 };

typedef void cblas(int order, int transpose_a, int transpose_b, int M, int N, int K, real alpha,
                   const real *a, int lda, const real *b, int ldb, real beta, real *c, int ldc);

static int leading(matrix m, idx rows, idx cols) { /* a side of length 1 may have any stride */
    idx given = m.right == 1 ? m.down : m.right, least = m.right == 1 ? cols : rows;
    return given > least ? given : least;
}

static void blas_product(real *c, idx ldc, matrix a, matrix b, idx M, idx N, idx K, int accumulate) {
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    cblas *product = (cblas *)blas_gemm[REAL == 64];
    product(ROW_MAJOR, a.right == 1 ? PLAIN : TRANSPOSED, b.right == 1 ? PLAIN : TRANSPOSED, M, N, K,
            1, a.at, leading(a, M, K), b.at, leading(b, K, N), accumulate, c, ldc);
}

/* May n columns of C be made from a as it lies?  At strides of a multiple of 2 KiB its numbers share few
 * sets of a cache; and a column is a cache line for MR numbers, worth packing if it is read often. */
static int reads_well(matrix a, idx n) {
    return a.right == 1 ? a.down * sizeof(real) % 2048 : n <= FEW && a.right * sizeof(real) % 2048;
}

/* Columns of a block of B: three sevenths of the second cache, so that A and C have room. */
static idx wide(void) {
    idx columns = second_cache * 3 / 7 / (LONGEST * sizeof(real)) / NR * NR;
    return columns < NR ? NR : least(columns, WIDEST);
}

/* cols <= NR columns of b[K N] as a panel for tile().  b may be wᵀ with w stored in halves: then b.right is the
 * number of halves from one row of w to the next. */
INLINE void pack_panel(int kind, real *to, matrix b, idx k0, idx j, idx K, idx cols) {
    const half *w = (const half *)b.at + j * b.right + k0;
    if (kind == REALS) pack_columns(to, from(b, k0, j), K, cols);
    else pack_halves(kind, to, w, b.right, K, cols);
}

/* Lines of x for each stage of so many tiles. */
INLINE idx share_of_lines(region x, idx tiles) { return x.rows * x.lines / (tiles * MR) + 1; }

/* work: WORK numbers */
INLINE void product(int kind, real *c, idx ldc, matrix a, matrix b, idx M, idx N, idx K, int accumulate,
                    real *work) {
    real *panels = work + LONGEST * WIDEST;
    const idx width = wide();
    idx parts = K ? parts_of(K, LONGEST) : 1, part = parts_of(K, parts);
    upcoming next;
    for (idx j0 = 0; j0 < N; j0 += width)
        for (idx p = 0; p < parts; p++) {
            idx k0 = p * part, k = least(K - k0, part), n = least(N - j0, width), across = parts_of(n, NR);
            idx k1 = p + 1 < parts ? k0 + part : 0, j1 = k1 ? j0 : j0 + width;     /* the next block of B */
            idx length = least(K - k1, part), fetched = kind == REALS ? least(N - j1, width) : 0;
            next.b = region_of(from(b, k1, j1), length, fetched);
            next.b_lines = share_of_lines(next.b, parts_of(M, MR) * across);
            for (idx j = 0; j < n; j += NR)
                pack_panel(kind, work + j * k, b, k0, j0 + j, k, least(n - j, NR));
            for (idx i0 = 0; i0 < M; i0 += GROUP * MR) {
                idx m = least(M - i0, GROUP * MR), whole = m / MR * MR;
                int in_place = reads_well(a, n);
                matrix rest = from(a, i0, k0);
                if (i0 + m < M) next.a = region_of(from(rest, m, 0), least(M - i0 - m, GROUP * MR), k);
                else next.a = region_of(from(a, 0, k1), j1 < N ? least(M, GROUP * MR) : 0, length);
                next.a_lines = share_of_lines(next.a, parts_of(m, MR) * across);
                if (in_place) pack_rows(panels, from(rest, whole, 0), m - whole, k);
                else pack_rows(panels, rest, m, k);
                for (idx i = 0; i < m; i += MR) {
                    matrix panel = in_place && i < whole ? from(rest, i, 0)
                                                         : packed_rows(panels, a, in_place ? 0 : i / MR);
                    real *row = c + (i0 + i) * ldc + j0;
                    for (idx j = 0; j < n; j += NR) {
                        next.c = j + NR < n ? row + j + NR : row + MR * ldc;
                        tile_at(k, panel.at, panel.down, panel.right, work + j * k, row + j, ldc, least(m - i, MR),
                                least(n - j, NR), accumulate || k0, &next);
                    }
                }
            }
        }
}

/* C[M N] from A[M K] and B[K N]; work: WORK numbers for each thread, aligned to 64 bytes */
static void gemm(real *c, idx ldc, const real *a, idx a_down, idx a_right, const real *b, idx b_down,
                 idx b_right, idx M, idx N, idx K, int accumulate, real *work, int threads) {
    matrix A = {a, a_down, a_right}, B = {b, b_down, b_right};
    int by_rows = M > N, few = M <= FEW_ROWS && a_right == 1 && b_down == 1;
    idx share = by_rows ? share_of(M, MR, threads) : share_of(N, NR, threads);
    #pragma omp parallel for num_threads(threads) if (M * N * K > 32 * GRAIN)
    for (int t = 0; t < threads; t++) {
        idx i = by_rows ? t * share : 0, m = least(M - i, by_rows ? share : M);
        idx j = by_rows ? 0 : t * share, n = least(N - j, by_rows ? N : share);
        real *to = c + i * ldc + j;
        if (m <= 0 || n <= 0) continue;
        if (few)
            dots(REALS, to, ldc, from(A, i, 0).at, a_down, (const char *)from(B, 0, j).at, b_right * sizeof(real), m, n,
                 K, accumulate);
        else if (blas_gemm[REAL == 64])
            blas_product(to, ldc, from(A, i, 0), from(B, 0, j), m, n, K, accumulate);
        else
            for (idx r = 0; r < m; r += TALL)
                product(REALS, to + r * ldc, ldc, from(A, i + r, 0), from(B, 0, j), least(m - r, TALL), n, K,
                        accumulate, work + t * WORK);
    }
}
