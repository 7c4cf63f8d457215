/* Every kernel in one translation unit: -DREAL=16|32|64 and -DISA=, an instruction set of setup.py. */
#include "real.h"
#include "rows.h"

#include "rms_norm.c"
#include "add_rms_norm.c"                          /* calls rms_norm.c */
#include "attention.c"
#include "cross_entropy.c"                         /* calls softmax.c */
#include "dropout.c"
#include "embedding.c"
#include "gelu.c"
#include "layer_norm.c"
#include "relu.c"
#include "rope.c"
#include "swiglu.c"
#if REAL == 16
#include "product16.c"
#include "sum_of.c"
#else
#include "gemm.c"
#endif
#include "linear_cross_entropy.c"                  /* calls gemm() */
#if REAL != 16
#include "adamw.c"
#include "sgd.c"
#include "sum_and_norm.c"
#if REAL == 32
#include "cast.c"
#endif
#include "stored.c"                                /* calls gemm.c and cast.c */
#include "decode.c"                                /* calls stored.c, and the rows of the others */

/* Not an op: the tests measure the accuracy of EXP with it. */
static void exp_of(real *restrict y, const real *restrict x, idx n, int threads) {
    (void)threads;
    for (idx i = 0; i < n; i++) y[i] = EXP(x[i]);
}
#endif

#define PASTE(real, isa) kernels_##real##_##isa
#define NAME(real, isa) PASTE(real, isa)
#define SLOT(f) .f = f
#pragma GCC diagnostic error "-Wincompatible-pointer-types"             /* another prototype */
const kernels NAME(REAL, ISA) = {
    SLOT(add_rms_norm), SLOT(add_rms_norm_backward),
    SLOT(attention_work), SLOT(attention), SLOT(attention_backward),
    SLOT(cross_entropy), SLOT(cross_entropy_backward),
    SLOT(dropout),
    SLOT(embedding), SLOT(embedding_backward),
    SLOT(gelu), SLOT(gelu_backward),
    SLOT(layer_norm), SLOT(layer_norm_backward),
    SLOT(linear_cross_entropy), SLOT(linear_cross_entropy_work),
    SLOT(relu), SLOT(relu_backward),
    SLOT(rms_norm), SLOT(rms_norm_backward),
    SLOT(rope),
    SLOT(softmax), SLOT(softmax_backward),
    SLOT(swiglu), SLOT(swiglu_backward),
#if REAL == 16
    .product_work = PRODUCT_WORK, SLOT(product),
    SLOT(sum_of),
#else
    .gemm_work = WORK, SLOT(gemm),
    .exp = exp_of,
    SLOT(decode), SLOT(decode_work),
    SLOT(stored_work), SLOT(stored_inputs), SLOT(stored_product), SLOT(stored_row),
    SLOT(adamw), SLOT(sgd), SLOT(sum_and_norm),
#endif
#if REAL == 32
    SLOT(to_float16), SLOT(from_float16), SLOT(to_bfloat16), SLOT(from_bfloat16),
#endif
};
