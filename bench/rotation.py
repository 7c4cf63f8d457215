"""Processes that take turns, for measuring on a shared machine.

A worker is a process that answers requests: each is a line of JSON on its standard input, each answer a line on its
standard output.  It ends when its input ends.  rotate() asks the workers in turn and reverses their order every round,
so that a machine that becomes slower or faster affects them all alike.  A turn is repeated if other processes used the
cores meanwhile, or the host of a virtual machine withheld them.
"""
import contextlib
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROC = Path("/proc")
TUNING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GLIBC_TUNABLES", "MALLOC_")
DISTURBED = 0.08                                # of a core's time, used by others
REST = 0.2                                      # seconds before a turn: idle threads spin for a while
PATIENCE = 2                                    # seconds to wait for a quiet machine before a turn


def serve(answer):
    """Run the worker's loop: print the dict answer(**request) for each request."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def peak_rss():
    """The peak resident memory of this process in bytes.

    Read from /proc where possible, because a small child inherits its parent's ru_maxrss.
    """
    try:
        status = (PROC / "self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss           # macOS, which counts in bytes


class Worker:
    """The process `python -m module *arguments` with these environment variables.

    Variables that tune libraries are not inherited: those set for one implementation would affect the others.
    """

    def __init__(self, name, module, *arguments, python=sys.executable, **environment):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(TUNING)}
        self.name = name
        python = os.path.abspath(shutil.which(python) or python)            # the child starts in another folder
        self.process = subprocess.Popen([python, "-m", module, *arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=inherited | environment,
                                        process_group=0)            # Ctrl-C reaches only us; workers end with us

    def ask(self, **request):
        """Send the request and return the answer; ChildProcessError if the worker ends instead."""
        with contextlib.suppress(BrokenPipeError):          # it has ended; so will its output
            print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):            # skips what libraries print
                return json.loads(line)
        raise ChildProcessError(f"{self.name} ended with status {self.process.wait()} instead of an answer; its error "
                                f"messages are above")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Close the worker's input and wait; kill it if it does not end."""
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def on_threads(n):
    """The environment variables that give any library n threads."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
                         str(n))


def rotate(workers, requests, rounds, retries=2):
    """Yield (worker, its answer to requests[worker.name], disturbed?), `rounds` times for each worker.

    A disturbed turn is repeated up to `retries` times; if none was quiet, the least disturbed one counts.
    """
    for number in range(rounds):
        for worker in workers[::-1] if number % 2 else workers:
            turns = []
            while len(turns) <= retries and (not turns or turns[-1][0] > DISTURBED):
                wait(workers)
                turns.append(taken_by_others(workers, functools.partial(worker.ask, **requests[worker.name])))
            share, answer = min(turns, key=lambda turn: turn[0])
            yield worker, answer, share > DISTURBED


def wait(workers):
    """Wait until the machine is quiet, at most PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while taken_by_others(workers, lambda: time.sleep(REST))[0] > DISTURBED and time.monotonic() < end:
        pass


def taken_by_others(workers, run):
    """(cores that others used while run() ran, or 0 where that is unknown, run's result)"""
    before, begin = others(workers), time.monotonic()
    result = run()
    return (others(workers) - before) / (time.monotonic() - begin), result


def others(workers):
    """Core seconds, so far, that other processes used or the host withheld; ours are the workers and this process."""
    try:
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in (PROC / "stat").read_text().splitlines()]
        user, nice, system, _, _, irq, softirq, steal = (
            sum(column) for column in zip(*(map(int, line[1:9]) for line in lines if line[0] in cores), strict=True))
        ours = sum(ticks(process) for process in ("self", *(worker.process.pid for worker in workers)))
    except (AttributeError, OSError):           # not Linux
        return 0.0
    return (user + nice + system + irq + softirq + steal - ours) / os.sysconf("SC_CLK_TCK")


def ticks(process):
    """Clock ticks used by this process and its children that have ended."""
    after_name = (PROC / f"{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:15]))
