"""The storage formats of weights, bit for bit GGUF's: f16, bf16, q8_0 and q4_0.

    format      a number takes      32 numbers are stored as
    f16         16 bits             IEEE's binary16
    bf16        16 bits             the upper half of a float32, rounded to the nearest, ties to even
    q8_0        8.5 bits            a float16 scale d, then 32 int8 q:              x ≈ d q
    q4_0        4.5 bits            a float16 scale d, then 16 bytes of two q each: x ≈ d (q - 8), 0 <= q < 16

Byte j of a block of q4_0 has q of number j in its low half and q of number j + 16 in its high half.

The scale is that of the largest number of a block.  In q8_0 it becomes ±127.  In q4_0 it becomes -8, the end of the
range that has one more number, so that d may be negative.

Source: ggml (Gerganov et al.), the functions quantize_row_q8_0_ref and quantize_row_q4_0_ref.

Axes: E rows, D columns, N blocks.
"""
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from pyllama.errors import UserError

BLOCK = 32                                                  # numbers that share a scale
LEVELS = {"q8_0": (-127, 127), "q4_0": (-8, 7)}             # the integers q of the formats, in q4_0 less 8
PIECE = 2**20                                               # numbers encoded at once: bounds the memory that it takes


class Format(NamedTuple):
    """How rows of numbers are stored: in units of some numbers, each of some bytes."""
    numbers: int
    bytes: int
    encode: Callable[[np.ndarray], np.ndarray]              # units [N numbers] float32 -> [N bytes] uint8
    decode: Callable[[np.ndarray], np.ndarray]              # units [N bytes] uint8 -> [N numbers] float32
    scale: Callable[[np.ndarray], np.ndarray] | None = None             # units [N numbers] -> their exact scales [N 1]


