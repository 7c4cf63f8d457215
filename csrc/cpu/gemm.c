/* C = A B or C += A B, every large product: see tile.h for the inside.
 *
 * (a) A block of B, LONGEST x WIDE, is packed and stays in the second cache, a panel of A in the first.
 * (b) K is cut into equal parts of at most LONGEST: a short rest would write C for few sums.
 * (c) Each thread computes a rectangle of C by itself, cut along the longer side.  It packs what it
 *     needs of A and B in its own part of `work`: there is nothing to wait for.
 */
#include "tile.h"

enum { WIDE = 576 * 4 / sizeof(real) / NR * NR, GROUP = 8,
       WORK = LONGEST * WIDE + GROUP * PANEL, FEW = 8 };

static void product(real *c, idx ldc, matrix a, matrix b, idx M, idx N, idx K, int accumulate,
                    real *work) {
    real *panels = work + LONGEST * WIDE;
    idx parts = K ? (K + LONGEST - 1) / LONGEST : 1, part = (K + parts - 1) / parts;
    for (idx j0 = 0; j0 < N; j0 += WIDE)
        for (idx p = 0; p < parts; p++) {
            idx k0 = p * part, k = K - k0 < part ? K - k0 : part, n = N - j0 < WIDE ? N - j0 : WIDE;
            for (idx j = 0; j < n; j += NR)
                pack_columns(work + j * k, from(b, k0, j0 + j), k, n - j < NR ? n - j : NR);
            for (idx i0 = 0; i0 < M; i0 += GROUP * MR) {
                idx m = M - i0 < GROUP * MR ? M - i0 : GROUP * MR, whole = m / MR * MR;
                int in_place = a.right != 1 && n <= FEW * NR && a.right * sizeof(real) % 2048;
                matrix rest = from(a, i0, k0);
                if (in_place) pack_rows(panels, from(rest, whole, 0), m - whole, k);
                else pack_rows(panels, rest, m, k);
                for (idx i = 0; i < m; i += MR) {
                    const real *panel = panels + (in_place ? 0 : i / MR * PANEL);
                    idx right = a.right == 1 ? 1 : MR;
                    if (in_place && i < whole) panel = rest.at + i, right = a.right;
                    for (idx j = 0; j < n; j += NR)
                        tile(k, panel, right, work + j * k, c + (i0 + i) * ldc + j0 + j, ldc,
                             m - i < MR ? m - i : MR, n - j < NR ? n - j : NR, accumulate || k0);
                }
            }
        }
}

/* C[M N] from A[M K] and B[K N]; work: WORK numbers for each thread, aligned to 64 bytes */
static void gemm(real *c, idx ldc, const real *a, idx a_down, idx a_right, const real *b, idx b_down,
                 idx b_right, idx M, idx N, idx K, int accumulate, real *work, int threads) {
    matrix A = {a, a_down, a_right}, B = {b, b_down, b_right};
    idx share = ((M > N ? M / MR : N / NR) / threads + 1) * (M > N ? MR : NR);
    #pragma omp parallel for num_threads(threads) if (M * N * K > 32 * GRAIN)
    for (int t = 0; t < threads; t++) {
        idx i = M > N ? t * share : 0, m = M > N && M - i < share ? M - i : M > N ? share : M;
        idx j = M > N ? 0 : t * share, n = M <= N && N - j < share ? N - j : M <= N ? share : N;
        if (m > 0 && n > 0)
            product(c + i * ldc + j, ldc, from(A, i, 0), from(B, 0, j), m, n, K, accumulate,
                    work + t * WORK);
    }
}
