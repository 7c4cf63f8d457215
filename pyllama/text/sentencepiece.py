"""Read SentencePiece's models (tokenizer.model, spiece.model): LLaMA's byte pairs and T5's unigrams.

The file is a message of protocol buffers.  fields() reads such a message, so that no other package is needed:

    ModelProto       1 pieces, repeated: 1 text, 2 score, 3 type     2 TrainerSpec     3 NormalizerSpec
    TrainerSpec      3 the algorithm     35 byte_fallback     40 to 43 the ids of the unknown, start, end, padding token
    NormalizerSpec   2 a table of characters     3 add_dummy_prefix     4 remove_extra_whitespaces

Source: github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""
import functools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pyllama.errors import UserError

UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6           # types of pieces; 1 is an ordinary one
SPACE = "▁"


Piece = tuple[str, float, int]                              # text, score, type


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of a vocabulary, by id: columns, because a tuple for each would take several times the memory.

    >>> from pyllama.text.sentencepiece import Pieces
    >>> pieces = Pieces.of([("<unk>", 0.0, 2), ("a", -1.0, 1)])
    >>> pieces.ids, pieces.of_types(1)
    ({'<unk>': 0, 'a': 1}, ['a'])
    """
    texts: list[str]
    scores: np.ndarray
    types: np.ndarray                                       # 1 is an ordinary piece; the others: UNKNOWN, ...

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> "Pieces":
        """The vocabulary with these pieces."""
        texts, scores, types = zip(*pieces, strict=True)
        return cls([*texts], np.array(scores, np.float64), np.array(types, np.int32))

    def __iter__(self) -> Iterator[Piece]:
        return zip(self.texts, self.scores.tolist(), self.types.tolist(), strict=True)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """{text: id}"""
        return {text: i for i, text in enumerate(self.texts)}

    def of_types(self, *types: int) -> list[str]:
        """The texts of these types."""
        return [self.texts[i] for i in np.flatnonzero(np.isin(self.types, types))]


class Parts(NamedTuple):
    """The contents of a model file."""
    pieces: Pieces
    trainer: dict[int, Any]
    normalizer: dict[int, Any]

    @property
    def roles(self) -> dict[str, str]:
        """The special tokens by role; unk_token, bos_token, eos_token and pad_token, if they are there."""
        defaults = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
        ids = {role: self.trainer.get(field, default) for role, (field, default) in defaults.items()}
        return {role: self.pieces.texts[i] for role, i in ids.items() if 0 <= i < len(self.pieces.texts)}


def read(path: Path) -> Parts:
    """Read a model file.  Raises UserError if it cannot be read or is not a model of byte pairs or unigrams."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a SentencePiece model") from None
    try:
        pieces, specs = [], {2: b"", 3: b""}
        for field, value in fields(data):
            if field == 1:
                piece = dict(fields(value))
                pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1)))
            elif field in specs:
                specs[field] = value
        trainer, normalizer = (dict(fields(specs[field])) for field in (2, 3))
        for field in range(40, 44):
            if field in trainer:
                trainer[field] = signed(trainer[field])
        whole = Pieces.of(pieces)
    except (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError):
        whole = None
    if whole is None or UNKNOWN not in whole.types:
        raise UserError(f"{path} is not a SentencePiece model, or is truncated; fetch it again, or give a "
                        f"tokenizer.json")
    if trainer.get(3, UNIGRAM) not in (UNIGRAM, BPE):
        raise UserError(f"{path} is a SentencePiece model of words or characters; give one of byte pairs or unigrams")
    return Parts(whole, trainer, normalizer)


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field: an int, or bytes for numbers of 4 or 8 bytes, texts and messages."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        if key & 7 == 0:
            value, at = varint(message, at)
            yield key >> 3, value
            continue
        size, at = varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if at + size > len(message):
            raise ValueError("the message is truncated")
        yield key >> 3, message[at:at + size]
        at += size


def varint(message: bytes, at: int) -> tuple[int, int]:
    """(an integer, the position after it): 7 bits a byte, the lowest first; the eighth bit says that more follow."""
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def signed(value: int) -> int:
    """A negative int32 is stored as 64 bits."""
    return value - 2 ** 64 if value >= 2 ** 63 else value


def tokenizer_of(parts: Parts) -> tokenizers.Tokenizer:
    """The tokenizer, without special tokens around a text; it has the ids of the model file."""
    unigram = parts.trainer.get(3, UNIGRAM) == UNIGRAM
    rust = tokenizers.Tokenizer((_unigram if unigram else _byte_pairs)(parts))
    steps: list[Any] = [normalizers.Precompiled(parts.normalizer[2])] if parts.normalizer.get(2) else []
    if parts.normalizer.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    prefix = parts.normalizer.get(3, 1)
    if unigram:
        rust.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always" if prefix else "never")
    else:
        steps += [normalizers.Prepend(SPACE)] * bool(prefix) + [normalizers.Replace(" ", SPACE)]
    if steps:
        rust.normalizer = normalizers.Sequence(steps)
    rust.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                      *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    rust.add_special_tokens([tokenizers.AddedToken(text, normalized=False, special=True)
                             for text in parts.pieces.of_types(UNKNOWN, CONTROL)])
    rust.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in parts.pieces.of_types(USER_DEFINED)])
    return rust


def _unigram(parts: Parts) -> models.Unigram:
    return models.Unigram([(text, score) for text, score, _ in parts.pieces], _unknown(parts),
                          bool(parts.trainer.get(35, 0)))


def _byte_pairs(parts: Parts) -> models.BPE:
    fallback = bool(parts.trainer.get(35, 0))
    return models.BPE(parts.pieces.ids, merges((text, score) for text, score, kind in parts.pieces if kind == 1),
                      unk_token=parts.pieces.texts[_unknown(parts)], fuse_unk=True, byte_fallback=fallback)


def _unknown(parts: Parts) -> int:
    return int(np.flatnonzero(parts.pieces.types == UNKNOWN)[0])


def merges(scored) -> list[tuple[str, str]]:
    """Hugging Face's merges of SentencePiece's byte pairs: (piece, score) of each piece.

    SentencePiece merges the two neighbors whose union has the highest score, the leftmost if scores are equal, until no
    union is a piece.  Hugging Face's BPE merges the pair that comes first in a list.  So the list has every way to
    split a piece into two pieces, in the order of the scores.  The two algorithms agree if no two pieces have the same
    score, as in vocabularies that SentencePiece trains.
    """
    scores = dict(scored)
    own = dict(zip(scores, scores, strict=True))            # a merge shares the texts of its pieces, to save memory
    return [(first, second) for piece in sorted(scores, key=scores.__getitem__, reverse=True)
            for i in range(1, len(piece)) if (first := own.get(piece[:i])) and (second := own.get(piece[i:]))]


