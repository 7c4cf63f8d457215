/* The CPU kernels: the table of contents.
 *
 * Each file of csrc/cpu/ is written over `real` and compiled once per precision and instruction
 * set; each compilation fills one such table.  Arrays are dense and row-major, of the table's
 * precision: N rows of D, or n numbers in all (rope's x has strides); outputs overlap nothing.  A
 * kernel neither allocates nor fails (pyllama/cpu.pyx checks before the call), and its result does
 * not depend on `threads`.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t idx;

enum { BLOCKS = 64 };                              /* parts: room for as many rows of D */

typedef struct {                                   /* [B G R T K], each K numbers contiguous */
    void *at;
    idx b, g, r, t;                                /* the steps of the other axes, in numbers */
} heads;

typedef struct {
    idx B, G, R, T, S, K;
    idx behind, ahead;                             /* query t sees keys t + S - T - behind .. + ahead */
    heads q, k, v, y;                              /* k and v [B G S K] have r = 0 */
    void *lse;                                     /* [B G R T] */
    const char *mask;                              /* [B S], or NULL */
} attending;

typedef struct {
    idx gemm_work;                                 /* numbers of `work` for each thread */
    void (*gemm)(void *c, idx ldc, const void *a, idx a_down, idx a_right, const void *b, idx b_down,
                 idx b_right, idx M, idx N, idx K, int accumulate, void *work, int threads);
    void (*exp)(void *y, const void *x, idx n, int threads);
    void (*add_rms_norm)(void *s, void *y, void *r, const void *x, const void *a, const void *w,
                         double eps, idx N, idx D, int threads);
    void (*add_rms_norm_backward)(void *dx, void *dw, void *parts, const void *ds, const void *dy,
                                  const void *s, const void *w, const void *r, idx N, idx D,
                                  int threads);
    idx (*attention_work)(idx K);                  /* numbers of `work` for each thread */
    void (*attention)(const attending *a, void *work, int threads);
    void (*attention_backward)(const attending *a, heads dq, heads dk, heads dv, heads dy, void *work,
                               int threads);
    double (*cross_entropy)(void *lse, void *loss, const void *z, const idx *t, idx ignore_index,
                            double smoothing, double z_loss, idx N, idx V, int threads);
    void (*cross_entropy_backward)(void *dz, const void *z, const idx *t, const void *lse,
                                   idx ignore_index, double smoothing, double z_loss,
                                   double scale, idx N, idx V, int threads);
    void (*dropout)(void *y, const void *x, double scale, uint32_t limit, uint64_t start,
                    const uint64_t *key, idx n, int threads);
    void (*embedding)(void *y, const idx *ids, const void *w, idx N, idx D, int threads);
    void (*embedding_backward)(void *dw, const void *dy, const idx *ids, idx N, idx D,
                               int threads);
    void (*gelu)(void *y, const void *x, int tanh, idx n, int threads);
    void (*gelu_backward)(void *dx, const void *dy, const void *x, int tanh, idx n, int threads);
    void (*layer_norm)(void *y, void *n, void *r, const void *x, const void *w, const void *b,
                       double eps, idx N, idx D, int threads);
    void (*layer_norm_backward)(void *dx, void *dw, void *db, void *parts, const void *dy,
                                const void *n, const void *w, const void *r, idx N, idx D,
                                int threads);
    double (*linear_cross_entropy)(void *dx, void *dw, const void *x, const void *w, const idx *t,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx D, idx V, idx chunk, void *z, void *work,
                                   int threads);
    idx (*linear_cross_entropy_work)(idx chunk, idx V);             /* numbers of `z` */
    void (*relu)(void *y, const void *x, idx n, int threads);
    void (*relu_backward)(void *dx, const void *dy, const void *x, idx n, int threads);
    void (*rms_norm)(void *y, void *r, const void *x, const void *w, double eps, idx N, idx D,
                     int threads);
    void (*rms_norm_backward)(void *dx, void *dw, void *parts, const void *dy, const void *x,
                              const void *w, const void *r, idx N, idx D, int threads);
    void (*rope)(void *y, const void *x, const void *cos, const void *sin, idx A, idx T, idx H,
                 idx P, idx xa, idx xt, idx xh, int interleaved, int threads);
    void (*softmax)(void *y, const void *x, idx N, idx D, int threads);
    void (*softmax_backward)(void *dx, const void *dy, const void *y, idx N, idx D, int threads);
    void (*swiglu)(void *y, const void *g, const void *u, idx n, int threads);
    void (*swiglu_backward)(void *dg, void *du, const void *dy, const void *g, const void *u, idx n,
                            int threads);
    void (*adamw)(void *p, const void *g, void *m, void *v, idx n, double lr, double decay,
                  double scale, idx t, double b1, double b2, double eps, int threads);
    void (*from_bfloat16)(void *y, const void *x, idx n, int threads);
    void (*from_float16)(void *y, const void *x, idx n, int threads);
    void (*sgd)(void *p, const void *g, void *v, idx n, double lr, double decay, double scale,
                double momentum, int nesterov, int threads);
    double (*sum_and_norm)(void *const *g, idx lanes, idx n, int threads);
    void (*to_bfloat16)(void *y, const void *x, idx n, int threads);
    void (*to_float16)(void *y, const void *x, idx n, int threads);     /* cast.c: of float alone */
} kernels;

extern void *blas_gemm[2];                         /* cblas_sgemm, cblas_dgemm; NULL: our own product */
extern const kernels *kernels_of[2];               /* [0] float, [1] double: set by kernels_init */
extern idx second_cache;                           /* bytes a core: set by kernels_init, too */

/* Choose the instruction set: "baseline", "avx2", "avx512", or "" for the widest that runs here.
 * The name of the chosen one; NULL if it was not built or this processor lacks it. */
const char *kernels_init(const char *isa);
