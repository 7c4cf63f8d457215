"""Files of tensors in the format safetensors: to bytes and back.

    uint64 n, a JSON object of n bytes, then the arrays end to end, little-endian:

    {"__metadata__": {...}, name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

The library of that name is not used.  Its writer hides errno, so a full disk could not be reported as such, and it
writes the memory of a strided array as if it were contiguous.  Its reader does not know which tensor it cannot read.

Source: github.com/huggingface/safetensors, "Format".
"""
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from pyllama.files import DamagedFile, parse_json

DTYPES = {"bool": "BOOL", "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
          **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}}
READ = {code: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name, code in DTYPES.items()}
MOST = 100_000_000                                  # bytes of a header, as in the library


def to_safetensors(tensors: dict[str, np.ndarray]) -> Iterator:
    """Yield the bytes of a file: the header's length, the header, then the arrays end to end."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))           # widest first: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}                         # Hugging Face requires it
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


def read_tensors(path: str | Path, mapped: bool = False) -> dict[str, np.ndarray]:
    """Read all arrays of a file, by name.  Raises DamagedFile, before any memory is allocated.

    mapped      the arrays stay in the file and are read where they are used, which is to be soon: the kernel kills a
                process that reads a mapped page which the file no longer has
    """
    try:
        with open(path, "rb") as file:
            places, tensors = sorted_by_place(path, file), {}
            if mapped:
                return arrays_on(np.memmap(path, np.uint8, mode="c").view(np.ndarray), file.tell(), places)
            for name, dtype, shape in places:
                a = tensors[name] = np.empty(shape, dtype.newbyteorder("<"))
                if file.readinto(a.reshape(-1).view(np.uint8).data) != a.nbytes:
                    raise DamagedFile(f"{path} cannot be read: it became shorter meanwhile; fetch it again")
                tensors[name] = a.astype(dtype, copy=False)
            return tensors
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror or error}") from error


def arrays_on(data: np.ndarray, at: int, places: list) -> dict[str, np.ndarray]:
    """The arrays on the bytes of a file, of which the first begins at `at`."""
    tensors = {}
    for name, dtype, shape in places:
        end = at + math.prod(shape) * dtype.itemsize
        tensors[name] = data[at:end].view(dtype.newbyteorder("<")).reshape(shape)
        at = end
    return tensors


def sorted_by_place(path, file: BinaryIO) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    """[(name, dtype, shape), ...] in the order of the arrays, whose first byte is the next to be read."""
    whole = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if whole < 8 or length > min(whole - 8, MOST):
        raise DamagedFile(f"{path} cannot be read: it is truncated or not a safetensors file; fetch it again")
    try:
        header = parse_json(file.read(length))
        places = sorted((described(name, entry) for name, entry in header.items() if name != "__metadata__"),
                        key=lambda described: described[3:])
    except UnknownDtype as error:
        raise DamagedFile(f"{path} cannot be read: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DamagedFile(f"{path} cannot be read: its header is not that of a safetensors file ({error}); fetch it "
                          f"again") from None
    end = 0
    for name, dtype, shape, begin, after in places:
        if begin != end or after - begin != math.prod(shape) * dtype.itemsize:
            raise DamagedFile(f"{path} cannot be read: {name} of {dtype.name}{list(shape)} does not fill bytes {begin} "
                              f"to {after}; fetch it again")
        end = after
    if end != whole - 8 - length:
        raise DamagedFile(f"{path} cannot be read: it has {whole - 8 - length:,} bytes of tensors, but its header says "
                          f"{end:,}; fetch it again")
    return [(name, dtype, shape) for name, dtype, shape, *_ in places]


class UnknownDtype(Exception):
    """A dtype that cannot be read."""


def described(name: str, entry: Any) -> tuple[str, np.dtype, tuple[int, ...], int, int]:
    """(name, dtype, shape, begin, end) of an entry of the header."""
    shape, (begin, end), code = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"the place of {name} is not made of whole numbers")
    if code not in READ:
        kind = "quantized in float8" if str(code).startswith("F8") else f"of type {code}"
        raise UnknownDtype(f"{name} is {kind}, which is not supported; convert the model to bfloat16 or float32 with "
                           f"the library that wrote it")
    return name, READ[code], shape, begin, end
