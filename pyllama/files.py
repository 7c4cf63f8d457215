"""Durable files, written with a checksum and forced to the disk; JSON; files of others, unpacked."""
import contextlib
import errno
import functools
import glob
import gzip
import io
import itertools
import json
import mmap
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from pyllama.errors import UserError

CURES = {errno.ENOSPC: "free some space on that disk", errno.EDQUOT: "free some space or have the quota raised",
         errno.EFBIG: "raise the file-size limit (ulimit -f)"}

CHUNK = 2**18                                       # bytes that are read at once


class DamagedFile(UserError):
    """A file is missing, is unreadable, or differs from what was written."""


def unreadable(path: str | Path, error: OSError) -> UserError:
    """The error to raise for a file that cannot be read.  One without permission may be as it was written."""
    if isinstance(error, PermissionError):
        return UserError(f"cannot read {path}: {error.strerror}; change its permissions")
    return DamagedFile(f"{path} is damaged: {error.strerror or error}")


def cure(error: BaseException, otherwise: str = "fix that") -> str:
    """What the user can do about a file that cannot be written."""
    return CURES.get(getattr(error, "errno", None) or 0, otherwise)


def to_json(value) -> bytes:
    """Indented JSON with sorted keys: equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def sha256(data=b""):
    """The SHA-256 of the data, as a hashlib object to which more may be added."""
    import hashlib  # here, because it loads OpenSSL: 4 MB, which reading a model does without

    return hashlib.sha256(data)


def digest_of(file: BinaryIO) -> str:
    """The SHA-256 of the rest of a file, in hexadecimal."""
    digest = sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def write(path, chunks) -> dict[str, int | str]:
    """Write a new file and force it to the disk.  Returns {"size": ..., "sha256": ...} of the chunks."""
    size, digest = 0, sha256()
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
    except (OSError, ValueError) as error:                      # ValueError: "." and "/" have no file name
        reason = "it is a folder" if Path(path).is_dir() else getattr(error, "strerror", None) or error
        remedy = cure(error, "name a file in a folder that exists and can be written to")
        raise UserError(f"cannot write {path}: {reason}; {remedy}") from None


def through(path: str | Path) -> BinaryIO | None:
    """The open stream that -, /dev/stdout, a device or a named pipe stands for; None for other paths."""
    if number := re.fullmatch(r"-|/dev/std(?:out|(err))|/(?:dev|proc/self)/fd/(\d+)", str(path)):
        err, other = number.groups()
        return os.fdopen(os.dup(2 if err else int(other or 1)), "wb")
    path = Path(path)
    return path.open("wb") if path.exists() and not path.is_file() and not path.is_dir() else None


def remove(path: Path) -> None:
    """Delete a file of a model if it exists.  Raises UserError if it cannot be deleted."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot delete {path}, which belongs to another model: {error.strerror}; choose another "
                        f"folder") from None


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
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None


