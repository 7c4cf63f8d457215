# cython: allow_none_for_extension_args=False
"""Bindings of the C kernels, with the ops' signatures: check, allocate, release the GIL, call.

Inputs may have any strides, alignment and byte order.  One that is not contiguous and native is copied, and `saved` has
the copy.  Op has checked the shapes already; sizes are checked here again, because C would write past the end.
"""
import ctypes
import itertools
import os

import ml_dtypes
import numpy as np

from pyllama.shapes import require_below
from pyllama.machine import cores
from pyllama.rng import generator
from pyllama.rotary import tables

cimport numpy as np
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport NAN
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from "kernels.h" nogil:
    ctypedef ptrdiff_t idx
    enum: BLOCKS
    ctypedef struct heads:
        void *at
        idx b, g, r, t
    ctypedef struct attending:
        idx B, G, R, T, S, K, behind, ahead
        heads q, k, v, y
        void *lse
        const char *mask
        const char *pairs
        const idx *keys
        const idx *queries
        const void *bias
        void *dbias
        idx bias_b, bias_h
        double scale, softcap
    enum: REALS, FLOAT16, BFLOAT16, Q8_0, Q4_0, SAME_BITS
    ctypedef struct stored:
        int kind
        const void *at
        idx E, D
include "../csrc/cpu/plan.pxi"

cdef extern from "kernels.h" nogil:
    ctypedef struct kernels:
        idx gemm_work
        void (*gemm)(void *c, idx ldc, const void *a, idx a_down, idx a_right, const void *b, idx b_down, idx b_right,
                     idx M, idx N, idx K, int accumulate, void *work, int threads) noexcept nogil
        void (*exp)(void *y, const void *x, idx n, int threads) noexcept nogil
        void (*add_rms_norm)(void *s, void *y, void *r, const void *x, const void *a, const void *w, double eps,
                             idx N, idx D, int threads) noexcept nogil
        void (*add_rms_norm_backward)(void *dx, void *dw, void *parts, const void *ds, const void *dy, const void *s,
                                      const void *w, const void *r, idx N, idx D, int threads) noexcept nogil
        idx (*attention_work)(idx S, idx K) noexcept nogil
        void (*attention)(const attending *a, void *work, int threads) noexcept nogil
        void (*attention_backward)(const attending *a, heads dq, heads dk, heads dv, heads dy, void *work,
                                   int threads) noexcept nogil
        double (*cross_entropy)(void *lse, void *loss, const void *z, const idx *t, idx ignore_index, double smoothing,
                                double z_loss, idx N, idx V, int threads) noexcept nogil
        void (*cross_entropy_backward)(void *dz, const void *z, const idx *t, const void *lse, idx ignore_index,
                                       double smoothing, double z_loss, double scale, idx N, idx V,
                                       int threads) noexcept nogil
        void (*decode)(const step *steps, idx count, turn *t, void *work, idx widest, idx K,
                       int threads) noexcept nogil
        idx (*decode_work)(idx widest, idx K) noexcept nogil
        void (*dropout)(void *y, const void *x, double scale, uint32_t limit, uint64_t start, const uint64_t *key,
                        idx n, int threads) noexcept nogil
        void (*embedding)(void *y, const idx *ids, const void *w, idx N, idx D, int threads) noexcept nogil
        void (*embedding_backward)(void *dw, const void *dy, const idx *ids, idx N, idx D, int threads) noexcept nogil
        void (*gelu)(void *y, const void *x, int tanh, idx n, int threads) noexcept nogil
        void (*gelu_backward)(void *dx, const void *dy, const void *x, int tanh, idx n, int threads) noexcept nogil
        void (*layer_norm)(void *y, void *n, void *r, const void *x, const void *w, const void *b, double eps,
                           idx N, idx D, int threads) noexcept nogil
        void (*layer_norm_backward)(void *dx, void *dw, void *db, void *parts, const void *dy, const void *n,
                                    const void *w, const void *r, idx N, idx D, int threads) noexcept nogil
        double (*linear_cross_entropy)(void *dx, void *dw, const void *x, const void *w, const idx *t, idx ignore_index,
                                       double smoothing, double z_loss, double scale, idx N, idx D, idx V, idx chunk,
                                       void *z, void *work, int threads) noexcept nogil
        idx (*linear_cross_entropy_work)(idx chunk, idx V) noexcept nogil
        void (*relu)(void *y, const void *x, idx n, int threads) noexcept nogil
        void (*relu_backward)(void *dx, const void *dy, const void *x, idx n, int threads) noexcept nogil
        void (*rms_norm)(void *y, void *r, const void *x, const void *w, double eps, idx N, idx D,
                         int threads) noexcept nogil
        void (*rms_norm_backward)(void *dx, void *dw, void *parts, const void *dy, const void *x, const void *w,
                                  const void *r, idx N, idx D, int threads) noexcept nogil
        void (*rope)(void *y, const void *x, const void *cos, const void *sin, idx A, idx T, idx H, idx P,
                     idx xa, idx xt, idx xh, int interleaved, int threads) noexcept nogil
        void (*softmax)(void *y, const void *x, idx N, idx D, int threads) noexcept nogil
        void (*softmax_backward)(void *dx, const void *dy, const void *y, idx N, idx D, int threads) noexcept nogil
        idx (*stored_work)(idx N, idx D) noexcept nogil
        void (*stored_inputs)(void *work, const void *x, idx ldx, idx N, idx D, int kind, idx n0,
                              idx n1) noexcept nogil
        void (*stored_product)(void *y, idx ldy, const void *x, idx ldx, const void *work, const stored *w, idx N,
                               idx e0, idx e1, int accumulate, void *room) noexcept nogil
        void (*stored_row)(void *y, const stored *w, idx e) noexcept nogil
        void (*swiglu)(void *y, const void *g, const void *u, idx n, int threads) noexcept nogil
        void (*swiglu_backward)(void *dg, void *du, const void *dy, const void *g, const void *u, idx n,
                                int threads) noexcept nogil
        void (*adamw)(void *p, const void *g, void *m, void *v, uint16_t *rounded, idx n, double lr, double decay,
                      double scale, idx t, double b1, double b2, double eps, int threads) noexcept nogil
        void (*from_bfloat16)(void *y, const uint16_t *x, idx n, int threads) noexcept nogil
        void (*from_float16)(void *y, const uint16_t *x, idx n, int threads) noexcept nogil
        void (*sgd)(void *p, const void *g, void *v, idx n, double lr, double decay, double scale, double momentum,
                    int nesterov, int threads) noexcept nogil
        double (*sum_and_norm)(void *const *g, idx lanes, idx n, int threads) noexcept nogil
        void (*to_bfloat16)(uint16_t *y, const void *x, idx n, int threads) noexcept nogil
        void (*to_float16)(uint16_t *y, const void *x, idx n, int threads) noexcept nogil
        idx product_work
        void (*product)(void *c, idx ldc, int narrow, const void *bias, const void *a, idx a_down, idx a_right,
                        const void *b, idx b_down, idx b_right, idx M, idx N, idx K, int accumulate,
                        void *work, int threads) noexcept nogil
        void (*sum_of)(void *y, const void *const *x, idx count, idx n, int threads) noexcept nogil
    void *blas_gemm[2]
    const kernels *kernels_of[3]
    const char *kernels_init(const char *isa)

