/* The CPU kernels: the table of contents.
 *
 * Each file of csrc/cpu/ is compiled once per precision and instruction set; each compilation fills
 * one such table, and so the compiler checks every prototype here.  Activations are `number`s;
 * weights of norms, biases, statistics, gradients of weights and everything that is computed are
 * `real`.  The two differ in bfloat16 alone: numbers are widened where they are read, and rounded
 * once where they are written.
 * Arrays are dense and row-major: N rows of D, or n numbers in all (rope's x has strides); outputs
 * overlap nothing.  A kernel neither allocates nor fails (pyllama/cpu.pyx checks before the call),
 * and its result does not depend on `threads`.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t idx;

#ifndef REAL                                       /* for the callers, which choose a table */
typedef void real, number;
#elif REAL == 16
typedef float real;
typedef uint16_t number;                           /* a bfloat16: the upper half of a float */
#elif REAL == 32
typedef float real, number;
#else
typedef double real, number;
#endif

enum { BLOCKS = 64 };                              /* parts: room for as many rows of D */

typedef struct {                                   /* [B G R T K], each K numbers contiguous */
    number *at;
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

typedef struct {                                   /* of every precision */
    void (*add_rms_norm)(number *s, number *y, real *r, const number *x, const number *a, const real *w,
                         double eps, idx N, idx D, int threads);
    void (*add_rms_norm_backward)(number *dx, real *dw, real *parts, const number *ds, const number *dy,
                                  const number *s, const real *w, const real *r, idx N, idx D,
                                  int threads);
    idx (*attention_work)(idx S, idx K);           /* reals of `work` for each thread */
    void (*attention)(const attending *a, real *work, int threads);
    void (*attention_backward)(const attending *a, heads dq, heads dk, heads dv, heads dy, real *work,
                               int threads);
    double (*cross_entropy)(real *lse, real *loss, const number *z, const idx *t, idx ignore_index,
                            double smoothing, double z_loss, idx N, idx V, int threads);
    void (*cross_entropy_backward)(number *dz, const number *z, const idx *t, const real *lse,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx V, int threads);
    void (*dropout)(number *y, const number *x, double scale, uint32_t limit, uint64_t start,
                    const uint64_t *key, idx n, int threads);
    void (*embedding)(number *y, const idx *ids, const number *w, idx N, idx D, int threads);
    void (*embedding_backward)(real *dw, const number *dy, const idx *ids, idx N, idx D, int threads);
    void (*gelu)(number *y, const number *x, int tanh, idx n, int threads);
    void (*gelu_backward)(number *dx, const number *dy, const number *x, int tanh, idx n, int threads);
    void (*layer_norm)(number *y, number *n, real *r, const number *x, const real *w, const real *b,
                       double eps, idx N, idx D, int threads);
    void (*layer_norm_backward)(number *dx, real *dw, real *db, real *parts, const number *dy,
                                const number *n, const real *w, const real *r, idx N, idx D,
                                int threads);
    double (*linear_cross_entropy)(real *dx, real *dw, const number *x, const number *w, const idx *t,
                                   idx ignore_index, double smoothing, double z_loss, double scale,
                                   idx N, idx D, idx V, idx chunk, real *z, real *work, int threads);
    idx (*linear_cross_entropy_work)(idx chunk, idx V);             /* reals of `z` */
    void (*relu)(number *y, const number *x, idx n, int threads);
    void (*relu_backward)(number *dx, const number *dy, const number *x, idx n, int threads);
    void (*rms_norm)(number *y, real *r, const number *x, const real *w, double eps, idx N, idx D,
                     int threads);
    void (*rms_norm_backward)(number *dx, real *dw, real *parts, const number *dy, const number *x,
                              const real *w, const real *r, idx N, idx D, int threads);
    void (*rope)(number *y, const number *x, const real *cos, const real *sin, idx A, idx T, idx H,
                 idx P, idx xa, idx xt, idx xh, int interleaved, int threads);
    void (*softmax)(number *y, const number *x, idx N, idx D, int threads);
    void (*softmax_backward)(number *dx, const number *dy, const number *y, idx N, idx D, int threads);
    void (*swiglu)(number *y, const number *g, const number *u, idx n, int threads);
    void (*swiglu_backward)(number *dg, number *du, const number *dy, const number *g, const number *u,
                            idx n, int threads);

    /* of float and double */
    idx gemm_work;                                 /* numbers of `work` for each thread */
    void (*gemm)(real *c, idx ldc, const real *a, idx a_down, idx a_right, const real *b, idx b_down,
                 idx b_right, idx M, idx N, idx K, int accumulate, real *work, int threads);
    void (*exp)(real *y, const real *x, idx n, int threads);
    void (*decode)(const step *steps, idx count, turn *t, real *work, idx widest, idx K,
                   int threads);
    idx (*decode_work)(idx widest, idx K);         /* numbers of `work` for each thread */
    idx (*stored_work)(idx N, idx D);              /* bytes of `work` */
    void (*stored_inputs)(void *work, const real *x, idx ldx, idx N, idx D, int kind, idx n0, idx n1);
    void (*stored_product)(real *y, idx ldy, const real *x, idx ldx, const void *work, const stored *w,
                           idx N, idx e0, idx e1, int accumulate, real *room);  /* on the calling thread */
    void (*stored_row)(real *y, const stored *w, idx e);
    void (*adamw)(real *p, const real *g, real *m, real *v, uint16_t *rounded, idx n, double lr, double decay,
                  double scale, idx t, double b1, double b2, double eps, int threads);
    void (*sgd)(real *p, const real *g, real *v, idx n, double lr, double decay, double scale,
                double momentum, int nesterov, int threads);
    double (*sum_and_norm)(real *const *g, idx lanes, idx n, int threads);

    /* of float */
    void (*from_bfloat16)(real *y, const uint16_t *x, idx n, int threads);
    void (*from_float16)(real *y, const uint16_t *x, idx n, int threads);
    void (*to_bfloat16)(uint16_t *y, const real *x, idx n, int threads);
    void (*to_float16)(uint16_t *y, const real *x, idx n, int threads);

    /* of bfloat16 */
    idx product_work;                              /* reals of `work` for each thread */
    void (*product)(void *c, idx ldc, int narrow, const real *bias, const number *a, idx a_down, idx a_right,
                    const number *b, idx b_down, idx b_right, idx M, idx N, idx K, int accumulate,
                    real *work, int threads);
    void (*sum_of)(number *y, const number *const *x, idx count, idx n, int threads);
} kernels;

extern void *blas_gemm[2];                         /* cblas_sgemm, cblas_dgemm; NULL: our own product */
extern const kernels *kernels_of[3];               /* float, double, bfloat16: set by kernels_init */
extern idx second_cache;                           /* bytes a core: set by kernels_init, too */

/* Choose the instruction set: "baseline", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx", or "" for
 * the widest that runs here.
 * The name of the chosen one; NULL if it was not built or this processor lacks it. */
const char *kernels_init(const char *isa);