def encode(x: np.ndarray, kind: str) -> np.ndarray:
    """The rows of x in a storage format: x [E D] of floats -> data [E bytes] of uint8.

    kind    "f16", "bf16", "q8_0" or "q4_0"

    Raises ValueError if D is not a multiple of the format's block, UserError if a number is not finite or too large.

    >>> import numpy as np
    >>> from pyllama.quantization.blocks import decode, encode
    >>> row = np.linspace(-1, 1, 32)[None]
    >>> encode(row, "q4_0").shape                               # a scale of 2 bytes, 32 numbers of 4 bits
    (1, 18)
    >>> float(abs(decode(encode(row, "q4_0"), "q4_0") - row).max().round(3))
    0.125
    """
    form, (rows, columns) = FORMATS[kind], x.shape
    data = np.empty((rows, row_bytes(columns, kind)), np.uint8)
    step = max(1, PIECE // max(1, columns))
    for begin in range(0, rows, step):
        units = x[begin:begin + step].astype(np.float32).reshape(-1, form.numbers)
        data[begin:begin + step] = form.encode(units).reshape(-1, data.shape[1])
    return data


def decode(data: np.ndarray, kind: str) -> np.ndarray:
    """The rows that encode() stored: data [E bytes] of uint8 -> x [E D] of float32."""
    form = FORMATS[kind]
    units = np.ascontiguousarray(data).reshape(-1, form.bytes)
    return form.decode(units).reshape(len(data), data.shape[1] // form.bytes * form.numbers)


def row_bytes(columns: int, kind: str) -> int:
    """The bytes of a row of D numbers.  Raises ValueError if D is not a multiple of the format's block."""
    form = FORMATS[kind]
    if columns % form.numbers:
        raise ValueError(f"a row has {columns} numbers, but {kind} stores blocks of {form.numbers}")
    return columns // form.numbers * form.bytes


# --- blocks with a scale ----------------------------------------------------------------------------------------------

def inverse(d: np.ndarray) -> np.ndarray:
    """1/d, and 0 where that is infinite: float16 stores such a d as 0."""
    with np.errstate(over="ignore", divide="ignore"):
        result = 1 / d
    return np.where(np.isfinite(result), result, 0)


def half(d: np.ndarray) -> np.ndarray:
    """The scales as float16.  Raises UserError if one is not finite."""
    with np.errstate(over="ignore"):
        rounded = d.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise UserError("a number is NaN, infinite or too large for this format; store the matrix as bf16, or repair "
                        "the model")
    return rounded


def joined(d: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Blocks of bytes [N 2+n]: scales d [N 1] of float16, then packed numbers [N n] of 8 bits."""
    return np.concatenate([d.view(np.uint8), packed.view(np.uint8)], axis=1)


def scales(units: np.ndarray) -> np.ndarray:
    """The scales [N 1] at the beginning of the blocks, as float32.  A file may hold any bits there."""
    return units[:, :2].copy().view(np.float16).astype(np.float32)


def of_levels(levels: np.ndarray, scales: np.ndarray, kind: str) -> np.ndarray:
    """The rows whose numbers are scale times level: levels [E D] within LEVELS, scales [E N] -> data [E bytes].

    Raises UserError if a scale is not finite in float16.
    """
    q, d = levels.reshape(-1, BLOCK).astype(np.int8), half(scales.reshape(-1, 1))
    packed = packed_nibbles((q + 8).view(np.uint8)) if kind == "q4_0" else q
    return joined(d, packed).reshape(len(levels), -1)


def scale_q8_0(x: np.ndarray) -> np.ndarray:
    return abs(x).max(axis=1, keepdims=True) / 127


def encode_q8_0(x: np.ndarray) -> np.ndarray:
    d = scale_q8_0(x)
    stored, scaled = half(d), x * inverse(d)
    size = np.floor(abs(scaled) + np.float32(0.5))          # C's roundf: halves away from zero
    return joined(stored, np.copysign(size, scaled).astype(np.int8))


def decode_q8_0(units: np.ndarray) -> np.ndarray:
    return scales(units) * units[:, 2:].view(np.int8).astype(np.float32)


def scale_q4_0(x: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, abs(x).argmax(axis=1, keepdims=True), axis=1) / -8


def encode_q4_0(x: np.ndarray) -> np.ndarray:
    d = scale_q4_0(x)
    stored = half(d)
    exact = x.astype(np.float64) * inverse(d) + 8.5         # rounded once, as a fused multiply-add does
    return joined(stored, packed_nibbles(np.minimum(np.trunc(exact.astype(np.float32)), 15).astype(np.uint8)))


def decode_q4_0(units: np.ndarray) -> np.ndarray:
    return scales(units) * (unpacked_nibbles(units[:, 2:]).astype(np.float32) - 8)


def packed_nibbles(q: np.ndarray) -> np.ndarray:
    """Two numbers below 16 in each byte: q [N 32] -> [N 16]."""
    return q[:, :16] | q[:, 16:] << np.uint8(4)


def unpacked_nibbles(data: np.ndarray) -> np.ndarray:
    """The inverse of packed_nibbles: data [N 16] -> q [N 32]."""
    return np.concatenate([data & np.uint8(15), data >> np.uint8(4)], axis=1)


# --- halves -----------------------------------------------------------------------------------------------------------

def encode_bf16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = x.astype(ml_dtypes.bfloat16)
    if not np.isfinite(rounded).all():
        raise UserError("a number is NaN, infinite or too large for bf16; repair the model")
    return rounded.view(np.uint8)


FORMATS = {
    "f16": Format(1, 2, lambda x: half(x).view(np.uint8), lambda units: units.view(np.float16).astype(np.float32)),
    "bf16": Format(1, 2, encode_bf16, lambda units: units.view(ml_dtypes.bfloat16).astype(np.float32)),
    "q8_0": Format(BLOCK, 34, encode_q8_0, decode_q8_0, scale_q8_0),
    "q4_0": Format(BLOCK, 18, encode_q4_0, decode_q4_0, scale_q4_0),
}
