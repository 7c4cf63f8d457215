"""GGUF, the files of llama.cpp: typed metadata by key, and tensors in many storage types, to be mapped into memory.

    "GGUF", uint32 version, uint64 number of tensors, uint64 number of keys
    for each key        string, uint32 type, value
    for each tensor     string, uint32 number of axes, uint64 length of each axis (the last one first), uint32 type,
                        uint64 offset in the data
    zeros up to a multiple of general.alignment, then the data: each tensor at the next multiple of it

All numbers are little-endian; a string is its length (uint64) and UTF-8; an array is a type, a length (uint64) and its
values.  Nothing is allocated before its length has been compared with the file's size.

    file = gguf.read("model.gguf")
    file.metadata["general.architecture"], file.tensors["token_embd.weight"].shape

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""
import math
import struct
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama.errors import UserError
from pyllama.files import DamagedFile, give_back

MAGIC, VERSION = b"GGUF", 3
READ_VERSIONS = (2, VERSION)                        # 1 counted in uint32
ALIGNMENT, ALIGNMENTS = 32, (8, 2**16)              # the default; the least and the largest that are read
LONGEST_KEY, LONGEST_NAME, MOST_AXES = 2**16 - 1, 64, 4
DEEPEST = 4                                         # arrays in arrays

NUMBERS = {0: np.uint8, 1: np.int8, 2: np.uint16, 3: np.int16, 4: np.uint32, 5: np.int32, 6: np.float32,
           10: np.uint64, 11: np.int64, 12: np.float64}
BOOL, STRING, ARRAY = 7, 8, 9
CODE = {np.dtype(kind): code for code, kind in NUMBERS.items()}

F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30
BLOCKS = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q8_0: (32, 34), Q4_0: (32, 18)}      # numbers and bytes of a block
TYPES = {"F32": F32, "F16": F16, "BF16": BF16, "Q8_0": Q8_0, "Q4_0": Q4_0}
NAME = {code: name for name, code in TYPES.items()} | {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


class Tensor(NamedTuple):
    """A tensor of a file."""
    kind: str                                       # one of TYPES
    shape: tuple[int, ...]                          # in NumPy's order: the last axis is contiguous
    data: np.ndarray                                # uint8 [bytes], as in the file


class Entry(NamedTuple):
    """A tensor in the header."""
    kind: str
    shape: tuple[int, ...]
    offset: int


class File(NamedTuple):
    """The contents of a file."""
    metadata: dict[str, Any]                        # bool, str, NumPy scalars and arrays, lists of str and of arrays
    tensors: dict[str, Tensor]


def bytes_of(kind: str, shape: tuple[int, ...]) -> int:
    """The bytes that a tensor takes in a file; the last axis must be a multiple of the block.

    >>> from pyllama.formats import gguf
    >>> gguf.bytes_of("Q8_0", (3, 64))
    204
    """
    numbers, size = BLOCKS[TYPES[kind]]
    return math.prod(shape) // numbers * size


# Reading

def read(path: str | Path) -> File:
    """Map a file into memory.  Its tensors share that memory: changes to them stay in this process.

    Raises DamagedFile if the file is not a complete GGUF file, UserError if it cannot be read or has a version, byte
    order or type of tensors that is not supported.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        # Copy-on-write: an optimizer may work in place on a model, and the file stays as it is.
        data = np.memmap(path, np.uint8, mode="c").view(np.ndarray) if size else np.empty(0, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a GGUF file") from None
    return Reader(path, data).file()


class Reader:
    """The position in a file that is being read."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.raw, self.at = path, data, data.data, 0

    def file(self) -> File:
        """The whole file."""
        if self.take(4, "its first bytes") != MAGIC:
            raise DamagedFile(f"{self.path} is not a GGUF file, because it does not begin with GGUF; give another file")
        self.check_version(self.whole(4, "its version"))
        tensors, keys = self.whole(8, "the number of tensors"), self.whole(8, "the number of keys")
        self.check_room(tensors, 24, "tensors")             # a length, axes, a type and an offset
        self.check_room(keys, 12, "keys")                   # a length and a type
        metadata: dict[str, Any] = {}
        for i in range(keys):
            key = self.name(f"key {i + 1}", LONGEST_KEY, metadata)
            metadata[key] = self.value(self.whole(4, f"the type of {key}"), key)
        entries: dict[str, Entry] = {}
        for i in range(tensors):
            name = self.name(f"the name of tensor {i + 1}", LONGEST_NAME, entries)
            entries[name] = self.entry(name)
        placed = self.placed(entries, self.alignment(metadata))
        give_back(self.data[:self.at])                      # the values are copies
        return File(metadata, placed)

    def check_version(self, version: int) -> None:
        """Raise UserError for a version or byte order that is not read."""
        if version and version % 2**16 == 0:
            raise UserError(f"{self.path} is big-endian, which is not supported; convert it to little-endian with "
                            f"gguf-convert-endian of the package gguf")
        if version not in READ_VERSIONS:
            raise UserError(f"{self.path} is a GGUF file of version {version}, but versions 2 and 3 are supported; "
                            f"convert the model again with a current llama.cpp")

    def entry(self, name: str) -> Entry:
        """The type, shape and offset of a tensor."""
        axes = self.whole(4, f"the axes of {name}")
        if not 1 <= axes <= MOST_AXES:
            raise self.damaged(f"{name} has {axes} axes, but a tensor has 1 to {MOST_AXES}")
        shape = tuple(self.whole(8, f"the shape of {name}") for _ in range(axes))[::-1]
        code = self.whole(4, f"the type of {name}")
        if not min(shape):
            raise self.damaged(f"{name} has the shape {list(shape)}, with an empty axis")
        if code not in BLOCKS:
            raise UserError(f"{self.path} has {name} of type {NAME.get(code, code)}, which is not supported; store the "
                            f"original model by `pyllama quantize`, with dtype q8_0 or q4_0")
        if shape[-1] % BLOCKS[code][0]:
            raise self.damaged(f"{name} has rows of {shape[-1]} numbers, which are not blocks of {BLOCKS[code][0]}")
        return Entry(NAME[code], shape, self.whole(8, f"the offset of {name}"))

    def alignment(self, metadata: dict[str, Any]) -> int:
        """The number of which each tensor's place is a multiple, in bytes."""
        alignment, (least, most) = metadata.get("general.alignment", ALIGNMENT), ALIGNMENTS
        if not isinstance(alignment, int | np.integer) or not least <= alignment <= most or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment!s:.40}, but it must be a power of 2 from {least} to "
                               f"{most}")
        return int(alignment)

    def placed(self, entries: dict[str, Entry], alignment: int) -> dict[str, Tensor]:
        """The tensors.  As in llama.cpp they must lie end to end, so none overlaps another."""
        begin, end, tensors = up(self.at, alignment), 0, {}
        for name, (kind, shape, offset) in entries.items():
            if offset != end:
                raise self.damaged(f"{name} is at byte {offset:,} of the data, but the tensors before it end at "
                                   f"{end:,}")
            past = begin + offset + bytes_of(kind, shape)
            if past > len(self.data):
                raise self.damaged(f"{name} of {kind}{list(shape)} would end at byte {past:,}, but the file has "
                                   f"{len(self.data):,}")
            tensors[name] = Tensor(kind, shape, self.data[begin + offset:past])
            end = up(past - begin, alignment)
        return tensors

    # Values

    def value(self, code: int, what: str, depth: int = 0) -> Any:
        """The value of a key, or of an array in it."""
        if code in NUMBERS:
            return self.numbers(NUMBERS[code], 1, what)[0]
        if code == BOOL:
            return bool(self.whole(1, what))
        if code == STRING:
            return self.string(self.whole(8, f"the length of {what}"), what)
        if code != ARRAY:
            raise self.damaged(f"{what} has the type {code}, which does not exist")
        if depth == DEEPEST:
            raise self.damaged(f"{what} has arrays in arrays, more than {DEEPEST} deep")
        inner, length = self.whole(4, f"the type of {what}"), self.whole(8, f"the length of {what}")
        if inner in NUMBERS:
            return self.numbers(NUMBERS[inner], length, what)
        if inner == BOOL:
            return self.numbers(np.uint8, length, what).astype(bool)
        self.check_room(length, 12 if inner == ARRAY else 8, f"values in {what}")
        if inner == STRING:
            return self.strings(length, what)
        return [self.value(inner, what, depth + 1) for _ in range(length)]

    def numbers(self, kind: type, count: int, what: str) -> np.ndarray:
        """The next numbers."""
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype.newbyteorder("<")).astype(dtype)

    def whole(self, size: int, what: str) -> int:
        """The next unsigned integer."""
        return int.from_bytes(self.take(size, what), "little")

    def name(self, what: str, longest: int, others: Container[str]) -> str:
        """The next name, which must be unlike the others."""
        length = self.whole(8, f"the length of {what}")
        if not 1 <= length <= longest:
            raise self.damaged(f"{what} would have {length:,} bytes, but it must have 1 to {longest:,}")
        name = self.string(length, what)
        if name in others:
            raise self.damaged(f"{what} is {name!r}, as another one is")
        return name

    def string(self, length: int, what: str) -> str:
        """The next string."""
        try:
            return str(self.take(length, what), "utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """The next strings: hundreds of thousands in a vocabulary, so without a call for each."""
        texts, raw, end = [], self.raw, self.at
        try:
            for _ in range(count):
                begin = end + 8
                end = begin + int.from_bytes(raw[end:begin], "little")
                texts.append(str(raw[begin:end], "utf-8"))
        except UnicodeDecodeError:
            if end <= len(raw):
                raise self.damaged(f"{what} is not UTF-8") from None
        self.take(end - self.at, what)
        return texts

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes."""
        if size > len(self.raw) - self.at:
            raise self.damaged(f"it ends within {what}")
        self.at += size
        return self.raw[self.at - size:self.at]

    def check_room(self, count: int, least: int, what: str) -> None:
        """Raise DamagedFile if the file is too short for this many entries of at least so many bytes."""
        if count * least > len(self.raw) - self.at:
            raise self.damaged(f"it is too short for {count:,} {what}")

    def damaged(self, reason: str) -> DamagedFile:
        """The error for a file that llama.cpp would not read."""
        return DamagedFile(f"{self.path} is not a complete GGUF file: {reason}; fetch it again")


def up(size: int, alignment: int) -> int:
    """The next multiple of alignment."""
    return -(-size // alignment) * alignment


# Writing

def to_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator:
    """Yield the bytes of a file, in version 3; read() gives equal metadata and tensors.

    The type of a number is that of its NumPy scalar or array.

    >>> import numpy as np
    >>> from pyllama.formats import gguf
    >>> content = b"".join(gguf.to_gguf({"llama.block_count": np.uint32(2)}, {}))
    >>> len(content), content[:4]
    (64, b'GGUF')
    """
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        header += [packed(key), *typed(value)]
    offset = 0
    for name, (kind, shape, _) in tensors.items():
        header += [packed(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], TYPES[kind], offset)]
        offset = up(offset + bytes_of(kind, shape), ALIGNMENT)
    whole = b"".join(header)
    yield whole.ljust(up(len(whole), ALIGNMENT), b"\0")
    for tensor in tensors.values():
        yield np.ascontiguousarray(tensor.data).data
        yield bytes(up(tensor.data.size, ALIGNMENT) - tensor.data.size)


def packed(text: str) -> bytes:
    """A string, as the file has it."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: Any) -> tuple[bytes, bytes]:
    """(the type, the value), as the file has them."""
    if isinstance(value, str):
        return packed_type(STRING), packed(value)
    if isinstance(value, bool):
        return packed_type(BOOL), bytes([value])
    if isinstance(value, np.generic):
        return packed_type(CODE[value.dtype]), little(value).tobytes()
    if isinstance(value, np.ndarray):
        kind = BOOL if value.dtype == bool else CODE[value.dtype]
        return packed_type(ARRAY), struct.pack("<IQ", kind, len(value)) + little(value).tobytes()
    kinds, contents = zip(*map(typed, value), strict=True) if value else ((packed_type(STRING),), ())
    return packed_type(ARRAY), kinds[0] + struct.pack("<Q", len(value)) + b"".join(contents)


def packed_type(kind: int) -> bytes:
    """The number of a type, as the file has it."""
    return struct.pack("<I", kind)


def little(a: Any) -> Any:
    """A scalar or an array in little-endian order."""
    return a.astype(a.dtype.newbyteorder("<"))
