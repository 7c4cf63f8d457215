"""Not ops: updates in place (see pyllama/training/optim.py), and a product with quantized weights."""
import math

import cupy
import numpy as np

from pyllama.cuda.launching import THREADS, aligned, dense, elementwise, in_place, launch, number

PARTS = 1024                                            # partial sums of a vector's squares, at most


def adamw(p, g, m, v, *, lr, decay, scale, t, betas, eps):
    in_place(p, m, v)
    b1, b2 = map(float, betas)
    elementwise("adamw", [p, m, v], dense(g), number(scale, np.float64), lr, decay, b1, b2, eps,
                1 - b1 ** t, math.sqrt(1 - b2 ** t))


def sgd(p, g, v=None, *, lr, decay, scale, momentum, nesterov):
    scale = number(scale, np.float64)
    if v is None:
        in_place(p)
        elementwise("sgd", [p], dense(g), scale, lr, decay)
    else:
        in_place(p, v)
        elementwise("sgd_with_momentum", [p, v], dense(g), scale, lr, decay, momentum, int(nesterov), file="sgd")


def sum_and_norm(gs):
    g, *others = gs
    in_place(g)
    for other in others:
        g += other
    parts = cupy.empty(min(PARTS, -(-g.nbytes // (16 * THREADS))), np.float64)
    launch("sum_and_norm", parts.size, g, parts, g.size, aligned(g.size, g))
    return cupy.sqrt(parts.sum())


OUTPUTS = 32                                            # of a block: its 8 warps compute 4 each


def quant_matvec(x, w, scales, bits):
    """y [N E] = x [N D] wᵀ for few rows of x and quantized w.

    x        [N D], float32 or float64
    w        for 8 bits int8 [E D]; for 4 bits uint8 [E D/2], two numbers in a byte, the first in its low half, plus 8
    scales   [E D/G], in the precision of x: the factor of each group of G weights; 8 divides G
    bits     8 or 4

    Raises ValueError if the shapes do not fit, TypeError if the precisions differ.
    """
    (x, w, scales), (N, D), (E, groups) = dense(x, w.view(np.uint8), scales), x.shape, scales.shape
    if bits not in (4, 8) or w.shape != (E, D * bits // 8) or D % (8 * groups):
        raise ValueError(f"quant_matvec: x has shape {x.shape}, w {w.shape}, scales {scales.shape}, for {bits} bits; "
                         f"w must be [E D] or [E D/2], scales [E D/G] with G a multiple of 8, bits 8 or 4")
    if scales.dtype != x.dtype:
        raise TypeError(f"quant_matvec: x is {x.dtype} but the scales are {scales.dtype}; convert one")
    w = w.copy() if w.data.ptr % 4 else w
    y, rows = cupy.empty((N, E), x.dtype), min(4, 1 << max(N - 1, 0).bit_length())
    launch("quant_matvec", (-(-E // OUTPUTS), -(-N // rows)), y, x, w, scales, N, E, D, D // groups, aligned(D, x),
           BITS=bits, ROWS=rows)
    return y
