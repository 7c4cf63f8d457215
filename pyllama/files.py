"""Files that last: written with a checksum and forced to the disk; JSON and safetensors, as bytes and back."""
import contextlib
import glob
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 -- teaches NumPy, and through it safetensors, the dtype bfloat16
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pyllama.errors import UserError

DTYPES = {"bool": "BOOL", "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
          **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}}


class DamagedFile(UserError):
    """A file is missing, unreadable or not what was written."""


def to_json(value) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def to_safetensors(tensors: dict[str, np.ndarray]) -> Iterator:
    """The bytes of a safetensors file, piece by piece: the header's length, the header, the arrays end to end.

    Not by the library's own writer: it hides errno, so that a full disk has no name, and it writes the memory of
    a strided array as if it were contiguous.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))           # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}                         # Hugging Face insists on it
    end = 0
    for name in names:
        a, start, end = tensors[name], end, end + tensors[name].nbytes
        header[name] = {"dtype": DTYPES[a.dtype.name], "shape": a.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        a = np.ascontiguousarray(tensors[name])
        yield a.astype(a.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8)


def write(path, chunks) -> dict[str, int | str]:
    """Write a new file and force it to the disk; the size and SHA-256 of what was meant to be written."""
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
    """A file to write, which gets the name `path` once it is whole and on the disk, and never if writing it fails.

    only_writer     no other process writes to this path: delete the unfinished files that killed processes left
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    if only_writer:
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            leftover.unlink()
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def rewrite(path: str | Path, chunks: Iterable, only_writer: bool = False) -> None:
    """Write the chunks in place of what is there: whole, or not at all.  See replacing()."""
    with replacing(path, only_writer) as file:
        file.writelines(chunks)


def export(path: str | Path, chunks: Iterable) -> None:
    """rewrite() for a file that the user named.  Raises UserError if it cannot be written."""
    try:
        rewrite(path, chunks)
    except (OSError, ValueError) as error:                      # a path such as "." has no name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; name a file in a folder that exists") from None


def sync(folder):
    """Force the names in the folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path):
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedFile(f"{path} is damaged: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: it is not JSON ({error})") from error


def read_tensors(path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, AttributeError, TypeError) as error:      # the last two: a dtype unknown to NumPy
        raise DamagedFile(f"{path} cannot be read: {error}") from error
