"""Compute a lower bound on training time on a GPU, without one.         python -m bench.gpu_roofline [size ...]

For each pass of pyllama/cuda and each product, the bytes it must move and the operations of its products are listed,
with the time that an A100 and an H100 take for the slower of the two by their datasheets, in float32.  Data that two
launches read counts twice; data read again from a cache counts once.  Other operations are left out: these cards do 38
and 80 of them in the time of moving a number.  The last lines add up a training step: the least time and the most
tokens per second, as if no launch waited for another.
"""
import argparse
import json
import math
from typing import NamedTuple

import pyllama.ops  # noqa: F401 -- registers
from bench import sizes
from bench.sizes import Size
from bench.table import show
from bench.traffic import axes, moved
from pyllama import cuda_text
from pyllama.op import OPS

SIZES = {"S": sizes.SIZES["S"], "M": sizes.SIZES["M"],
         "1B": Size(D=2048, L=16, H=32, F=5632, V=32000, T=2048, B=4), "tiny": sizes.SIZES["tiny"]}
WITHOUT_PRODUCTS = ("embedding", "rms_norm", "add_rms_norm", "layer_norm", "rope", "swiglu", "gelu", "relu", "dropout",
                    "softmax", "cross_entropy")
COLUMNS = {"size": "{size}", "pass": "{of}", "calls a step": "{calls:,}", "MB": "{mb:,.1f}", "GFLOP": "{gflop:,.2f}",
           "A100 µs": "{A100:,.1f}", "by its": "{A100_bound}", "H100 µs": "{H100:,.1f}", "by its ": "{H100_bound}",
           "of an H100's step": "{share:.1%}"}
STEPS = {"size": "{size}", "": "{of}", "on an": "{card}", "ms at least": "{ms:,.1f}",
         "tokens/s at most": "{tokens_s:,.0f}"}


class Card(NamedTuple):
    bytes: float                                # per second, to and from its memory
    operations: float                           # per second, float32 without tensor cores


# "NVIDIA A100 Tensor Core GPU" and "NVIDIA H100 Tensor Core GPU", data sheets, 80 GB, SXM.
CARDS = {"A100": Card(2039e9, 19.5e12), "H100": Card(3350e9, 67e12)}


class Work(NamedTuple):
    bytes: int
    operations: int = 0                         # of matrix products

    def seconds(self, card):
        return max(self.bytes / card.bytes, self.operations / card.operations)

    def bound(self, card):
        return "memory" if self.bytes / card.bytes >= self.operations / card.operations else "products"


def parameters(size):
    return size.V * size.D + size.L * (4 * size.D ** 2 + 3 * size.D * size.F + 2 * size.D) + size.D


def passes(size, itemsize=4):
    """{pass: Work} for the arrays of a model of this size; an op that LLaMA lacks has arrays of similar shape."""
    D, _, H, F, V, T, B = size
    N, P = B * T, parameters(size)
    x, z = N * D, N * V                                                 # size of an activation, and of the logits
    pairs = B * T * (T + 1) // 2 * D                                    # causal pairs of query and key, times the width
    lse, chunks = N * H, math.ceil(z * itemsize / cuda_text.LOGITS)
    numbers = {                                                         # numbers moved, operations
        **without_products(axes(size)),
        **products("linear D D", N, D, D), **products("linear F D", N, F, D), **products("linear D F", N, D, F),
        "attention": (4 * x + lse, 4 * pairs),                          # 2 products
        "attention_backward": (13 * x + 4 * lse, 14 * pairs),           # 3 for dq, 4 for dk and dv: no atomics
        "linear_cross_entropy": (5 * z + 3 * x + 6 * V * D * chunks, 6 * z * D),
        "linear_cross_entropy_backward": (2 * x + 2 * V * D, 0),
        "add": (3 * x, 0),                                              # of a residual branch
        "zeros": (P, 0), "sum_and_norm": (P, 0), "adamw": (7 * P, 0), "sgd": (5 * P, 0),
    }
    return {name: Work(itemsize * moved, operations) for name, (moved, operations) in numbers.items()}


def without_products(lengths):
    """{pass: (numbers moved, 0)} of the ops whose kernels move only what they must."""
    return {name + suffix: (moved(OPS[name], lengths)[of], 0) for name in WITHOUT_PRODUCTS
            for of, suffix in (("forward", ""), ("backward", "_backward"))}


def products(name, N, E, D):
    """{pass: (numbers moved, operations)} of y = x wᵀ, and of dx = dy w with dw = dyᵀ x, added to the gradient."""
    return {name: (N * D + E * D + N * E, 2 * N * D * E),
            name.replace("linear", "linear_backward"): (2 * N * E + 2 * N * D + 5 * E * D, 4 * N * D * E)}


def calls(size):
    """{pass: how often it runs in a training step} with a tied output: models/llama.py and training/loop.py."""
    L = size.L
    both = {"embedding": 1, "rms_norm": L + 1, "add_rms_norm": L, "linear D D": 4 * L, "linear F D": 2 * L,
            "linear D F": L, "rope": 2 * L, "attention": L, "swiglu": L, "linear_cross_entropy": 1}
    return both | {backward(name): times for name, times in both.items()} | {
        "add": 5 * L, "zeros": 1, "sum_and_norm": 1, "adamw": 1}


def backward(name):
    first, *rest = name.split()
    return " ".join([f"{first}_backward", *rest])


def step(size):
    """{card: seconds of a training step}"""
    work = passes(size)
    return {name: sum(times * work[of].seconds(card) for of, times in calls(size).items())
            for name, card in CARDS.items()}


def rows(name):
    """Yield a record for each pass at the named size."""
    times, whole = calls(SIZES[name]), step(SIZES[name])
    for of, work in passes(SIZES[name]).items():
        seconds = {card: work.seconds(CARDS[card]) for card in CARDS}
        yield {"size": name, "of": of, "calls": times.get(of), "mb": work.bytes / 1e6, "gflop": work.operations / 1e9,
               **{card: 1e6 * s for card, s in seconds.items()},
               **{f"{card}_bound": work.bound(CARDS[card]) for card in CARDS},
               "share": seconds["H100"] * times[of] / whole["H100"] if of in times else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", metavar="size", help="S, M and 1B by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args()
    if unknown := set(options.sizes) - SIZES.keys():
        parser.error(f"{min(unknown)} is not a size; choose from {', '.join(SIZES)}")
    chosen = options.sizes or ["S", "M", "1B"]
    records = [row for name in chosen for row in rows(name)]
    steps = [{"size": name, "of": "training step", "card": card, "ms": 1e3 * seconds,
              "tokens_s": SIZES[name].tokens / seconds} for name in chosen
             for card, seconds in step(SIZES[name]).items()]
    if options.json:
        print(*map(json.dumps, records + steps), sep="\n")
    else:
        show(COLUMNS, records)
        show(STEPS, steps)


if __name__ == "__main__":
    main()
