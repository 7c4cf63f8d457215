"""What takes long is computed before the build, in as many processes as there are cores: steps, kernels, bugs.

    python docs/site/_ext/beforehand.py
"""
import multiprocessing
import os
from collections.abc import Callable, Iterator
from functools import partial

import broken
import derived
import trust

from pyllama.op import OPS
from pyllama.study import derivation
from pyllama.testing import catalogue


def tasks() -> Iterator[Callable[[], object]]:
    """Each keeps one result, or a few: see kept.py.  Those that take longest come first."""
    yield from (partial(derived.derived, name) for name in derivation.names())
    for name in sorted(OPS):
        yield partial(trust.kernels, name, counted=True)
        yield from (partial(broken.complaint, bug) for bug in catalogue.bugs(name))


def run(task: Callable[[], object]) -> None:
    task()


def main() -> None:
    spawn = multiprocessing.get_context("spawn")            # a forked process runs the kernels on one thread
    with spawn.Pool(os.cpu_count()) as pool:
        pool.map(run, tasks(), chunksize=1)


if __name__ == "__main__":
    main()
