"""Stop an evaluation between two of its batches, because somebody asks for it.

    with stopping(lambda: comm.stop):
        for batch in unless_stopped(batches):               # raises Stopped
            ...
"""
import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)


class Stopped(Exception):
    """An evaluation was asked to stop."""


@contextlib.contextmanager
def stopping(asked: Callable[[], bool]) -> Iterator[None]:
    """Let unless_stopped() raise Stopped within this context as soon as asked() is true."""
    before = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(before)


def unless_stopped(items: Iterable[T]) -> Iterator[T]:
    """Yield the items.  Raises Stopped before an item if the context was asked to stop."""
    for item in items:
        if _asked.get()():
            raise Stopped
        yield item
