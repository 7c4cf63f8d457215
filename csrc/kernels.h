/* The CPU kernels: the table of contents.
 *
 * Each file of csrc/cpu/ is written over `real` and compiled once per precision and instruction
 * set; each compilation fills one such table.  Arrays are dense and row-major, of the table's
 * precision: N rows of D, or n numbers in all; outputs overlap nothing.  A kernel neither allocates
 * nor fails (pyllama/cpu.pyx checks before the call), and its result does not depend on `threads`.
 */
#pragma once
#include <stddef.h>

typedef ptrdiff_t idx;

typedef struct {
    idx gemm_work;                                 /* numbers of `work` for each thread */
    void (*gemm)(void *c, idx ldc, const void *a, idx a_down, idx a_right, const void *b, idx b_down,
                 idx b_right, idx M, idx N, idx K, int accumulate, void *work, int threads);
    void (*exp)(void *y, const void *x, idx n, int threads);
    void (*rms_norm)(void *y, void *r, const void *x, const void *w, double eps, idx N, idx D,
                     int threads);
    void (*rms_norm_backward)(void *dx, void *dw, const void *dy, const void *x, const void *w,
                              const void *r, idx N, idx D, int threads);
    void (*swiglu)(void *y, const void *g, const void *u, idx n, int threads);
    void (*swiglu_backward)(void *dg, void *du, const void *dy, const void *g, const void *u, idx n,
                            int threads);
} kernels;

extern void *blas_gemm[2];                         /* cblas_sgemm, cblas_dgemm; NULL: our own product */
extern const kernels *kernels_of[2];               /* [0] float, [1] double: set by kernels_init */

/* Choose the instruction set: "baseline", "avx2", "avx512", or "" for the widest that runs here.
 * The name of the chosen one; NULL if it was not built or this processor lacks it. */
const char *kernels_init(const char *isa);
