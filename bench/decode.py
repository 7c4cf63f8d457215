"""Time generation on one sequence beside llama.cpp, OpenVINO and PyTorch.

    python -m bench.decode --sizes S M L --formats f32 f16 q8_0 q4_0 --json out.json

Each size and format is a GGUF file with random weights, in memory, and removed afterwards; PyTorch has a model of that
size, in float32 or bfloat16.  Each engine runs in a process of its own, with the same number of threads.  Its first
answer gives the time from the start of the process to the first token.  Then the engines take turns (rotation.py): 64
tokens after the first one that follows a prompt of 32, with attention and the choice of the token, and a prompt of 512.
Medians count.

The share of bandwidth is the bytes of the weights that a token needs, times tokens a second, over the rate at which the
same threads read memory in the same rotation.  It exceeds 1 where weights stay in a cache; "of cached" is the share of
the rate of reading an array of the weights' size again and again.  The limit of memory is 1.1 times the file, the cache
of keys and values and 64 MB.

Before, and for every file, pyllama and llama.cpp must choose the same tokens, except where two scores are almost equal.
"""
import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench import decode_files
from bench.decode_report import COUNT, DTYPES, LONG, PROMPT, agreement, beside, failure, row, speed
from bench.decode_sizes import SIZES
from bench.ops import machine_name
from bench.rotation import ROOT, Worker, on_threads, rotate
from bench.table import show
from bench.train import rounded
from pyllama import machine
from pyllama.errors import UserError

ENGINES = ("pyllama", "llamacpp", "openvino", "torch", "torch-compile")
USUAL = ENGINES[:-1]                                    # compiling takes minutes
BOTH = ("pyllama", "llamacpp")                          # must choose the same tokens
READER = "bandwidth"
MEMORY = 2 ** 30                                        # bytes that the reader reads: more than stays in a cache
TURN = 0.5                                              # least seconds of a turn's tokens
MOST = 9                                                # rounds
FIRST = 17                                              # tokens of the first answer, which are compared
START = [1]                                             # the start token of llama2.c's models

SPEED = {"size": "{size}", "format": "{format}", "engine": "{impl}", "tokens/s": "{tok_s:,.1f}",
         "x llama.cpp": "{ratio:.2f}", "GB/s": "{gb_s:.1f}", "of bandwidth": "{of_bandwidth:.2f}",
         "of cached": "{of_cached:.2f}", "prompt tokens/s": "{prompt_tok_s:,.0f}",
         "first token s": "{first_token_s:.2f}", "peak MB": "{peak_mb:,.0f}", "of limit": "{of_limit:.2f}",
         "turns": "{n:d}", "disturbed": "{disturbed:d}", "": "{notes}"}
SAME = {"size": "{size}", "format": "{format}", "same tokens as llama.cpp": "{same}", "of": "{of}",
        "largest gap": "{largest_gap:.3f}", "the same model": "{agree}"}


def roomy(folder=Path("/dev/shm")):
    """A folder in memory, so that no disk takes part; None if the system has none for large files."""
    return folder if folder.exists() and shutil.disk_usage(folder).free > 8e9 else None


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["S", "M", "L"])
    parser.add_argument("--formats", nargs="+", choices=decode_files.FORMATS, default=decode_files.FORMATS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=USUAL)
    parser.add_argument("--seconds", type=float, default=15, help="for the turns of a size and format, of which each "
                        "engine has at least one")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("PYLLAMA_NUM_THREADS") or machine.cores()))
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="the environment with the other engines")
    parser.add_argument("--folder", type=Path, default=roomy(), help="where the files are written, the largest of "
                        "4.4 GB; default: in memory, if there is room")
    parser.add_argument("--trained", type=Path, help="a trained model of llama2.c, to compare tokens",
                        default=ROOT.parent / "shared/fixtures/stories260K/stories260K.bin")
    parser.add_argument("--json", type=Path, help="also write the rows into this file, a JSON object a line")
    options = parser.parse_args(arguments)
    if {*options.engines} != {"pyllama"} and not (options.peers / ".engines").exists():
        parser.error(f"{options.peers} does not have the other engines; `make bench-decode` installs them, or choose "
                     f"--engines pyllama")
    return options


class Engine(Worker):
    """A worker that answers {"error": why} if it ends: the other engines go on."""

    def ask(self, **request):
        try:
            return super().ask(**request)
        except ChildProcessError as error:
            return {"error": str(error)}


def engine(name, size, form, path, options):
    """An engine; None if it does not have the format."""
    threads = str(options.threads)
    theirs = {"python": options.peers / "bin/python", **on_threads(options.threads)}
    if name == "pyllama":
        return Engine(name, "bench.decode_pyllama", str(path), PYLLAMA_NUM_THREADS=threads)
    if not name.startswith("torch"):
        return Engine(name, f"bench.decode_{name}", str(path), threads, **theirs)
    if form not in DTYPES:
        return None
    return Engine(name, "bench.decode_torch", size, threads, DTYPES[form], *name.split("-")[1:], **theirs)


