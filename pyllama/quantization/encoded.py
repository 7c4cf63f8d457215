"""Matrices in a storage format, as leaves of a tree of parameters.

A tree with such leaves takes the memory of its file.  `pyllama.decode` multiplies with them as they are; everything
else reads decoded_tree(), which has plain arrays.
"""
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from pyllama import backend, params
from pyllama.device import host
from pyllama.errors import UserError
from pyllama.files import give_back
from pyllama.quantization import blocks

PANEL = 2**20                                               # numbers that panels() decodes at once


class EncodedArray:
    """A matrix of parameters in a storage format.

    kind        "f16", "bf16", "q8_0" or "q4_0": see blocks.py
    data        uint8 [E, bytes of a row]: the rows as in a file of GGUF, possibly mapped
    shape       (E, D), as the matrix has it

    Raises ValueError if they do not fit together.

    Of a matrix that its model stores as (inputs, outputs), the leaf is the `.T` of the encoded matrix.

    >>> import numpy as np
    >>> from pyllama.quantization import EncodedArray
    >>> w = np.linspace(-1, 1, 64).reshape(2, 32)
    >>> encoded = EncodedArray.of(w, "q8_0")
    >>> encoded.shape, encoded.nbytes, encoded.T.shape
    ((2, 32), 68, (32, 2))
    >>> bool(abs(encoded.decoded("float64") - w).max() < 1 / 254 + 1e-3)
    True
    """

    def __init__(self, kind: str, data: np.ndarray, shape: tuple[int, int], transposed: bool = False):
        rows, columns = shape[::-1] if transposed else shape
        expected = (rows, blocks.row_bytes(columns, kind))
        if data.dtype != np.uint8 or data.shape != expected:
            raise ValueError(f"the data of a matrix {rows} x {columns} of {kind} must be uint8 {expected}, not "
                             f"{data.dtype} {data.shape}")
        self.kind = kind
        self.shape = tuple(shape)
        self.transposed = transposed
        self._stored = _Stored(kind, data, rows, columns)

    @classmethod
    def of(cls, x: np.ndarray, kind: str) -> "EncodedArray":
        """Encode a matrix x [E D]: see blocks.encode."""
        return cls(kind, blocks.encode(x, kind), x.shape)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"EncodedArray({rows} x {columns}, {self.kind}{', transposed' if self.transposed else ''})"

    @property
    def T(self) -> "EncodedArray":
        """The transpose, with the same memory."""
        other = object.__new__(EncodedArray)
        other.kind, other.shape, other.transposed = self.kind, self.shape[::-1], not self.transposed
        other._stored = self._stored
        return other

    @property
    def data(self) -> np.ndarray:
        """uint8 [E, bytes of a row]; of a transposed matrix, the rows of its transpose."""
        return self._stored.rows_as_in_a_file()

    @property
    def ndim(self) -> int:
        """2"""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of its numbers."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes in a file."""
        return self._stored.nbytes

    def decoded(self, dtype: Any = "float32") -> np.ndarray:
        """The numbers [E D], a new array."""
        rows = blocks.decode(self.data, self.kind).astype(dtype, copy=False)
        return np.ascontiguousarray(rows.T) if self.transposed else rows

    def panels(self, dtype: Any = "float32") -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, the numbers of these rows) piece by piece, which takes less memory than all numbers at once.

        Raises ValueError if the matrix is transposed, because its rows are not contiguous.
        """
        if self.transposed:
            raise ValueError("a transposed matrix has no rows; take the panels of its .T")
        data, step = self.data, max(1, PANEL // self.shape[1])
        for begin in range(0, len(data), step):
            rows = slice(begin, begin + step)
            yield rows, params.cast(blocks.decode(data[rows], self.kind), np.dtype(dtype))

    def scales(self) -> np.ndarray:
        """The numbers [E N] that are stored as floats: those of f16 and bf16, the scales of q8_0 and q4_0."""
        data, form = self.data, blocks.FORMATS[self.kind]
        first = data.reshape(len(data), -1, form.bytes)[:, :, :2]
        return np.ascontiguousarray(first).view(ml_dtypes.bfloat16 if self.kind == "bf16" else "<f2")[:, :, 0]

    def is_finite(self) -> bool:
        """Are all numbers finite?  Of the bits of floats of either sign, those that are not finite are the largest."""
        bits = self.scales().view(np.uint16)
        infinity = 0x7F80 if self.kind == "bf16" else 0x7C00
        if self.kind in blocks.LEVELS:
            give_back(self._stored.in_file)                 # they are read again when they are repacked
        return bool(bits.view(np.int16).max(initial=0) < infinity and bits.max(initial=0) < 0x8000 + infinity)

    def interleaved(self) -> np.ndarray:
        """The rows, repacked for the kernels of csrc/cpu/stored.c, where they use another layout than the file.

        They are repacked once, and the rows as in the file are dropped: `data` computes them again.  Raises ValueError
        if the matrix is transposed, because its rows are not contiguous.
        """
        if self.transposed:
            raise ValueError("a transposed matrix has no rows; interleave its .T")
        return self._stored.interleaved()


class _Stored:
    """The bytes of an encoded matrix and of its transpose, in one of two layouts."""

    def __init__(self, kind: str, data: np.ndarray, rows: int, columns: int):
        self.kind, self.rows, self.columns, self.nbytes = kind, rows, columns, data.nbytes
        self.in_file: np.ndarray | None = data
        self.for_kernels: np.ndarray | None = None

    def rows_as_in_a_file(self) -> np.ndarray:
        if self.in_file is not None:
            return self.in_file
        return backend.cpu.deinterleaved(self.for_kernels, self.kind, self.rows, self.columns)

    def interleaved(self) -> np.ndarray:
        if blocks.FORMATS[self.kind].numbers == 1:
            return np.ascontiguousarray(self.in_file)
        if self.for_kernels is None:
            self.for_kernels = backend.cpu.interleaved(self.in_file, self.kind, self.rows, self.columns)
            give_back(self.in_file)
            self.in_file = None
        return self.for_kernels


def is_quantized(tree: Any) -> bool:
    """Does the tree of parameters have encoded matrices?"""
    return any(isinstance(leaf, EncodedArray) for _, leaf in params.leaves(tree))


def plain(tree: Any, kind: str) -> Any:
    """The tree with plain arrays on the host, to be quantized.

    Raises UserError if there is no such storage format, or if a matrix has been rounded to few bits already.
    """
    if kind not in blocks.FORMATS:
        raise UserError(f"dtype is {kind!r}; a model is quantized to {', '.join(blocks.FORMATS)}")
    if before := [leaf.kind for _, leaf in params.leaves(tree)
                  if isinstance(leaf, EncodedArray) and leaf.kind in blocks.LEVELS]:
        raise UserError(f"the model is already quantized to {before[0]}; quantize the model that it was made of")
    return params.rebuild(tree, (host(leaf) for _, leaf in params.leaves(decoded_tree(tree))))


def decoded_tree(tree: Any, dtype: Any = "float32") -> Any:
    """The tree with plain arrays of this dtype in place of encoded matrices; other leaves are kept.

    >>> import numpy as np
    >>> from pyllama.quantization import EncodedArray, decoded_tree
    >>> tree = {"weight": EncodedArray.of(np.eye(2, 32) * 127, "q8_0"), "bias": np.zeros(2)}
    >>> decoded_tree(tree)["weight"][0, :3]
    array([127.,   0.,   0.], dtype=float32)
    """
    return params.rebuild(tree, (leaf.decoded(dtype) if isinstance(leaf, EncodedArray) else leaf
                                 for _, leaf in params.leaves(tree)))


# Small matrices stay as they are: those that are looked up, not multiplied with, as in files of llama.cpp; and the
# projection of a factorized table, because the storage formats are read by rows, and it is by columns, too.
SMALL = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight", "token_type_embeddings.weight",
         ".projection")


def is_encodable(name: str, leaf: Any) -> bool:
    """Is this parameter a matrix that a storage format is used for?  Norms, biases and small matrices are not."""
    return leaf.ndim == 2 and not name.endswith((*SMALL, "bias"))


def fitting(kind: str, columns: int) -> str:
    """The format, or f16 where a row of so many numbers cannot be divided into its blocks."""
    return "f16" if columns % blocks.FORMATS[kind].numbers else kind


def encoded(name: str, leaf: np.ndarray, kind: str, config: Any) -> EncodedArray:
    """A matrix of a model in the format that fits its rows.

    A matrix that the model stores as (inputs, outputs) is encoded with a row for each output.  Raises UserError, with
    the name, if a number is not finite or too large.
    """
    turned = name.endswith(config.TRANSPOSED)
    rows = leaf.T if turned else leaf
    try:
        result = EncodedArray.of(rows, fitting(kind, rows.shape[1]))
    except UserError as error:
        raise UserError(f"{name} cannot be stored as {kind}: {error}") from None
    return result.T if turned else result


def encoded_tree(tree: Any, kind: str, config: Any) -> Any:
    """The tree of a model's parameters with its matrices in a storage format; other leaves become float32.

    Matrices that are encoded already stay so.  Raises UserError as encoded() does.
    """
    def stored(name, leaf):
        if isinstance(leaf, EncodedArray):
            return leaf
        return encoded(name, leaf, kind, config) if is_encodable(name, leaf) else leaf.astype(np.float32)

    return params.rebuild(tree, (stored(name, leaf) for name, leaf in params.leaves(tree)))
