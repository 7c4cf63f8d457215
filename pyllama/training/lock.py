"""The lock of a run folder: one process at a time writes to a run.

    with locked(folder) as lock:
        lock.check()                        # before each write

RUN/lock names the process that has the lock, for people.  The lock itself is the kernel's (flock), which releases it
when the process ends, however it ends: a file that a killed process left locks nothing.  On a file system without
locks the last process that wrote its name there goes on, and the others stop at their next step.

The lock does not pass to other processes.  One that is started closes the file (PEP 446), and so does a fork here.
"""
import contextlib
import errno
import json
import os
import platform
import re
import weakref
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pyllama.errors import UserError
from pyllama.files import cure, make_folder, parse_json

try:
    import fcntl
except ImportError:                                         # not a POSIX system
    fcntl = None                                            # type: ignore[assignment]

RACES = 100                                                 # how often another process may delete the file in between
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
# Unfinished files of this version and of 0.1.0.
UNFINISHED = re.compile(r"\.?(tokens\.bin(\.json)?|(train|dev|test|log)\.jsonl|metrics\.json|latest|best)(\.\d+)+\.tmp")


class RunLock:
    """The lock of a run folder, as locked() makes it.

    notes   notes for the user: the file system may have no locks
    """

    def __init__(self, folder: Path):
        """Lock the folder, which is created if it is missing, and delete what killed processes left unfinished.

        Raises UserError if another process, or another training in this one, has the lock, or if the folder cannot be
        written.
        """
        self.folder, self.path = folder, folder.absolute() / "lock"
        self.notes: tuple[str, ...] = ()
        self.pid, self._handle = os.getpid(), -1
        self._mark = json.dumps({"pid": self.pid, "host": platform.node(), "since": datetime.now().isoformat()})
        try:
            self._made = make_folder(self.path.parent)
            for _ in range(RACES):
                if self._locked():
                    break
            else:
                raise OSError(errno.EIO, "lock does not contain what was written")
            remove_unfinished(self.path.parent)
        except OSError as error:
            self.release()
            raise UserError(f"cannot write in {folder}: {error.strerror}; {cure(error)} or choose another folder"
                            ) from None
        _LOCKS.add(self)

    def _locked(self) -> bool:
        """Open and lock the file.  False if its last owner deleted it in between."""
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)      # writable: NFS requires it
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no flock")
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._handle, 1000, 0)
            self._close()
            raise UserError(busy(self.folder, owner)) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            self.notes = (f"the file system of {self.folder} has no locks: if another process starts to write there, "
                          f"this one stops",)
        try:
            os.ftruncate(self._handle, 0)
            written = 0
            while written < len(self._mark):                # a full disk may take a part
                written += os.pwrite(self._handle, self._mark[written:].encode(), written)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        if self._is_ours():
            return True
        self._close()
        return False

    def _is_ours(self) -> bool:
        """Does the folder's path still lead to our file?

        Contents decide where there are no locks, and where the number of the inode is another, because some file
        systems change these numbers.
        """
        try:
            same = not self.notes and os.path.samestat(os.stat(self.path), os.fstat(self._handle))
            return same or self.path.read_text() == self._mark
        except (OSError, ValueError):
            return False

    @property
    def inherited(self) -> bool:
        """Is this process a fork of the one that has the lock?"""
        return os.getpid() != self.pid

    def check(self) -> None:
        """Raise UserError if this process may not write: it is a fork, or the folder was deleted, moved or replaced."""
        if self.inherited:
            raise UserError(f"process {os.getpid()} is a fork of {self.pid}, which writes to {self.folder}; train in "
                            f"one of them")
        if not self._is_ours():
            if self.notes and self.path.exists():
                raise UserError(busy(self.folder, self.path.read_bytes()))
            raise UserError(f"{self.folder} was deleted, moved or replaced during the run, so nothing was written "
                            f"there since; move it back and resume, or start again")

    def release(self) -> None:
        """Delete the file and the folders that were created and stayed empty, and unlock."""
        if self._handle < 0 or self.inherited:
            return
        with contextlib.suppress(OSError):                  # the folder is gone, or not empty
            if self._is_ours():
                self.path.unlink()
            for folder in self._made:
                folder.rmdir()
        self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


_LOCKS: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forked() -> None:
    """Close the files in the child of a fork: it would keep the lock after its parent's death."""
    for lock in _LOCKS:
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextlib.contextmanager
def locked(folder: Path | None, writes: bool = True) -> Iterator[RunLock | None]:
    """Hold the lock of a run folder.  None, without a lock, if there is no folder or this process does not write.

    Raises UserError as RunLock() does.
    """
    lock = RunLock(folder) if folder and writes else None
    try:
        yield lock
    finally:
        if lock:
            lock.release()


def busy(folder: Path, owner: bytes) -> str:
    """The message that another process writes to a run.  owner: what that process wrote into the lock's file."""
    try:
        mark = parse_json(owner)
        name = f"process {mark['pid']} on {mark['host']} (since {mark['since'][:19]})"
        if (mark["pid"], mark["host"]) == (os.getpid(), platform.node()):
            return f"this process already trains in {folder}; finish that training or close its generator first"
    except (ValueError, KeyError, TypeError):
        name = "another process"
    return f"{name} is writing to {folder}; wait for it or stop it, or choose another folder"


def remove_unfinished(folder: Path) -> None:
    """Delete the unfinished files that killed processes left in a run folder."""
    for place in folder, folder / "data":
        for file in place.iterdir() if place.is_dir() else ():
            if UNFINISHED.fullmatch(file.name):
                file.unlink()
