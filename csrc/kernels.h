/* The CPU kernels: the table of contents.
 *
 * Each file of csrc/cpu/ is written over `real` and compiled once per precision and instruction
 * set; each compilation fills one such table, and so the compiler checks every prototype here.
 * Arrays are dense and row-major, of the table's precision: N rows of D, or n numbers in all
 * (rope's x has strides); outputs overlap nothing.  A kernel neither allocates nor fails
 * (pyllama/cpu.pyx checks before the call), and its result does not depend on `threads`.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t idx;

#ifndef REAL                                       /* for the callers, which choose a table */
typedef void real;
#elif REAL == 32
typedef float real;
#else
typedef double real;
#endif

enum { BLOCKS = 64 };                              /* parts: room for as many rows of D */

typedef struct {                                   /* [B G R T K], each K numbers contiguous */
    real *at;
    idx b, g, r, t;                                /* the steps of the other axes, in numbers */
} heads;

typedef struct {
    idx B, G, R, T, S, K;
    idx behind, ahead;                             /* query t sees keys t + S - T - behind .. + ahead */
    heads q, k, v, y;                              /* k and v [B G S K] have r = 0 */
    real *lse;                                     /* [B G R T] */
    const char *mask;                              /* [B S]; this and the next pointers may be NULL */
    const char *pairs;                             /* [B S T], a mask of pairs */
    const idx *keys, *queries;                     /* segments [B S] and [B T] */
    const real *bias;                              /* [B H T S], with steps of 0 along shared axes */
    real *dbias;
    idx bias_b, bias_h;
    double scale, softcap;                         /* NaN: 1/sqrt(K); 0: none */
} attending;

enum { REALS, FLOAT16, BFLOAT16, Q8_0, Q4_0 };     /* how a matrix is stored: see csrc/cpu/stored.c */
enum { SAME_BITS = 16 };                           /* rows of x: see stored.c */

typedef struct {                                   /* w[E D] */
    int kind;
    const void *at;
    idx E, D;
} stored;

#include "plan.h"

typedef struct {
    idx gemm_work;                                 /* numbers of `work` for each thread */
    void (*gemm)(real *c, idx ldc, const real *a, idx a_down, idx a_right, const real *b, idx b_down,
                 idx b_right, idx M, idx N, idx K, int accumulate, real *work, int threads);
    void (*exp)(real *y, const real *x, idx n, int threads);
    void (*add_rms_norm)(real *s, real *y, real *r, const real *x, const real *a, const real *w,
                         double eps, idx N, idx D, int threads);
    void (*add_rms_norm_backward)(real *dx, real *dw, real *parts, const real *ds, const real *dy,
                                  const real *s, const real *w, const real *r, idx N, idx D,
                                  int threads);
    idx (*attention_work)(idx K);                  /* numbers of `work` for each thread */
    void (*attention)(const attending *a, real *work, int threads);
    void (*attention_backward)(const attending *a, heads dq, heads dk, heads dv, heads dy, real *work,
                               int threads);
    double (*cross_entropy)(real *lse, real *loss, const real *z, const idx *t, idx ignore_index,
                            double smoothing, double z_loss, idx N, idx V, int threads);
    void (*cross_entropy_backward)(real *dz, const real *z, const idx *t, const real *lse,
                                   idx ignore_index, double smoothing, double z_loss,
                                   double scale, idx N, idx V, int threads);
    void (*decode)(const step *steps, idx count, const turn *t, real *work, idx widest, idx K,
                   int threads);
    idx (*decode_work)(idx widest, idx K);         /* numbers of `work` for each thread */
    void (*dropout)(real *y, const real *x, double scale, uint32_t limit, uint64_t start,
                    const uint64_t *key, idx n, int threads);
    void (*embedding)(real *y, const idx *ids, const real *w, idx N, idx D, int threads);
    void (*embedding_backward)(real *dw, const real *dy, const idx *ids, idx N, idx D,
                               int threads);
    void (*gelu)(real *y, const real *x, int tanh, idx n, int threads);
    void (*gelu_backward)(real *dx, const real *dy, const real *x, int tanh, idx n, int threads);
    void (*layer_norm)(real *y, real *n, real *r, const real *x, const real *w, const real *b,
                       double eps, idx N, idx D, int threads);
    void (*layer_norm_backward)(real *dx, real *dw, real *db, real *parts, const real *dy,
                                const real *n, const real *w, const real *r, idx N, idx D,
                                int threads);
    double (*linear_cross_entropy)(real *dx, real *dw, const real *x, const real *w, const idx *t,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx D, idx V, idx chunk, real *z, real *work,
                                   int threads);
    idx (*linear_cross_entropy_work)(idx chunk, idx V);             /* numbers of `z` */
    void (*relu)(real *y, const real *x, idx n, int threads);
    void (*relu_backward)(real *dx, const real *dy, const real *x, idx n, int threads);
    void (*rms_norm)(real *y, real *r, const real *x, const real *w, double eps, idx N, idx D,
                     int threads);
    void (*rms_norm_backward)(real *dx, real *dw, real *parts, const real *dy, const real *x,
                              const real *w, const real *r, idx N, idx D, int threads);
    void (*rope)(real *y, const real *x, const real *cos, const real *sin, idx A, idx T, idx H,
                 idx P, idx xa, idx xt, idx xh, int interleaved, int threads);
    void (*softmax)(real *y, const real *x, idx N, idx D, int threads);
    void (*softmax_backward)(real *dx, const real *dy, const real *y, idx N, idx D, int threads);
    idx (*stored_work)(idx N, idx D);              /* bytes of `work` */
    void (*stored_inputs)(void *work, const real *x, idx ldx, idx N, idx D, int kind, idx n0, idx n1);
    void (*stored_product)(real *y, idx ldy, const real *x, idx ldx, const void *work, const stored *w,
                           idx N, idx e0, idx e1, int accumulate, real *room);  /* on the calling thread */
    void (*stored_row)(real *y, const stored *w, idx e);
    void (*swiglu)(real *y, const real *g, const real *u, idx n, int threads);
    void (*swiglu_backward)(real *dg, real *du, const real *dy, const real *g, const real *u, idx n,
                            int threads);
    void (*adamw)(real *p, const real *g, real *m, real *v, idx n, double lr, double decay,
                  double scale, idx t, double b1, double b2, double eps, int threads);
    void (*from_bfloat16)(real *y, const uint16_t *x, idx n, int threads);
    void (*from_float16)(real *y, const uint16_t *x, idx n, int threads);
    void (*sgd)(real *p, const real *g, real *v, idx n, double lr, double decay, double scale,
                double momentum, int nesterov, int threads);
    double (*sum_and_norm)(real *const *g, idx lanes, idx n, int threads);
    void (*to_bfloat16)(uint16_t *y, const real *x, idx n, int threads);
    void (*to_float16)(uint16_t *y, const real *x, idx n, int threads); /* casts: of float alone */
} kernels;

extern void *blas_gemm[2];                         /* cblas_sgemm, cblas_dgemm; NULL: our own product */
extern const kernels *kernels_of[2];               /* [0] float, [1] double: set by kernels_init */
extern idx second_cache;                           /* bytes a core: set by kernels_init, too */

/* Choose the instruction set: "baseline", "avx2", "avx512", "avx512vnni", "amx", or "" for the widest
 * that runs here.
 * The name of the chosen one; NULL if it was not built or this processor lacks it. */
const char *kernels_init(const char *isa);
