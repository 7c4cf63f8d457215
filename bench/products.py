"""A worker of bench/gemm.py: products of float32 matrices, cut among our threads; PYLLAMA_BLAS names who makes them.

    python -m bench.products
"""
import time

import numpy as np

from bench.rotation import serve
from pyllama import backend

OPERANDS = {"y = x wᵀ": lambda a, b: (a, b.T), "dx = dy w": lambda a, b: (a, b), "dw = dyᵀ x": lambda a, b: (a.T, b)}


def answer(of, shapes, seconds):
    """Seconds of each product; shapes are those of the two arrays as they lie in memory."""
    rng = np.random.default_rng(0)
    a, b = OPERANDS[of](*(rng.random(shape, np.float32) for shape in shapes))
    c = np.zeros((a.shape[0], b.shape[1]), np.float32)
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        backend.cpu.matmul(a, b, a, c)
        taken.append(time.perf_counter() - begin)
    return {"seconds": taken[1:]}                       # the first warms up


if __name__ == "__main__":
    serve(answer)
