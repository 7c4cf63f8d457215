"""Time every registered op on every backend at the sizes of a small model.     python -m bench.ops [op ...]

The backends take turns within one run, and the median of each is taken, so that a noisy machine disturbs both alike.
"""
import math
import statistics
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import pyllama.ops  # noqa: F401 -- registers
from pyllama import backend
from pyllama.op import OPS, Op
from pyllama.testing.problems import packed

SIZES = {"B": 8, "T": 256, "S": 256, "D": 288, "E": 768, "H": 6, "G": 2, "R": 3, "K": 48, "P": 24,
         "F": 768, "V": 4096, "N": 2048}
SECONDS = 1.0                                               # spent on each op


def shape(axes):
    out: tuple[int, ...] = ()
    for axis in axes:
        if axis == "...":
            out += (SIZES["B"], SIZES["H"]) if "T" in axes else (SIZES["B"], SIZES["T"])
        else:
            out += (math.prod(int(f) if f.isdigit() else SIZES[f] for f in axis.split("*")),)
    return out


def inputs(op: Op):
    """float32 for floating inputs; those that may be left out are.

    Small, as in a model: probabilities of unscaled logits are so small (subnormal) that they slow a processor down.
    """
    rng = np.random.default_rng(0)
    for wanted in op.inputs:
        if wanted.optional:
            continue
        bound = wanted.below and (int(wanted.below) if wanted.below.isdigit() else SIZES[wanted.below])
        yield (rng.integers(0, bound, shape(wanted.axes)) if bound else
               0.1 * rng.standard_normal(shape(wanted.axes), dtype="float32"))


def medians(op: Op):
    """{backend: (forward, backward)} in milliseconds."""
    xs = list(inputs(op))
    rng = np.random.default_rng(1)
    dy = packed(rng.standard_normal(shape(output.axes)).astype("float32") for output in op.outputs)
    times: dict[str, list] = {on: [] for on in op.backends()}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times["numpy"]) < 4:
        for on, samples in times.items():
            with backend.use(on):
                begin = time.perf_counter()
                _, back = op(*xs)
                middle = time.perf_counter()
                back(dy)
                samples.append((middle - begin, time.perf_counter() - middle))
    return {on: [1e3 * statistics.median(passes) for passes in zip(*samples[1:], strict=True)]
            for on, samples in times.items()}


def main(names):
    table = Table("op", "pass", "NumPy ms", "C ms", "NumPy / C", box=None)
    for op in OPS.values():
        if names and op.name not in names:
            continue
        found = medians(op)
        for i, which in enumerate(("forward", "backward")):
            slow, fast = found["numpy"][i], found["cpu"][i] if "cpu" in found else None
            compiled = [f"{fast:.3f}", f"{slow / fast:.2f}"] if fast else []
            table.add_row(op.name, which, f"{slow:.3f}", *compiled)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
