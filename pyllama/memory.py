"""Keep the memory of freed arrays for the next ones, and count it: the arena of csrc/cpu/arena.c.

NumPy asks the handler of the current context for an array's memory, and a new thread starts in an empty context: so
install() holds for the thread that calls it and what it runs, not for others.  An array keeps the handler it was made
with, whichever thread frees it and whenever.
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
    """Blocks of 4 KiB and more; smaller ones are malloc's."""
    held: int = 0                                   # bytes free, kept for the next array
    in_use: int = 0                                 # bytes in arrays
    reused: int = 0                                 # blocks handed out again, since the start
    fresh: int = 0                                  # blocks the system was asked for


def install():
    """Let the arrays of this context come from the arena from now on; is it so?

    Not so without the compiled module or with PYLLAMA_ARENA=0.  PYLLAMA_ARENA_CAP is the most it may hold free, in MiB
    (default: half the memory this process may use); UserError if it is no whole number.
    """
    if backend.cpu is None or os.environ.get("PYLLAMA_ARENA") == "0":
        return False
    before = backend.cpu._arena_install(cap(os.environ.get("PYLLAMA_ARENA_CAP")))
    if _before.get() is None:
        _before.set(before)
    return True


@functools.cache
def cap(wanted: str | None) -> int:
    """The most bytes that the arena may hold free."""
    if wanted and not wanted.isdecimal():
        raise UserError(f"PYLLAMA_ARENA_CAP must be a whole number of MiB, not {wanted!r}")
    return min(int(wanted) * 2**20 if wanted else machine.memory() // 2, sys.maxsize)


def uninstall():
    """Let arrays come from where they came before install(), and give the memory held to the system."""
    if _before.get() is not None:
        backend.cpu._arena_leave(_before.get())
        _before.set(None)
        release()


@contextlib.contextmanager
def arena():
    """Within this context arrays come from the arena, if install() can be; what it holds free stays for the next time.

    So a step of training has the arena, and its caller, who has not asked for it, has not.
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
    """Give the memory that is held free to the system, as after work of other sizes than what follows."""
    if backend.cpu:
        backend.cpu._arena_empty()


def stats():
    """What the arena holds and has done, over all threads."""
    return Stats(**backend.cpu._arena_count()) if backend.cpu else Stats()


def peak_rss():
    """The most memory this process has had resident so far, in bytes."""
    kib = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kib
