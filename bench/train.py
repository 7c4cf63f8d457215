"""Time a whole training step of pyllama beside PyTorch's: forward, backward, clipping and AdamW.

    python bench/train.py --sizes T S --peers --rounds 5 --json

All implementations train the same model from the same weights on the same text by the same rule.  No figure is given
unless their losses and gradient norms agree in the first steps.  Each runs in a process of its own; they take turns
(rotation.py), and the median of an implementation's turns counts.  "bf16" computes products in bfloat16 where the
processor has instructions for them, the others compute in float32.  "+malloc" is PyTorch with a C library that keeps
freed memory.  Model FLOP utilization (MFU) is the rate of a step's operations (sizes.py) divided by that of a large
matrix product in float32 in the same rotation: PyTorch's or NumPy's, whichever is faster on this machine.
"""
import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import get_args, get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1]))              # to run as a file, too

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench.rotation import PROC, ROOT, Worker, on_threads, rotate
from bench.sizes import SIZES
from bench.table import show
from bench.train_pyllama import settings, tokens
from pyllama import machine
from pyllama.text.tokens import windows
from pyllama.training.loop import Settings

# Freed memory below 16 GiB stays with the process, and it lies in huge pages.  In float32, all threads share it; in
# bfloat16 sharing makes PyTorch 1.7 times as slow at size T.
MALLOC = "glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1"
TUNABLES = {"": f"{MALLOC}:glibc.malloc.arena_max=1", "-bf16": MALLOC}
PEERS = {f"torch{form}-{way}{malloc}": {"GLIBC_TUNABLES": tunables} if malloc else {}
         for form, tunables in TUNABLES.items() for way in ("eager", "compile") for malloc in ("", "+malloc")}
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # Linux's names of instructions for bfloat16; the last is ARM's
YARDSTICK = "yardstick"                         # the start of its workers' names
FIRST = 3                                       # steps that are compared but not timed
AGREE = 1e-4                                    # largest relative difference of their losses and gradient norms
# A norm changes by at most as much as its numbers, one rounding of which is off by 2 ** -8 at most.  Many roundings to
# nearest average out, to 6e-4 at sizes T and Sp; were they all toward zero, T would be off by 5e-3.
AGREE_BF16 = 2 ** -8
TURN = 1.0                                      # least seconds of a turn

SPEED = {"size": "{size}", "implementation": "{impl}", "tokens/s": "{tok_s:,.0f}", "step ms": "{step_ms:,.1f}",
         "best": "{step_ms_min:,.1f}", "x eager": "{ratio_eager:.2f}", "x fastest": "{ratio_fastest:.2f}",
         "x float32's": "{ratio_float32:.2f}", "MFU": "{mfu:.2f}", "GFLOP/s of sgemm": "{sgemm_gflops:.0f}",
         "peak MiB": "{peak_rss_mb:,.0f}", "of eager's": "{ratio_memory:.2f}", "turns": "{n}",
         "disturbed": "{disturbed}"}
CHECK = {"size": "{size}", "implementation": "{impl}", "losses": "{losses}", "gradient norms": "{norms}",
         "largest relative difference": "{difference:.1e}"}
