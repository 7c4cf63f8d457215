"""What is no op: updates in place (see pyllama/training/optim.py), and a product with quantized weights."""
import math

import cupy
import numpy as np

from pyllama.cuda.launching import THREADS, aligned, dense, elementwise, in_place, launch, number

PARTS = 1024                                            # of the sum of a vector's squares


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


OF_A_BLOCK = 32                                         # outputs: its 8 warps make 4 each


def quant_matvec(x, w, scales, bits):
    """y [N E] = x [N D] wᵀ, for few rows of x and a w [E D] of 8 or 4 bits: int8 [E D], or uint8 [E D/2] with two
    numbers in each byte, the first in its low half, stored plus 8.

    scales [E D/G], in the precision of x, are what the numbers of each group of G are worth; 8 divides G.
    """
    (x, w, scales), (N, D), (E, groups) = dense(x, w.view(np.uint8), scales), x.shape, scales.shape
    if bits not in (4, 8) or w.shape != (E, D * bits // 8) or D % (8 * groups):
        raise ValueError(f"quant_matvec: x has shape {x.shape}, w {w.shape}, scales {scales.shape}, for {bits} bits; "
                         f"w must be [E D] or [E D/2], scales [E D/G] with G a multiple of 8, bits 8 or 4")
    if scales.dtype != x.dtype:
        raise TypeError(f"quant_matvec: x is {x.dtype} but the scales are {scales.dtype}; convert one")
    w = w.copy() if w.data.ptr % 4 else w
    y, rows = cupy.empty((N, E), x.dtype), min(4, 1 << max(N - 1, 0).bit_length())
    launch("quant_matvec", (-(-E // OF_A_BLOCK), -(-N // rows)), y, x, w, scales, N, E, D, D // groups, aligned(D, x),
           BITS=bits, ROWS=rows)
    return y
