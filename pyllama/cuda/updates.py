"""Not ops: updates in place (see pyllama/training/optim.py)."""
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
