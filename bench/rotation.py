"""Processes that take turns on a machine which others use too.

A worker is a process that answers requests, each one a line of JSON on its standard input, the answer a line on its
standard output; it ends when its input does.  One of each kind is started, and rotate() asks them by turns, in an order
that is reversed every round, so that a machine that grows slower or faster is so for all.  A turn in which other
processes used the cores, or the host of a virtual machine withheld them, is taken again.
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
DISTURBED = 0.08                                # of a core, used by others
REST = 0.2                                      # seconds before a turn: threads spin for a while after their last work
PATIENCE = 2                                    # seconds to wait for a quiet machine before a turn


def serve(answer):
    """The worker's side: answer(**request) is a dict."""
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def peak_rss():
    """The most memory this process has had resident, in bytes; not ru_maxrss where there is a better figure, because
    that of a small child is its parent's."""
    try:
        status = (PROC / "self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss           # macOS, which counts in bytes


class Worker:
    """`python -m module *arguments`, with these environment variables and none that tunes a library behind its back:
    what one implementation sets for itself would be inherited by the other."""

    def __init__(self, name, module, *arguments, python=sys.executable, **environment):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(TUNING)}
        self.name = name
        python = os.path.abspath(shutil.which(python) or python)            # the child starts in another folder
        self.process = subprocess.Popen([python, "-m", module, *arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=inherited | environment,
                                        process_group=0)            # Ctrl-C is for us; they end with us

    def ask(self, **request):
        """Its answer; ChildProcessError if it ends instead."""
        with contextlib.suppress(BrokenPipeError):          # it has ended: so does what it says
            print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):            # not what a library has to say
                return json.loads(line)
        raise ChildProcessError(f"{self.name} ended with status {self.process.wait()} instead of an answer; its last "
                                f"words stand above")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Send it away; one that does not go is killed."""
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
    """Yield (worker, its answer to requests[worker.name], whether it was disturbed), `rounds` times for each.

    A disturbed turn is taken again up to `retries` times; if none was quiet the least disturbed counts.
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
    """Until the machine is quiet, or patience ends."""
    end = time.monotonic() + PATIENCE
    while taken_by_others(workers, lambda: time.sleep(REST))[0] > DISTURBED and time.monotonic() < end:
        pass


def taken_by_others(workers, run):
    """(cores that were not ours while run() ran, 0 where that is not known, and what it returned)"""
    before, begin = others(workers), time.monotonic()
    result = run()
    return (others(workers) - before) / (time.monotonic() - begin), result


def others(workers):
    """Seconds that our cores have worked for processes besides the workers and this one, or were withheld."""
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
    """What this process and its children that ended have used."""
    after_name = (PROC / f"{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:15]))
