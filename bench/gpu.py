"""Check that the CUDA kernels are correct on this GPU, then time them.

    python -m bench.gpu [op ...] [--sizes S M] [--json]

First every op with kernels is compared with the NumPy reference in float64 on random problems, in both precisions.  It
must give the same bits when it runs again, in two threads at once.  A small model must learn as it does on the CPU.  If
anything differs, nothing is timed.

Then each pass is timed at the sizes of training, beside CuPy's own functions on the same arrays, and PyTorch's where it
is installed; they take turns, and the median counts.  "of the best" is the least time by bench/gpu_roofline.py, at the
rates of a large product (cuBLAS) and a large copy in the same run, divided by the measured time; arrays that stay in
the L2 cache can exceed 100 %.  "host µs" is the time of Python and the launches: where it is longer than the device's,
the device waits.  Last come whole training steps, with the most memory that CuPy's pool took from the device.
"""
import argparse
import contextlib
import functools
import itertools
import json
import math
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import pyllama.ops  # noqa: F401 -- registers
from bench import ops as bench_ops
from bench import train as bench_train
from bench.gpu_roofline import SIZES, Card, calls, passes
from bench.passes import small
from bench.table import show
from bench.traffic import axes
from bench.train_pyllama import training
from pyllama import backend, device
from pyllama.cli.inspect import gpu as name_of_gpu
from pyllama.errors import UserError
from pyllama.op import OPS
from pyllama.testing import problem
from pyllama.testing.accuracy import results, tolerances
from pyllama.testing.problems import choose_by, packed

PRODUCT, COPY = 4096, 2 ** 28                   # rows of the reference product's matrices, bytes of the copy
AHEAD = 20                                      # most calls queued while the device is busy
STEPS = 10                                      # training steps timed, after those that bench/train.py compares

CHECKS = {"op": "{op}", "precision": "{precision}", "problems": "{problems}", "of the error allowed": "{error:.2g}",
          "same bits": "{bits}"}
PASSES = {"size": "{size}", "op": "{op}", "pass": "{of}", "by": "{by}", "µs": "{us:,.1f}", "host µs": "{host_us:,.1f}",
          "of the best": "{share:.0%}", "x CuPy": "{cupy:.2f}", "x PyTorch": "{torch:.2f}"}
TRAINED = {"size": "{size}", "parameters": "{parameters:,}", "tokens/s": "{tok_s:,.0f}", "step ms": "{step_ms:,.2f}",
           "best": "{step_ms_min:,.2f}", "of the best": "{share:.0%}", "MFU": "{mfu:.2f}",
           "pool MiB": "{pool_mib:,.0f}"}


class Different(Exception):
    """A result differs from the reference, or from run to run."""


# --- correctness ---

def check(op, precision, problems, like):
    """A record: the largest error as a share of its tolerance, and whether all runs gave the same bits."""
    rng, error, same = np.random.default_rng(0), 0.0, True
    with ThreadPoolExecutor(2) as pool:
        for _ in range(problems):
            inputs, options, dy = problem(op, choose_by(rng), precision)
            xs, dys = ([np.asarray(x, like=like) for x in arrays] for arrays in (inputs, op.each(dy)))

            def run(_=None, xs=xs, options=options, dys=dys):
                return [device.host(a) for a in results(op, xs, options, packed(dys))]

            first = run()
            for got, (want, allowed) in zip(first, tolerances(op, inputs, options, dy), strict=True):
                share = np.abs(got - want).max(initial=0) / allowed
                error = max(error, float(share)) if share == share else math.inf        # NaN is infinitely wrong
            same &= all(a.tobytes() == b.tobytes() for again in pool.map(run, range(2))
                        for a, b in zip(first, again, strict=True))
    return {"op": op.name, "precision": precision, "problems": problems, "error": error, "bits": same}


def learns_alike(like):
    """The record of a small model's first steps: their difference from the CPU's as a share of the tolerance."""
    on_cpu, on_gpu = ([next(records) for _ in range(bench_train.FIRST)]
                   for _, records in (training(SIZES["tiny"], like=x) for x in (None, like)))
    apart = bench_train.difference(*({"losses": [record.loss for record in steps],
                                      "norms": [record.grad_norm for record in steps]} for steps in (on_cpu, on_gpu)))
    return {"op": "training", "precision": "float32", "problems": bench_train.FIRST,
            "error": apart / bench_train.AGREE if apart == apart else math.inf, "bits": None}


# --- speed ---

class Clock:
    """Times calls that are queued while the device is still busy, so that it never waits for a launch."""

    def __init__(self, cupy):
        self.cupy = cupy
        a, b = (cupy.asarray(small(np.random.default_rng(seed), (PRODUCT, PRODUCT))) for seed in range(2))
        source = cupy.zeros(COPY, np.uint8)
        target = cupy.zeros_like(source)
        self.product = lambda: cupy.matmul(a, b)
        seconds = [statistics.median(self.events(f, 1)[0] for _ in range(5)[1:])
                   for f in (self.product, lambda: cupy.copyto(target, source))]
        self.busy = seconds[0]
        self.card = Card(2 * COPY / seconds[1], 2 * PRODUCT ** 3 / seconds[0])

    def events(self, f, times):
        """(seconds of the device, seconds of the host) per call of f, called so many times."""
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        begin.record()
        start = time.perf_counter()
        for _ in range(times):
            f()
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(begin, end) / 1e3 / times, host / times

    def __call__(self, f):
        """The same, with as many calls as can be queued during a large product."""
        _, host = self.events(f, 1)
        self.product()
        return self.events(f, min(AHEAD, max(1, int(self.busy / host / 2))))