cdef extern from "cpu/arena.h" nogil:
    ctypedef struct arena_counts:
        size_t held, in_use, reused, fresh
    void arena_set_cap(size_t bytes)
    void arena_empty()
    arena_counts arena_count()

cdef extern from *:                                     # NumPy 2.0's own declarations lack these two
    """
    static PyDataMem_Handler arena_handler = {
        "pyllama arena", 1, {NULL, arena_malloc, arena_calloc, arena_realloc, arena_free}};
    """
    ctypedef struct PyDataMem_Handler:
        pass
    PyDataMem_Handler arena_handler
    object PyDataMem_SetHandler(object handler)

np.import_array()

cdef bytes _wanted = os.environ.get("PYLLAMA_ISA", "").encode()
cdef const char *_isa = kernels_init(_wanted)
if _isa == NULL:
    raise ImportError(f"PYLLAMA_ISA={_wanted.decode()}: not among baseline, avx2, avx512, avx512vnni, avx512bf16 "
                      "and amx, or not supported by this build or processor; unset it to use the best that is "
                      "supported")
isa = _isa.decode()                                     # the instruction set in use


cdef forgotten(const kernels *k):
    """The number of the first slot that table.c left empty, or None.  A call of it would end the process."""
    cdef const size_t *slots = <const size_t *>k
    cdef idx floats = <const size_t *>&k.product_work - slots           # the others are of bfloat16
    return next((i for i in range(floats) if not slots[i]), None)


if (_slot := forgotten(kernels_of[0])) is not None:
    raise ImportError(f"kernel {_slot} of csrc/kernels.h is not in csrc/cpu/table.c; list it there by SLOT and build")


# --- threads ----------------------------------------------------------------------------------------------------------

cdef int _threads = 1
cdef bint _forked = False


def threads():
    """The number of threads a kernel uses."""
    return _threads