def read_json(path) -> Any:
    """Parse a JSON file.  Raises DamagedFile, or UserError if reading it is not permitted."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: it is not JSON ({error})") from error


# Reading what others wrote

BEGIN = 512                                             # bytes that show what a file is
RATIO, LEAST = 200, 2**28                               # a compressed file may hold this many times its size, or LEAST
OTHERS = {b"BZh": "bzip2: unpack it with bunzip2", b"\xfd7zXZ": "xz: unpack it with unxz",
          b"\x28\xb5\x2f\xfd": "Zstandard: unpack it with unzstd", b"7z\xbc\xaf": "7-Zip: unpack it",
          b"%PDF": "PDF: save its text as .txt", b"PAR1": "Parquet: write its rows as .jsonl",
          b"\x93NUMPY": "an array of NumPy: write vectors as text, and token ids with "
                       "array.astype('uint16').tofile(FILE)",
          b"ARROW1": "Arrow: write its rows as .jsonl", b"\x89HDF": "HDF5: write its texts as .txt or .jsonl",
          b"SQLite format 3": "a database of SQLite: write its rows as .csv",
          b"GGUF": "GGUF, which holds weights: give a text",
          b"\x80\x04": "a pickle: convert it with the program that wrote it"}


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[io.BufferedReader, str]]:
    """Open a file for reading, decompressed if it is a .gz, or a .zip of one file, whatever its name.

    Yields the file, and its name: without .gz, or inside the .zip.

    A pipe can be opened again: its bytes are kept.  Raises UserError for another archive, a damaged one or one that
    holds more than RATIO times its size and LEAST bytes; OSError if the file cannot be read.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(path.open("rb") if path.is_file() else
                                       io.BufferedReader(io.BytesIO(piped(path))))     # type: ignore[arg-type]
        begin = raw.read(BEGIN)
        size = raw.seek(0, os.SEEK_END)
        raw.seek(0)
        limit = max(RATIO * size, LEAST)
        refuse_others(path, begin, "is")
        if begin.startswith(b"\x1f\x8b"):
            packed = stack.enter_context(gzip.GzipFile(fileobj=raw))
            name = path.stem if path.suffix.lower() == ".gz" else path.name
            yield text_in(path, packed, limit), name
        elif begin.startswith(b"PK\x03\x04"):
            inside = stack.enter_context(only_file(path, raw))
            yield text_in(path, inside, limit), inside.name
        else:
            yield raw, path.name


def refuse_others(path: Path, begin: bytes, verb: str) -> None:
    """Raise UserError if a file that begins so is an archive, or another format than text.  verb: "is" or "holds"."""
    kind = next((kind for magic, kind in OTHERS.items() if begin.startswith(magic)), None)
    if begin[257:262] == b"ustar":
        kind = "a tar archive: unpack it with `tar -xf` and give its files"
    if begin[7:10] == b'\0{"':                                  # behind the size of the header in 8 bytes
        kind = "safetensors, which holds weights: give a text"
    if kind:
        raise UserError(f"{path} {verb} {kind}")


def text_in(path: Path, file: IO[bytes] | gzip.GzipFile, limit: int) -> io.BufferedReader:
    """The content of a compressed file: see Unpacked.  Raises UserError if it is another archive, or no text."""
    reader: Any = io.BufferedReader(Unpacked(path, file, limit))
    refuse_others(path, reader.peek(BEGIN), "holds")
    return reader


@functools.cache
def piped(path: Path) -> bytes:
    """All bytes of a pipe, kept because it can be read only once."""
    return path.read_bytes()


def only_file(path: Path, raw: BinaryIO) -> IO[bytes]:
    """The file in a .zip that holds one.  Raises UserError for another .zip."""
    try:
        archive = zipfile.ZipFile(raw)
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        if len(names) != 1:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise UserError(f"{path} is a .zip of {len(names)} files ({listed}); unpack it and give one of them")
        return archive.open(names[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:        # the last: it has a password
        raise UserError(f"{path} cannot be unpacked: {error}; unpack it with another program") from None


class Unpacked(io.RawIOBase):
    """The content of a compressed file, up to a limit.  Reading raises UserError beyond it and where it is damaged."""

    def __init__(self, path: Path, file: IO[bytes] | gzip.GzipFile, limit: int):
        self.path, self.file, self.limit, self.size = path, file, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            content = self.file.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} is not a complete compressed file: {error}; fetch it again") from None
        self.size += len(content)
        if self.size > self.limit:
            raise UserError(f"{self.path} holds more than {self.limit:,} bytes, far more than its own size; if that is "
                            f"right, unpack it and give the file itself")
        buffer[:len(content)] = content
        return len(content)


def give_back(a: np.ndarray | None) -> None:
    """Hand the whole pages of an array that is mapped from a file, and was not changed, back to the system.

    They are read again if they are needed.  Any other array stays as it is.
    """
    base: Any = a
    while isinstance(base, np.ndarray):
        base = base.base
    if a is None or not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = a.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, past = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + a.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < past:
        base.madvise(mmap.MADV_DONTNEED, first, past - first)