def peers(like):
    """{implementation: (name of an op -> function that returns y, back; host array -> its array)}"""
    def ours(on, name):
        def op(*xs, **options):
            with backend.use(on):
                y, back = OPS[name](*xs, **options)
            return y, functools.partial(within, on, back)
        return op

    def within(on, back, dy):
        with backend.use(on):
            return back(dy)

    implementations = {on: (functools.partial(ours, on), lambda x: np.asarray(x, like=like))
                       for on in ("cuda", "numpy")}
    with contextlib.suppress(ImportError):
        import torch

        from bench.ops_torch import op_of
        if torch.cuda.is_available():
            torch.set_default_device("cuda")
            implementations["torch"] = (op_of, lambda x: torch.from_numpy(x).cuda().requires_grad_(x.dtype.kind == "f"))
    return implementations


def timed_passes(op, size, clock, like, rounds):
    """Yield a record for each pass of each implementation.  linear has no kernel of ours: it is CuPy's (cuBLAS)."""
    request, rng = bench_ops.request(op, axes(SIZES[size])), np.random.default_rng(0)
    xs = [rng.integers(0, bound, shape) if bound else small(rng, shape) for shape, bound in request["inputs"]]
    dy = [small(rng, shape) for shape in request["dys"]]
    runs = {}
    for name, (op_of, convert) in peers(like).items():
        f = op_of(op.name)
        if f is None or (name == "cuda" and not hasattr(backend.cuda, op.name)):
            continue
        arrays, dys = [convert(x) for x in xs], packed(map(convert, dy))
        forward = functools.partial(f, *arrays, **request["options"])
        _, back = forward()
        runs[name, "forward"], runs[name, "backward"] = forward, functools.partial(back, dys)
        runs[name, "backward"]()
    times = {run: [] for run in runs}
    for number in range(rounds):
        for run in list(runs)[::-1] if number % 2 else runs:
            times[run].append(clock(runs[run]))
    medians = {run: [statistics.median(column) for column in zip(*pairs, strict=True)] for run, pairs in times.items()}
    least = passes(SIZES[size])
    for (name, of), (seconds, host) in medians.items():
        of_roofline = op.name + ("_backward" if of == "backward" else "") + (" F D" if op.name == "linear" else "")
        ratios = {column: medians[peer, of][0] / seconds if (peer, of) in medians and peer != name else None
                  for column, peer in (("cupy", "numpy"), ("torch", "torch"))}
        yield {"size": size, "op": op.name, "of": of, "by": {"numpy": "cupy"}.get(name, name), "us": 1e6 * seconds,
               "host_us": 1e6 * host, "share": least[of_roofline].seconds(clock.card) / seconds, **ratios}


def trained(size, clock, like):
    """The record of whole training steps."""
    clock.cupy.get_default_memory_pool().free_all_blocks()
    before = clock.cupy.get_default_memory_pool().total_bytes()
    state, records = training(SIZES[size], like=like)
    seconds = [record.seconds for record in itertools.islice(records, bench_train.FIRST + STEPS)][bench_train.FIRST:]
    median, least = statistics.median(seconds), passes(SIZES[size])
    best = sum(times * least[of].seconds(clock.card) for of, times in calls(SIZES[size]).items())
    return {"size": size, "parameters": state.flat.size, "tok_s": SIZES[size].tokens / median, "step_ms": 1e3 * median,
            "step_ms_min": 1e3 * min(seconds), "share": best / median,
            "mfu": SIZES[size].flops / median / clock.card.operations,
            "pool_mib": (clock.cupy.get_default_memory_pool().total_bytes() - before) / 2 ** 20}


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="op", help="default: all that have kernels, and linear")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["S", "M"], help="see bench/gpu_roofline.py")
    parser.add_argument("--problems", type=int, default=30, help="random problems per op and precision")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each pass")
    parser.add_argument("--check", action="store_true", help="only check")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args(arguments)
    if unknown := set(options.ops) - OPS.keys():
        parser.error(f"{min(unknown)} is not an op; choose from {', '.join(OPS)}")
    return options


def tables(options, cupy):
    """Yield (columns, records) of each table; Different if a check fails."""
    like = cupy.empty(0)
    backend.module(type(like))                              # from here on "cuda" is a backend
    chosen = [op for op in OPS.values() if op.name in (options.ops or OPS)]
    checks = [check(op, precision, options.problems, like) for op in chosen if "cuda" in op.backends()
              for precision in ("float64", "float32")]
    checks += [] if options.ops else [learns_alike(like)]
    yield CHECKS, checks
    if wrong := [row for row in checks if row["error"] > 1 or row["bits"] is False]:
        raise Different(f"{wrong[0]['op']} in {wrong[0]['precision']} is wrong or gives other bits when run again; "
                        f"nothing was timed")
    if options.check:
        return
    clock = Clock(cupy)
    yield {"product TFLOP/s": "{product:.1f}", "copy GB/s": "{copy:,.0f}"}, [
        {"product": clock.card.operations / 1e12, "copy": clock.card.bytes / 1e9}]
    for size in options.sizes:
        yield PASSES, [row for op in chosen if "cuda" in op.backends() or op.name == "linear"
                       for row in timed_passes(op, size, clock, like, options.rounds)]
    if not options.ops:
        yield TRAINED, [trained(size, clock, like) for size in options.sizes]


def main(arguments=None):
    options = parse(arguments)
    try:
        cupy = device.cupy()
        print(name_of_gpu(), file=sys.stderr)
        for columns, records in tables(options, cupy):
            if options.json:
                print(*(json.dumps(bench_train.rounded(row)) for row in records), sep="\n", flush=True)
            else:
                show(columns, records)
    except (UserError, Different) as error:
        print(f"bench/gpu.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