PROFILE = {"size": "{size}", "implementation": "{impl}", "function": "{function}", "ms a step": "{ms:,.2f}",
           "share": "{share:.1%}", "calls": "{calls:,}"}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["T", "Sp", "S", "M"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each implementation")
    parser.add_argument("--retries", type=int, default=2, help="how often a disturbed turn is repeated")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("PYLLAMA_NUM_THREADS") or machine.cores()))
    parser.add_argument("--peers", nargs="*", choices=PEERS,
                        help="compare with PyTorch, run in all these ways or in those named")
    parser.add_argument("--peers-python", default=ROOT / ".peers/bin/python", help="a Python that has PyTorch")
    parser.add_argument("--ours", nargs="+", default=[], metavar="VARIANT", help="also time pyllama with flags of "
                        "`pyllama train` and variables: recompute, shards=2 or small:recompute,PYLLAMA_ARENA=0")
    parser.add_argument("--check", action="store_true", help="compare losses and gradient norms only")
    parser.add_argument("--profile", action="store_true", help="also show where pyllama's time goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args(arguments)
    options.peers = [] if options.peers is None else options.peers or list(PEERS)
    options.peers, options.note = supported(options.peers)
    if options.peers and not shutil.which(options.peers_python):
        parser.error(f"{options.peers_python} does not exist; `make bench-train` creates it, or name another Python "
                     f"that has PyTorch with --peers-python")
    return options


def has_bfloat16():
    """Does the processor have instructions for products in bfloat16?  False where the system does not say."""
    try:
        return not {*BFLOAT16}.isdisjoint((PROC / "cpuinfo").read_text().split())
    except OSError:                             # not Linux
        return False


def supported(names):
    """(the implementations that the processor has instructions for, a note on the others or "")."""
    slow = [] if has_bfloat16() else [name for name in names if "bf16" in name]
    note = f"{', '.join(slow)}: not timed, because {PROC}/cpuinfo names none of {', '.join(BFLOAT16)}" if slow else ""
    return [name for name in names if name not in slow], note


def precisions(settings):
    """Yield (name, flags, variables) of pyllama for each precision among the choices of these settings."""
    yield "pyllama", [], {}
    if "bfloat16" in get_args(get_type_hints(settings)["dtype"]):
        yield "pyllama-bf16", ["--dtype=bfloat16"], {}


def variant(text):
    """(name, flags, variables) of "small:recompute,PYLLAMA_ARENA=0"; where no name is given the rest is it."""
    name, _, words = text.rpartition(":")
    words = words.split(",")
    return (f"pyllama+{name or text}", [f"--{word}" for word in words if not word[0].isupper()],
            dict(word.split("=", 1) for word in words if word[0].isupper()))


def workers(options, size):
    """Yield the workers: the implementations, then the yardsticks."""
    threads, theirs = str(options.threads), on_threads(options.threads)
    for name, flags, variables in [*precisions(Settings), *map(variant, options.ours)]:
        yield Worker(name, "bench.train_pyllama", size, *flags, **{"PYLLAMA_NUM_THREADS": threads} | variables)
    for name in options.peers:
        ways = [way for way in ("compile", "bf16") if way in name]
        yield Worker(name, "bench.train_torch", size, threads, *ways, python=options.peers_python,
                     **theirs | PEERS[name])
    for python in [sys.executable, options.peers_python] if options.peers else [sys.executable]:
        yield Worker(f"{YARDSTICK} of {python}", "bench.yardstick", threads, **theirs, python=python)


def first_steps(implementations, size):
    """{name: answer} for the first steps; ValueError if the implementations disagree."""
    plan, corpus = settings(SIZES[size]), tokens(SIZES[size])
    ids = [windows(corpus, plan.batch_size, plan.block_size, plan.seed, step).tolist() for step in range(FIRST)]
    first = {worker.name: worker.ask(steps=FIRST, **({"ids": ids} if worker.name in PEERS else {}))
             for worker in implementations}
    for name, answer in first.items():
        agree = AGREE_BF16 if "bf16" in name or "bfloat16" in name else AGREE
        if not (apart := difference(first["pyllama"], answer)) <= agree:
            raise ValueError(f"{name} differs from pyllama by {apart:.1e} in the first {FIRST} steps of size {size}, "
                             f"which is more than {agree:.0e}: they do not compute the same")
    return first


def difference(a, b):
    """The largest relative difference between the losses and gradient norms of two answers."""
    return float(max(np.max(np.abs(np.divide(b[of], a[of]) - 1)) for of in ("losses", "norms")))


def report(size, turns):
    """Yield a row for each implementation, from {name: [(answer, disturbed), ...]}."""
    sgemm = max(statistics.median(answer["rate"] for answer, _ in answers)
                for name, answers in turns.items() if name.startswith(YARDSTICK))
    steps = {name: [statistics.mean(answer["seconds"]) for answer, _ in answers]
             for name, answers in turns.items() if not name.startswith(YARDSTICK)}
    medians = {name: statistics.median(seconds) for name, seconds in steps.items()}
    eager = medians.get("torch-eager")
    peaks = {name: max(answer["peak_rss"] for answer, _ in turns[name]) for name in medians}
    theirs = {name: median for name, median in medians.items() if name in PEERS}
    fastest = min(theirs.values(), default=None)
    float32 = min((median for name, median in theirs.items() if "bf16" not in name), default=None)
    for name, median in medians.items():
        yield {"size": size, "impl": name, "tok_s": SIZES[size].tokens / median,
               "ratio_eager": eager and eager / median, "ratio_fastest": fastest and fastest / median,
               "ratio_float32": float32 and float32 / median,
               "mfu": SIZES[size].flops / median / 1e9 / sgemm, "sgemm_gflops": sgemm,
               "peak_rss_mb": peaks[name] / 2 ** 20, "ratio_memory": eager and peaks[name] / peaks["torch-eager"],
               "step_ms": 1e3 * median, "step_ms_min": 1e3 * min(steps[name]),
               "n": len(steps[name]), "disturbed": sum(disturbed for _, disturbed in turns[name])}


def profile(worker, steps, size, threads):
    """Yield a row for each function that took the cores' time in a few more steps, the largest first."""
    answer = worker.ask(steps=steps, profile=True)
    wall = sum(answer["seconds"])
    spent = {name: (seconds / threads, calls) for name, (seconds, calls) in answer["spent"].items()}
    spent["outside of ops and optimizer"] = wall - sum(seconds for seconds, _ in spent.values()), 0
    for name, (seconds, calls) in sorted(spent.items(), key=lambda item: -item[1][0]):
        yield {"size": size, "impl": worker.name, "function": name, "ms": 1e3 * seconds / steps,
               "share": seconds / wall, "calls": calls // steps}


def run(options, size, bar):
    """Yield (columns, rows) for each table of one size."""
    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(worker) for worker in workers(options, size)]
        yardsticks = [worker for worker in everyone if worker.name.startswith(YARDSTICK)]
        implementations = everyone[:-len(yardsticks)]
        task = bar.add_task(f"{size}: first steps", total=options.rounds * len(everyone))
        first = first_steps(implementations, size)
        if options.check:
            yield CHECK, [{"size": size, "impl": name, "losses": answer["losses"], "norms": answer["norms"],
                           "difference": difference(first["pyllama"], answer)} for name, answer in first.items()]
            return
        requests = {name: {"steps": math.ceil(TURN / min(answer["seconds"]))} for name, answer in first.items()}
        for yardstick in yardsticks:
            requests[yardstick.name] = {"task": "product"}
            yardstick.ask(task="product")
        turns = {worker.name: [] for worker in everyone}
        for worker, answer, disturbed in rotate(everyone, requests, options.rounds, options.retries):
            turns[worker.name].append((answer, disturbed))
            bar.update(task, advance=1, description=f"{size}: {worker.name}")
        yield SPEED, list(report(size, turns))
        for worker in implementations:
            if options.profile and worker.name not in PEERS:
                yield PROFILE, list(profile(worker, requests[worker.name]["steps"], size, options.threads))


def rounded(row):
    """The row with floats rounded to six significant digits."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}


def main():
    options = parse()
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        for size in options.sizes:
            for columns, rows in run(options, size, bar):
                if options.json:
                    print(*(json.dumps(rounded(row)) for row in rows), sep="\n", flush=True)
                else:
                    show(columns, rows)
    if options.note:
        print(options.note, file=sys.stderr if options.json else sys.stdout)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"bench/train.py: {error}")