def set_threads(int n):
    """Set the number of threads of every kernel; results are bit-identical for any number.

    Raises ValueError unless 1 <= n <= 1024, RuntimeError if n > 1 in a forked process.
    """
    global _threads
    if not 1 <= n <= 1024:
        raise ValueError(f"the number of threads must be from 1 to 1024, not {n}")
    if _forked and n > 1:
        raise RuntimeError("a forked process runs the kernels on one thread, because OpenMP's do not survive a fork; "
                           'start it with multiprocessing.get_context("spawn") to use more')
    _threads = n


def _after_fork(bint had_threads=True):
    """Restrict a forked process to one thread, because OpenMP's threads do not survive a fork.

    had_threads     False: the parent has not started any, so the child may start its own
    """
    global _threads, _forked
    _threads, _forked = 1, had_threads


try:
    set_threads(int(os.environ.get("PYLLAMA_NUM_THREADS") or cores()))
except (ValueError, OverflowError):
    raise ImportError("PYLLAMA_NUM_THREADS must be a whole number from 1 to 1024, "
                      f"not {os.environ['PYLLAMA_NUM_THREADS']!r}") from None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- matrix products by another library -------------------------------------------------------------------------------

def use_blas(str path):
    """Compute matrix products with the BLAS library at this path from now on; "": with our own kernel.

    Our threads call its CBLAS interface with 32-bit integers.  It must not start threads itself.  Raises OSError if the
    library cannot be loaded or lacks the interface.
    """
    if not path:
        blas_gemm[0] = blas_gemm[1] = NULL
        return
    library = ctypes.CDLL(path)
    prefix = "scipy_" if hasattr(library, "scipy_cblas_sgemm") else ""
    for i, name in enumerate(("cblas_sgemm", "cblas_dgemm")):
        if not hasattr(library, prefix + name):
            raise OSError(f"{path} has no {name}; give a BLAS with the CBLAS interface")
        blas_gemm[i] = <void *><size_t>ctypes.cast(getattr(library, prefix + name), ctypes.c_void_p).value


why_no_blas = ""                                        # why PYLLAMA_BLAS has no effect
try:
    use_blas(os.environ.get("PYLLAMA_BLAS", ""))
except OSError as error:
    why_no_blas = f"PYLLAMA_BLAS={os.environ['PYLLAMA_BLAS']}: {error}; our own kernel computes matrix products"


# --- arrays -----------------------------------------------------------------------------------------------------------

# The ops whose kernels take bfloat16, too.
LOW = frozenset({
    "add_rms_norm", "attention", "cross_entropy", "dropout", "embedding",
    "gelu", "layer_norm", "linear", "linear_cross_entropy", "relu",
    "rms_norm", "rope", "softmax", "swiglu",
})
cdef int BFLOAT = np.dtype(ml_dtypes.bfloat16).num

include "../csrc/cpu/arrays.pxi"


# --- ops: each binding is next to its kernel --------------------------------------------------------------------------

include "../csrc/cpu/add_rms_norm.pxi"
include "../csrc/cpu/attention.pxi"
include "../csrc/cpu/cross_entropy.pxi"
include "../csrc/cpu/dropout.pxi"
include "../csrc/cpu/embedding.pxi"
include "../csrc/cpu/gelu.pxi"
include "../csrc/cpu/layer_norm.pxi"
include "../csrc/cpu/linear.pxi"
include "../csrc/cpu/linear_cross_entropy.pxi"
include "../csrc/cpu/relu.pxi"
include "../csrc/cpu/rms_norm.pxi"
include "../csrc/cpu/rope.pxi"
include "../csrc/cpu/softmax.pxi"
include "../csrc/cpu/swiglu.pxi"


# --- not ops: sums, updates in place, casts, stored matrices ----------------------------------------------------------

include "../csrc/cpu/total.pxi"
include "../csrc/cpu/adamw.pxi"
include "../csrc/cpu/sgd.pxi"
include "../csrc/cpu/sum_and_norm.pxi"
include "../csrc/cpu/cast.pxi"
include "../csrc/cpu/stored.pxi"
include "../csrc/cpu/decode.pxi"


def _exp(np.ndarray x):
    """The exponential that the kernels inline.  It is not an op; a test measures its accuracy."""
    cdef const kernels *k = real_kernels_for(x)
    x = dense(x, x)
    cdef np.ndarray y = new(x)
    k.exp(y.data, x.data, x.size, 1)
    return y


# --- the arena (pyllama/memory.py is its interface) -------------------------------------------------------------------

_arena_capsule = PyCapsule_New(&arena_handler, "mem_handler", NULL)


def _arena_install(size_t cap):
    arena_set_cap(cap)
    return PyDataMem_SetHandler(_arena_capsule)


def _arena_leave(previous):
    PyDataMem_SetHandler(previous)


def _arena_empty():
    arena_empty()


def _arena_count():
    return arena_count()
