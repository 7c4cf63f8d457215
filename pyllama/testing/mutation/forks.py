"""Run functions in forked processes, some at a time.

A fork starts in a millisecond with every module imported and every test collected, and what a bug breaks dies with it.
"""
import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

SURVIVED, KILLED, NO_MUTANT, BROKEN = range(4)          # exit statuses; ended by a signal (< 0) is killed too
MEMORY = 8 * 2 ** 30                                    # bytes that a fork may allocate
Key = TypeVar("Key")
STOPPING = {signal.SIGINT, signal.SIGTERM}
Say = Callable[[Any], None]


def fork(function: Callable[[], int]) -> int:
    """Run the function in a child process, which exits with its result.  Returns the process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)             # Python 3.12, if there are threads
        pid = os.fork()
    if pid:
        return pid
    status, stderr = BROKEN, os.dup(2)
    try:
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        limit_memory()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        status = function()
    except BaseException:
        os.write(stderr, traceback.format_exc().encode())
    finally:
        os._exit(status)


def limit_memory() -> None:
    """A bug may ask for more memory than there is; what is mapped already does not count."""
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = mapped + MEMORY if hard == resource.RLIM_INFINITY else min(mapped + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def pool(tasks: Iterable[tuple[Key, Callable[[], int]]], jobs: int, folder: Path
         ) -> Generator[tuple[Key, int], None, None]:
    """Run each function in a fork of its own, `jobs` at a time; yields (key, exit status) as they end.

    A fork may write to `folder / str(os.getpid())`, which is removed afterwards.  Raises KeyboardInterrupt if Ctrl-C
    reached a fork first.  Forks that run are killed when the iterator is closed.
    """
    tasks = iter(tasks)
    running: dict[int, Key] = {}
    try:
        while True:
            with undisturbed():                         # every fork is known when Ctrl-C or SIGTERM ends the pool
                for key, function in islice(tasks, jobs - len(running)):
                    running[fork(function)] = key
            if not running:
                return
            pid, status = os.wait()
            if pid not in running:                      # of another library
                continue
            shutil.rmtree(folder / str(pid), ignore_errors=True)
            key, code = running.pop(pid), os.waitstatus_to_exitcode(status)
            if code == -signal.SIGINT:
                raise KeyboardInterrupt
            yield key, code
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):        # Ctrl-C came just after its end
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of this context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answers(tasks: Iterable[tuple[Key, Callable[[Say], None]]], jobs: int) -> Iterator[tuple[Key, list, int]]:
    """Run each function in a fork; yields (key, what it said, exit status) as they end.

    A function gets say(value), which keeps a value that JSON can hold, even if the process dies right after it.
    """
    with tempfile.TemporaryDirectory(prefix="pyllama-score-") as name:
        folder = Path(name)
        numbered = {str(number): task for number, task in enumerate(tasks)}
        forks = ((number, partial(spoken, function, folder / number)) for number, (_, function) in numbered.items())
        with contextlib.closing(pool(forks, jobs, folder)) as ended:
            for number, status in ended:
                said = (folder / number).read_text().splitlines() if (folder / number).exists() else []
                yield numbered[number][0], [json.loads(line) for line in said], status


def spoken(function: Callable[[Say], None], path: Path) -> int:
    """Run the function, its answers a line each in the file."""
    with path.open("w", buffering=1) as file:
        function(lambda value: print(json.dumps(value), file=file))
    return SURVIVED
