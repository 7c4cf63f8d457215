"""Tokenizers whose tokens are single characters or bytes: made, and read from a table.

The library takes a second for a few megabytes of characters.  Table looks a character up by its number, in an array.
"""
import functools
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers


def characters(alphabet: Sequence[str]) -> tokenizers.Tokenizer:
    """One token for each character; the ids are indices in the alphabet."""
    rust = tokenizers.Tokenizer(models.WordLevel({character: i for i, character in enumerate(alphabet)}))
    rust.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    rust.decoder = decoders.Fuse()
    return rust


def single_bytes() -> tokenizers.Tokenizer:
    """BPE without merges."""
    rust = tokenizers.Tokenizer(models.BPE(byte_values(), []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    return rust


@functools.cache
def byte_values() -> dict[str, int]:
    """character -> its byte, as vocabularies of bytes write it: a printable byte as itself, the others by U+0100 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in alphabet if ord(character) < 256]
    values = printable + sorted(set(range(256)) - set(printable))
    return dict(zip(alphabet, values, strict=True))


class Table:
    """The ids of an alphabet of characters, in code-point order, or of all bytes.

    >>> from pyllama.text.alphabets import Table
    >>> Table("abc").ids("cab").tolist()
    [2, 0, 1]
    """

    def __init__(self, alphabet: Sequence[str] | None):
        """alphabet: the sorted characters; None: the 256 bytes of UTF-8."""
        self.alphabet = alphabet

    @functools.cached_property
    def _id_of(self) -> np.ndarray:
        """The id of each code point up to the alphabet's last and one more; -1: it has none."""
        points = np.array([ord(character) for character in self.alphabet or ""], int)
        table = np.full(points[-1] + 2, -1, np.int32)
        table[points] = np.arange(len(points))
        return table

    def count(self, text: str) -> int:
        """The number of ids of a text."""
        return len(text) if self.alphabet is not None or text.isascii() else len(text.encode())

    def ids(self, text: str) -> np.ndarray:
        """The ids [N] of a text, as integers; -1 for a character that the alphabet lacks."""
        if self.alphabet is None:
            return np.frombuffer(text.encode(), np.uint8)
        points = np.frombuffer(text.encode(), np.uint8) if text.isascii() else \
            np.frombuffer(text.encode("utf-32-le"), "<u4")
        return self._id_of.take(points, mode="clip")


def table_of(rust: tokenizers.Tokenizer) -> Table | None:
    """The table of a tokenizer that characters() or single_bytes() made, also if it was loaded from a file, or None."""
    if isinstance(rust.model, models.BPE):          # whose vocabulary may be large, so that a copy takes much memory
        return Table(None) if rust.get_vocab_size() == 256 and rust.to_str() == single_bytes().to_str() else None
    tokens = sorted(rust.get_vocab())
    if tokens and all(len(token) == 1 for token in tokens) and rust.to_str() == characters(tokens).to_str():
        return Table(tokens)
    return None
