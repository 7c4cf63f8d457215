"""Reuse the memory of freed arrays, and count it: the arena of csrc/cpu/arena.c.

NumPy asks the handler of the current context for an array's memory, and a new thread starts with an empty context.
install() therefore affects the calling thread alone.  An array is freed by the handler that allocated it, whichever
thread frees it and whenever.
"""
import contextlib
import functools
import os
import resource
import sys
from contextvars import ContextVar
from typing import Any, NamedTuple

from pyllama import backend, machine
from pyllama.errors import UserError

_before: ContextVar[Any] = ContextVar("handler before install()", default=None)


class Stats(NamedTuple):
    """Statistics of blocks of 4 KiB and more.  malloc serves smaller ones, which are not counted."""
    held: int = 0                                   # bytes held free for the next arrays
    in_use: int = 0                                 # bytes in arrays
    reused: int = 0                                 # blocks that served another array, since the start
    fresh: int = 0                                  # blocks that came from the system, since the start


def install():
    """Let the arena allocate the arrays of this context from now on.

    Returns False, and does nothing, without the compiled module or with PYLLAMA_ARENA=0.  PYLLAMA_ARENA_CAP is the most
    that the arena may hold free, in MiB (default: half the memory this process may use).  Raises UserError if it is not
    a whole number.
    """
    if backend.cpu is None or os.environ.get("PYLLAMA_ARENA") == "0":
        return False
    before = backend.cpu._arena_install(cap(os.environ.get("PYLLAMA_ARENA_CAP")))
    if _before.get() is None:
        _before.set(before)
    return True


@functools.cache
def cap(mebibytes: str | None) -> int:
    """The most that the arena may hold free, in bytes; `mebibytes` is PYLLAMA_ARENA_CAP."""
    if mebibytes and not mebibytes.isdecimal():
        raise UserError(f"PYLLAMA_ARENA_CAP must be a whole number of MiB, not {mebibytes!r}")
    return min(int(mebibytes) * 2**20 if mebibytes else machine.memory() // 2, sys.maxsize)


def uninstall():
    """Restore the allocator that install() replaced, and return the arena's free memory to the system."""
    if _before.get() is not None:
        backend.cpu._arena_leave(_before.get())
        _before.set(None)
        release()


@contextlib.contextmanager
def arena():
    """Let the arena allocate arrays within this context, if it can be installed.  Free memory stays for the next time.

    A training step thus uses the arena, and its caller does not.
    """
    if _before.get() is not None or not install():
        yield
        return
    try:
        yield
    finally:
        backend.cpu._arena_leave(_before.get())
        _before.set(None)


def release():
    """Return the arena's free memory to the system, such as before a computation with arrays of other sizes."""
    if backend.cpu:
        backend.cpu._arena_empty()


def stats():
    """The arena's statistics, over all threads; zeros without the compiled module."""
    return Stats(**backend.cpu._arena_count()) if backend.cpu else Stats()


def peak_rss():
    """The peak resident memory of this process so far, in bytes."""
    kib = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib
