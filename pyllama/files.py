"""Durable files, written with a checksum and forced to the disk; JSON, to bytes and back."""
import contextlib
import errno
import glob
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pyllama.errors import UserError


class DamagedFile(UserError):
    """A file is missing, is unreadable, or differs from what was written."""


def to_json(value) -> bytes:
    """Indented JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def write(path, chunks) -> dict[str, int | str]:
    """Write a new file and force it to the disk.  Returns {"size": ..., "sha256": ...} of the chunks."""
    size, digest = 0, hashlib.sha256()
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def replacing(path: str | Path, only_writer: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file for writing and rename it to `path` once it is complete and on the disk.

    only_writer     no other process writes to this path: delete the unfinished files that killed processes left

    The new name is forced to the disk, too.  If writing fails, the temporary file is deleted and `path` is unchanged.
    """
    path = Path(path)
    name = path.name if len(os.fsencode(path.name)) < 200 else path.name[:40]           # a name has up to 255 bytes
    unfinished = path.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}.tmp")
    if only_writer:
        for leftover in path.parent.glob(f".{glob.escape(name)}.*.tmp"):
            leftover.unlink()
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def rewrite(path: str | Path, chunks: Iterable, only_writer: bool = False) -> None:
    """Replace a file by the chunks, completely or not at all.  See replacing()."""
    with replacing(path, only_writer) as file:
        file.writelines(chunks)


def export(path: str | Path, chunks: Iterable) -> None:
    """rewrite() for a file that the user named; a device or a pipe is written through.

    Raises UserError if it cannot be written.
    """
    try:
        with through(path) or replacing(path) as file:
            file.writelines(chunks)
    except (OSError, ValueError) as error:                      # a path such as "." has no file name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; name a file in a folder that exists") from None


def through(path: str | Path) -> BinaryIO | None:
    """The open stream that a path such as /dev/stdout, a device or a named pipe stands for; None for other paths."""
    if number := re.fullmatch(r"/dev/std(?:(out)|(err))|/(?:dev|proc/self)/fd/(\d+)", str(path)):
        out, err, other = number.groups()
        return os.fdopen(os.dup(1 if out else 2 if err else int(other)), "wb")
    path = Path(path)
    return path.open("wb") if path.exists() and not path.is_file() and not path.is_dir() else None


def sync(folder: str | Path) -> None:
    """Force the folder's entries, the names of its files, to the disk, if its file system and its rights allow that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:                                     # a folder in which one may write but not list
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its missing parents, and force their names to the disk.  Returns them, innermost first."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)
    return missing


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text, with or without a byte order mark.  Raises ValueError for any other content."""
    try:
        return json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def read_json(path) -> Any:
    """Parse a JSON file.  Raises DamagedFile."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DamagedFile(f"{path} is damaged: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: it is not JSON ({error})") from error
