"""A worker that measures the machine's peak rates, which other measurements are compared with: products and copies.

    python -m bench.yardstick THREADS           uses PyTorch's product where installed, else NumPy's
"""
import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.rotation import serve

N = 4096
BYTES = 2 ** 28                                 # larger than any cache


def product(threads):
    """Return (a function that multiplies two matrices, the number of its operations)."""
    a, b = (np.random.default_rng(seed).random((N, N), np.float32) for seed in range(2))
    y = np.zeros_like(a)
    try:
        import torch
    except ImportError:
        return lambda: np.matmul(a, b, out=y), 2 * N ** 3
    torch.set_num_threads(threads)
    A, B, Y = map(torch.from_numpy, (a, b, y))
    return lambda: torch.mm(A, B, out=Y), 2 * N ** 3


def copy(threads):
    """Return (a function that copies an array, the bytes that it reads and writes)."""
    source, target = (np.ones((threads, BYTES // threads), np.uint8) for _ in range(2))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.copyto, target, source)), source.nbytes + target.nbytes


def main(threads):
    prepared = functools.cache(lambda task: {"product": product, "copy": copy}[task](threads))

    def answer(task, times=2):
        """The rate of a few repetitions, in 10⁹ operations or bytes per second."""
        run, amount = prepared(task)
        begin = time.perf_counter()
        for _ in range(times):
            run()
        return {"rate": times * amount / (time.perf_counter() - begin) / 1e9}

    serve(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