def prompt(size, length):
    """Random tokens, without the first ids, which mark the beginning and the end of a text."""
    return np.random.default_rng(length).integers(3, SIZES[size].V, size=length).tolist()


class Started(NamedTuple):
    """An engine that was started."""
    worker: Engine
    answer: dict                                # to the first request
    seconds: float                              # from the start of its process to its first token


def started(size, form, path, options, stack, on_turn):
    """{name: Started} of the engines that have the format, one after the other: none disturbs another's start."""
    engines = {}
    for name in options.engines:
        on_turn(name)
        begin = time.monotonic()
        worker = engine(name, size, form, path, options)
        if worker is not None:
            answer = stack.enter_context(worker).ask(tasks=[[prompt(size, PROMPT), FIRST]])
            engines[name] = Started(worker, answer, answer["runs"][0]["known"][0] - begin if "runs" in answer else 0)
    return engines


def agreed(size, form, prompt, engines):
    """The rows same_tokens, from the answers to the prompt; none without both engines."""
    if not all(name in engines and "runs" in engines[name].answer for name in BOTH):
        return []
    ours, theirs = (engines[name].answer["runs"][0]["ids"] for name in BOTH)
    answer = engines["pyllama"].worker.ask(gaps=[prompt, theirs])
    return [agreement(size, form, ours, theirs, answer["gaps"])] if "gaps" in answer else []


def turns_of(size, form, engines, options, on_turn):
    """{name: [(answer, disturbed), ...]} of the engines and the reader, taken in turn until the time is over."""
    short, long = [prompt(size, PROMPT), COUNT + 1], [prompt(size, LONG), 1]
    requests = {name: {"tasks": [short] * max(1, round(TURN * speed(started.answer["runs"][0]) / COUNT)) + [long]}
                for name, started in engines.items()}
    requests[READER] = {"size": decode_files.token_bytes(size, form)}
    turns, end = defaultdict(list), time.monotonic() + options.seconds
    with Worker(READER, "bench.bandwidth", str(options.threads), str(MEMORY)) as reader:
        workers = [started.worker for started in engines.values()] + [reader]
        for worker, answer, disturbed in rotate(workers, requests, MOST, retries=1):
            on_turn(worker.name)
            turns[worker.name].append((answer, disturbed))
            if time.monotonic() > end and turns.keys() == requests.keys():
                break
    return turns


def measured(size, form, path, options, on_turn):
    """(rows of the engines, rows same_tokens) of one file."""
    with contextlib.ExitStack() as stack:
        engines = started(size, form, path, options, stack, on_turn)
        running = {name: engine for name, engine in engines.items() if "runs" in engine.answer}
        same = agreed(size, form, prompt(size, PROMPT), engines)
        turns = turns_of(size, form, running, options, on_turn)
    rows = [row(size, form, name, seconds, turns[name], turns[READER], path.stat().st_size) if name in running
            else failure(size, form, name, answer["error"]) for name, (_, answer, seconds) in engines.items()]
    return beside(rows), same


def of_trained(form, path, options):
    """The rows same_tokens of the trained model, from its start token on."""
    decode_files.write_trained(path, options.trained, form)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(engine(name, None, form, path, options)) for name in BOTH]
        engines = {worker.name: Started(worker, worker.ask(tasks=[[START, COUNT]]), 0) for worker in workers}
        return agreed(options.trained.stem, form, START, engines)


@contextlib.contextmanager
def temporary(folder):
    """The path of a file, which is removed afterwards, in a new folder there."""
    with tempfile.TemporaryDirectory(prefix="bench-decode-", dir=folder) as new:
        yield Path(new) / "model.gguf"


def main():
    options = parse()
    print(f"{machine_name(options.threads)}; random weights, one sequence: {COUNT} tokens after a prompt of {PROMPT}")
    same = []

    def keep(rows):
        if options.json:
            with options.json.open("a") as file:
                file.writelines(f"{json.dumps(rounded(row))}\n" for row in rows)
        return rows

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        for form in options.formats if {*BOTH} <= {*options.engines} and options.trained.exists() else []:
            bar.update(task, description=f"{options.trained.stem} {form}")
            with temporary(options.folder) as path:
                same += keep(of_trained(form, path, options))
        for size in options.sizes:
            rows = []
            for form in options.formats:
                with temporary(options.folder) as path:
                    bar.update(task, description=f"{size} {form}: writing")
                    decode_files.write(path, size, form)
                    speed, agree = measured(size, form, path, options, lambda name, what=f"{size} {form}":
                                            bar.update(task, description=f"{what}: {name}"))
                rows, same = rows + keep(speed), same + keep(agree)
            show(SPEED, rows)
    show(SAME, same)
    return 0 if all(row["agree"] for row in same) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, UserError) as error:
        sys.exit(f"bench/decode.py: {error}")
