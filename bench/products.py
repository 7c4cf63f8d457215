"""A worker of bench/gemm.py: float32 matrix products, divided among our threads; PYLLAMA_BLAS names the library.

    python -m bench.products
"""
import time

import numpy as np

from bench.rotation import serve
from pyllama import backend

OPERANDS = {"y = x wᵀ": lambda a, b: (a, b.T), "dx = dy w": lambda a, b: (a, b), "dw = dyᵀ x": lambda a, b: (a.T, b)}


def answer(product, shapes, seconds):
    """Seconds of each repetition of the product; shapes are those of the two arrays in memory."""
    rng = np.random.default_rng(0)
    a, b = OPERANDS[product](*(rng.random(shape, np.float32) for shape in shapes))
    c = np.zeros((a.shape[0], b.shape[1]), np.float32)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        backend.cpu.matmul(a, b, a, c)
        times.append(time.perf_counter() - begin)
    return {"seconds": times[1:]}                       # the first warms up


if __name__ == "__main__":
    serve(answer)
