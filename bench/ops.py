"""Time every op on every backend at the sizes of a small model, beside PyTorch's if a Python with PyTorch is named.

    python bench/ops.py [op ...] [--peers-python PATH]

Each backend runs in a process of its own; they take turns (rotation.py), and the median of each counts.  The rate of
a pass is the GFLOP/s of its matrix products, or else the GB/s that it must read and write.  Its share of peak compares
that with the machine's best rate in the same run: a product of large matrices, or a copy.  A pass whose arrays fit into
a cache can exceed the copy.  All have the same number of threads; beside the kernels, NumPy has one, as in training.
Times are kept in bench/results/, so that the next run shows the effect of a change.
"""
import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))              # to run as a file, too

from rich.console import Console
from rich.progress import track

import pyllama.ops  # noqa: F401 -- registers
from bench.rotation import ROOT, Worker, on_threads, rotate
from bench.table import show
from bench.traffic import moved, shapes
from pyllama import backend, machine
from pyllama.op import OPS

AXES = {"B": 8, "T": 256, "S": 256, "D": 288, "E": 768, "H": 6, "G": 2, "R": 3, "J": 48, "K": 48, "P": 24, "F": 768,
        "V": 4096, "N": 2048}
OPTIONS = {"attention": {"causal": True}, "dropout": {"rate": 0.1}}
RESULTS = ROOT / "bench/results/ops.jsonl"
SECONDS = 0.3                                   # per turn

# Operations of a forward pass's products; a backward pass takes twice as many.
B, T, S, D, E, G, R, K, V, N = (AXES[axis] for axis in "BTSDEGRKVN")
FLOPS = {"linear": 2 * B * T * D * E, "linear_cross_entropy": 2 * N * D * V, "adapted_norm": 2 * E * D * R,
         "attention": 2 * B * G * R * T * S * K,                # causal: half of two products
         "attention_divergence": 4 * B * G * R * T * S * K}     # H = G R heads; K = J
AT_ONCE = {"linear_cross_entropy"}              # the forward pass computes the gradients, too: only both compare

COLUMNS = {"op": "{op}", "pass": "{of}", "backend": "{backend}", "ms": "{ms:.3f}", "rate": "{rate:.1f}",
           "": "{unit}", "of peak": "{share:.0%}", "x NumPy": "{numpy:.2f}", "x PyTorch": "{torch:.2f}",
           "disturbed": "{disturbed}"}


def request(op, lengths=AXES):
    """The request to the workers: required inputs only."""
    inputs, outputs = shapes(op, lengths)
    return {"name": op.name, "inputs": inputs, "dys": outputs, "options": OPTIONS.get(op.name, {}), "seconds": SECONDS}


def amounts(op):
    """{pass: (amount, unit)}: operations of its products, or else bytes that must be read and written."""
    if op.name in FLOPS:
        passes, unit = {"forward": FLOPS[op.name], "backward": 2 * FLOPS[op.name]}, "GFLOP/s"
    else:
        passes, unit = {of: 4 * numbers for of, numbers in moved(op, AXES).items()}, "GB/s"
    if op.name in AT_ONCE:
        passes = {"both": sum(passes.values())}
    return {of: (amount, unit) for of, amount in passes.items()}


def medians(op, answers):
    """{pass: seconds} from a worker's answers."""
    if op.name in AT_ONCE:
        answers = [{"both": list(map(sum, zip(*answer.values(), strict=True)))} for answer in answers]
    return {of: statistics.median(statistics.median(answer[of]) for answer in answers) for of in answers[0]}


def records(op, turns, most, before):
    """Yield a record for each pass on each backend, from {backend: [(answer, disturbed), ...]}."""
    times = {name: medians(op, [answer for answer, _ in answers]) for name, answers in turns.items()}
    for of, (amount, unit) in amounts(op).items():
        for name, passes in times.items():
            seconds, rate = passes[of], amount / passes[of] / 1e9
            theirs = {other: times[other][of] / seconds if other in times and other != name else None
                      for other in ("numpy", "torch")}
            then = before.get(f"{op.name} {of} {name}")
            yield {"op": op.name, "of": of, "backend": name, "ms": 1e3 * seconds, "rate": rate, "unit": unit,
                   "share": rate / most[unit], **theirs, "change": 1e3 * seconds / then - 1 if then else None,
                   "disturbed": sum(disturbed for _, disturbed in turns[name])}


def version():
    """The commit, with "-dirty" if files have changed since."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def machine_name(threads):
    """The key of comparable times: processor, threads and instruction set."""
    cpus = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = cpus.partition("model name")[2].partition("\n")[0].strip("\t :")
    return f"{model or platform.machine()}, {threads} threads, {getattr(backend.cpu, 'isa', 'no kernels')}"


def last(here, now):
    """(version, {"op pass backend": milliseconds}) of the last run on this machine with another version."""
    runs = map(json.loads, RESULTS.read_text().splitlines()) if RESULTS.exists() else ()
    others = [run for run in runs if run["machine"] == here and run["version"] != now]
    return others[-1]["version"] if others else None, {key: ms for run in others for key, ms in run["ms"].items()}


def keep(here, now, rows):
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        print(json.dumps({"version": now, "machine": here, "ms": {
            f"{row['op']} {row['of']} {row['backend']}": row["ms"] for row in rows}}), file=file)


def workers(threads, peers_python):
    yield Worker("numpy", "bench.ops_pyllama", "numpy", **on_threads(threads))
    if backend.cpu:
        yield Worker("cpu", "bench.ops_pyllama", "cpu", PYLLAMA_NUM_THREADS=str(threads))
    if peers_python:
        yield Worker("torch", "bench.ops_torch", str(threads), python=peers_python, **on_threads(threads))


def measure(options, before):
    """Yield the records of the ops that options name, or of all."""
    with contextlib.ExitStack() as stack:
        yardstick = stack.enter_context(
            Worker("yardstick", "bench.yardstick", str(options.threads), **on_threads(options.threads)))
        most = {unit: max(answer["rate"] for _, answer, _ in rotate([yardstick], {"yardstick": {"task": task}}, 3))
                for unit, task in (("GFLOP/s", "product"), ("GB/s", "copy"))}
        everyone = [stack.enter_context(worker) for worker in workers(options.threads, options.peers_python)]
        chosen = [OPS[name] for name in options.ops or OPS]
        for op in track(chosen, "", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()):
            turns = {}
            requests = {worker.name: request(op) for worker in everyone}
            for worker, answer, disturbed in rotate(everyone, requests, options.rounds, options.retries):
                if answer:                      # some workers lack some ops
                    turns.setdefault(worker.name, []).append((answer, disturbed))
            yield from records(op, turns, most, before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="op", help="all ops, or those named")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each backend")
    parser.add_argument("--retries", type=int, default=1, help="how often a disturbed turn is repeated")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("PYLLAMA_NUM_THREADS") or machine.cores()))
    parser.add_argument("--peers-python", help="a Python that has PyTorch")
    options = parser.parse_args()
    if unknown := set(options.ops) - OPS.keys():
        parser.error(f"{min(unknown)} is not an op; choose from {', '.join(OPS)}")
    here, now = machine_name(options.threads), version()
    then, before = last(here, now)
    rows = list(measure(options, before))
    show(COLUMNS | ({f"since {then}": "{change:+.0%}"} if then else {}), rows)
    keep(here, now, rows)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"bench/ops.py: {error}")
