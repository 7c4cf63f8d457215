"""Count the copies, launches and waits between host and device."""
import contextlib
import dataclasses
import threading
from contextvars import ContextVar

from tests.fakecupy import rules


@dataclasses.dataclass
class Counts:
    syncs: int = 0                          # times the host has waited for the device
    launches: int = 0                       # of kernels of our own
    h2d: int = 0                            # copies from the host to the device
    h2d_bytes: int = 0
    d2h: int = 0                            # copies from the device to the host
    d2h_bytes: int = 0


stats = Counts()                            # since the process began
_lock = threading.Lock()
_may_wait: ContextVar[bool] = ContextVar("may the host wait for the device?", default=True)


def count(**more):
    if more.get("syncs") and not _may_wait.get():
        raise rules.real("cupyx").DeviceSynchronized()
    with _lock:
        for name, n in more.items():
            setattr(stats, name, getattr(stats, name) + n)


@contextlib.contextmanager
def counting():
    """Yield Counts that hold, once the context is left, what happened within."""
    before, within = dataclasses.replace(stats), Counts()
    try:
        yield within
    finally:
        for name, n in dataclasses.asdict(stats).items():
            setattr(within, name, n - getattr(before, name))


@contextlib.contextmanager
def allow_synchronize(allow):
    """cupyx's: where it is not allowed a sync raises DeviceSynchronized, which tells the place."""
    token = _may_wait.set(allow)
    try:
        yield
    finally:
        _may_wait.reset(token)
