"""Time optimizer steps, the gradient norm and casts on both backends.     python -m bench.optim [name ...]

The functions take turns, and each one's median counts, so that a noisy machine slows all of them down alike.  Memory
bandwidth limits them all: GB/s counts every required read and write.  The copy, for comparison, is NumPy's, of arrays
of the same size divided among the same number of threads.
"""
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from pyllama import backend, machine, memory
from pyllama.params import cast
from pyllama.training.optim import SGD, AdamW, global_norm, sum_and_norm

PARAMETERS = [900_000, 15_000_000, 85_000_000]
SECONDS = 2.0                                               # per row, but at least three rounds


def updates(n):
    """{name: (bytes moved per parameter, function)} for n float32 parameters that count as matrices."""
    rng = np.random.default_rng(0)
    p, g, other = (rng.standard_normal(n, dtype=np.float32) for _ in range(3))
    half, brain = p.astype(np.float16), p.astype(ml_dtypes.bfloat16)
    adamw = AdamW(n, np.float32, matrices=[slice(0, n)])
    sgd = SGD(n, np.float32, matrices=[slice(0, n)], momentum=0.9)
    return {
        "adamw": (28, lambda: adamw.step(p, g, 1e-5, 0.1, 0.5)),
        "sgd": (20, lambda: sgd.step(p, g, 1e-5, 0.1, 0.5)),
        "global_norm": (4, lambda: global_norm(g)),
        "sum_and_norm": (12, lambda: sum_and_norm([g, other])),
        "to_float16": (6, lambda: cast(p, np.float16)),
        "from_float16": (6, lambda: cast(half, np.float32)),
        "to_bfloat16": (6, lambda: cast(p, ml_dtypes.bfloat16)),
        "from_bfloat16": (6, lambda: cast(brain, np.float32)),
    }


def copying(n, threads, pool):
    """A function that copies n float32 numbers, divided among the threads."""
    x, y = np.ones((2, n), np.float32)
    edges = [n * i // threads for i in range(threads + 1)]

    def part(i):
        np.copyto(y[edges[i]:edges[i + 1]], x[edges[i]:edges[i + 1]])

    return lambda: list(pool.map(part, range(threads)))


def medians(runs):
    """{name: median seconds} from {name: (backend, function)}."""
    times: dict[str, list] = {name: [] for name in runs}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times["copy"]) < 4:
        for name, (on, run) in runs.items():
            with backend.use(on):
                begin = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(samples[1:]) for name, samples in times.items()}


def main(names):
    memory.install()                                        # as in training: results reuse memory
    table = Table("function", "numbers", "threads", "NumPy ms", "C ms", "NumPy / C", "C GB/s", "copy GB/s", box=None)
    for n in PARAMETERS:
        for name, (moved, run) in updates(n).items():
            if names and name not in names:
                continue
            for threads in sorted({1, machine.cores()}) if backend.cpu else [1]:
                with ThreadPoolExecutor(threads) as pool:
                    runs = {"copy": ("numpy", copying(n, threads, pool)), "numpy": ("numpy", run)}
                    if backend.cpu:
                        backend.cpu.set_threads(threads)
                        runs["cpu"] = ("cpu", run)
                    seconds = medians(runs)
                compiled = [f"{1e3 * seconds['cpu']:.2f}", f"{seconds['numpy'] / seconds['cpu']:.1f}",
                            f"{moved * n / seconds['cpu'] / 1e9:.1f}"] if backend.cpu else ["", "", ""]
                table.add_row(name, f"{n / 1e6:g} M", str(threads), f"{1e3 * seconds['numpy']:.2f}", *compiled,
                              f"{8 * n / seconds['copy'] / 1e9:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
