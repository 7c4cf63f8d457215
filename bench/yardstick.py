"""A worker that measures what the machine can do, to hold others against it: products and copies.

    python -m bench.yardstick THREADS           products by PyTorch where it is installed, else by NumPy
"""
import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.rotation import serve

N = 4096
BYTES = 2 ** 28                                 # more than caches hold


def product(threads):
    """A function that multiplies, and its operations."""
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
    """A function that copies, and the bytes that it reads and writes."""
    source, target = (np.ones((threads, BYTES // threads), np.uint8) for _ in range(2))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.copyto, target, source)), source.nbytes + target.nbytes


def main(threads):
    made = functools.cache(lambda of: {"product": product, "copy": copy}[of](threads))

    def answer(of, times=2):
        """The rate over a few times, in 10⁹ a second."""
        run, amount = made(of)
        begin = time.perf_counter()
        for _ in range(times):
            run()
        return {"rate": times * amount / (time.perf_counter() - begin) / 1e9}

    serve(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
