"""A corpus as token ids: encoded once into a file, split, and cut into windows.

A batch depends on (seed, step) alone.  A run that is resumed, or shared among ranks, therefore sees the same batches.
"""
import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pyllama import rng
from pyllama.errors import UserError, counted
from pyllama.files import cure, make_folder, parse_json, replacing, rewrite, sha256
from pyllama.text import encoding, special
from pyllama.text.corpus import Sources, documents
from pyllama.text.epochs import step_rows
from pyllama.text.id_file import IdFile, blocks_of
from pyllama.text.tokenizer import Tokenizer

# llm.c's token files start with 256 int32: a magic number, a version, the number of tokens, and zeros.
LLM_C: dict[tuple[int, ...], type] = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}
LLM_C_HEADER = 1024
SAMPLE, SURE = 2**20, 8                             # bytes that show how wide ids are, and ids that suffice for it


class Batch(NamedTuple):
    """The rows of a training step."""
    inputs: dict[str, np.ndarray]                   # the arrays that a model's loss takes, by name: [B ...]
    targets: float                                  # the loss is the mean over this many labels, or their weight

    def on_device_of(self, x) -> "Batch":
        """The batch on the device of x."""
        return self._replace(inputs={name: np.asarray(a, like=x) for name, a in self.inputs.items()})


@dataclass(frozen=True, eq=False)
class Tokens:
    """A sequence of token ids: the ranges ids[starts[i]:stops[i]] of one array, end to end.  Each is from one document.

    len(tokens) is the number of tokens.  tokens[a:b] and tokens[positions], with an integer array of any shape, are
    int64 copies; positions outside raise IndexError.

    >>> import numpy as np
    >>> from pyllama.text.tokens import joined
    >>> tokens = joined([np.array([1, 2, 3]), np.array([4, 5])])
    >>> len(tokens), tokens[2:4].tolist()
    (5, [3, 4])
    """
    ids: np.ndarray | IdFile                        # [N], uint16 or uint32
    starts: np.ndarray                              # int64, of each range
    stops: np.ndarray                               # int64, exclusive

    @functools.cached_property
    def _ends(self):
        """The position after the last token of each range."""
        return np.cumsum(self.stops - self.starts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(len(self)))
        if positions.size == 0:
            return np.zeros(positions.shape, np.int64)
        if not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} to {positions.max()} of {len(self)} tokens")
        number = self.documents_at(positions)
        return self.ids[positions - self._ends[number] + self.stops[number]].astype(np.int64)

    def ending_with(self, end: int) -> "Tokens":
        """The tokens, as documents that each end with the id `end`; the last may lack it."""
        found, count = [], 0
        for block in blocks_of(self.ids):
            found.append(count + 1 + np.flatnonzero(block == end))
            count += len(block)
        borders = np.unique(np.concatenate([[0], *found, [count]]))
        return Tokens(self.ids, borders[:-1], borders[1:])

    def documents_at(self, positions: np.ndarray) -> np.ndarray:
        """The number of the range that has each position."""
        return np.searchsorted(self._ends, positions, "right")

    def between(self, begin: int, end: int) -> "Tokens":
        """The tokens at positions begin to end - 1, as a view."""
        starts = self.starts + np.clip(begin - self._ends + self.stops - self.starts, 0, None)
        stops = self.stops - np.clip(self._ends - end, 0, None)
        return Tokens(self.ids, starts, stops).where(starts < stops)

    def where(self, chosen: np.ndarray) -> "Tokens":
        """The ranges i for which chosen[i] is true, as a view."""
        return Tokens(self.ids, self.starts[chosen], self.stops[chosen])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all ids of the file or array, in hexadecimal."""
        digest = sha256()
        for block in blocks_of(self.ids):
            digest.update(block.data)
        return digest.hexdigest()

    @property
    def documents_fingerprint(self) -> str:
        """SHA-256 of the width of an id and the borders of the documents, in hexadecimal."""
        digest = sha256(self.ids.dtype.name.encode())
        for borders in self.starts, self.stops:
            digest.update(borders.astype("<i8").tobytes())
        return digest.hexdigest()

    def batch(self, settings, step: int) -> Batch:
        """The windows of a step of loop.train(): see windows() and, if settings.packing, within_documents()."""
        positions = window_positions(len(self), settings.rows_per_step, settings.block_size, settings.seed, step)
        ids = self[positions]
        if not settings.packing:
            return Batch({"ids": ids, "labels": ids}, ids[:, 1:].size)
        segments = self.documents_at(positions)
        labels = within_documents(ids, segments)
        return Batch({"ids": ids, "labels": labels, "segments": segments}, int(np.sum(labels[:, 1:] != -100)))


def joined(documents: Sequence[np.ndarray]) -> Tokens:
    """Concatenate documents, which are integer arrays [N] of any length."""
    ends = np.cumsum([len(ids) for ids in documents], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, np.uint16), *documents])
    return Tokens(ids, np.concatenate([[0], ends[:-1]]).astype(np.int64)[:len(ends)], ends)


# Encode once

def prepare(sources: Sources, tokenizer: Tokenizer, folder: str | Path, field: str = "text",
            progress: Callable[[int, int], object] = lambda done, total: None) -> Tokens:
    """Encode corpus.documents(sources, field) into folder/tokens.bin, or reuse that file.

    progress    called as progress(done, total), in characters

    Every document has its special tokens around it (see special.frame), also the last, because a split by document
    changes the order.  tokens.bin.json records them and the hashes of the text and of the tokenizer.  If one of these
    or the size of the file differs, the file is written again, and replaced only when the new one is complete.

    Raises UserError as documents() and Tokenizer.encode() do, with the name of the document, and if the file cannot be
    written.
    """
    digest, total = encoding.fingerprint(documents(sources, field))
    frame = special.frame(tokenizer)
    made_of = {"format": 2, "text": digest, "tokenizer": tokenizer.hash, "frame": [frame.before, frame.behind]}
    file = Path(folder) / "tokens.bin"
    with contextlib.suppress(UserError):
        return _stored(file, made_of)
    try:
        make_folder(file.parent)
        with replacing(file) as out:
            starts, count = encoding.encode(documents(sources, field), tokenizer, frame, out,
                                            lambda done: progress(done, total))
            # Before the new file gets its name: the old sidecar must not describe the new tokens.
            _sidecar(file).unlink(missing_ok=True)
        side = {**made_of, "dtype": tokenizer.dtype.name, "tokens": count, "documents": starts}
        rewrite(_sidecar(file), [json.dumps(side).encode()])
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; {cure(error)} or choose another folder") from None
    return _stored(file, made_of)


def token_file(path: str | Path, vocab_size: int | None = None, tokenizer_hash: str | None = None) -> Tokens:
    """Open a file of tokens: from prepare(), from llm.c (with its header) or from nanoGPT (without a header).

    vocab_size       check that all ids are below it; without a header, it tells uint16 from uint32: see width_of()
    tokenizer_hash   check that prepare() used the tokenizer with this hash

    Raises UserError if a check fails, or if the file has none of these formats or is truncated.
    """
    path = Path(path)
    if _sidecar(path).exists():
        tokens = _stored(path, {})
        if tokenizer_hash not in (None, parse_json(_sidecar(path).read_bytes()).get("tokenizer")):
            raise UserError(f"{path} was made with another tokenizer; give that one, or prepare the tokens again")
    else:
        try:
            header = np.fromfile(path, np.int32, 3).tolist()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; give a file of tokens") from None
        known = LLM_C.get(tuple(header[:2]))
        if not known and header[:1] and header[0] in {magic for magic, _ in LLM_C}:
            raise UserError(f"{path} has version {header[1:2]} of llm.c's format, which is not supported; write it "
                            f"again with llm.c's present scripts")
        dtype = np.dtype(known) if known else width_of(path, vocab_size)
        offset, size = LLM_C_HEADER if known else 0, path.stat().st_size
        count, rest = divmod(size - offset, dtype.itemsize)
        if rest and not known and dtype == np.uint32:
            raise UserError(f"{path} has {size:,} bytes, which is not a multiple of 4, but ids of 32 bits are "
                            f"expected, because the vocabulary has {vocab_size or 0:,} tokens; write the ids as "
                            f"uint32, or give the tokenizer that the file was made with")
        if rest or count < 1 or (known and count != header[2]):
            raise UserError(f"{path} is not a complete token file: it has {size} bytes"
                            + (f", but its header says {header[2]} tokens" if known else "") + "; copy it again")
        tokens = Tokens(IdFile(path, dtype, offset), np.array([0]), np.array([count]))
    if vocab_size is not None and (largest := max(int(ids.max()) for ids in blocks_of(tokens.ids))) >= vocab_size:
        raise UserError(f"{path} has the id {largest}, but the vocabulary has {vocab_size} tokens; "
                        f"give the tokenizer that the file was made with")
    return tokens


def width_of(path: Path, vocab_size: int | None) -> np.dtype:
    """The type of the ids in a file without a header: uint16, as nanoGPT writes them, or uint32.

    A vocabulary of more than 2¹⁶ tokens does not fit uint16.  Ids of a smaller one, written as uint32, have a zero
    after each id, which no text has.  Raises UserError for ids of 64 bits.
    """
    begin = np.fromfile(path, np.uint8, SAMPLE)
    size = path.stat().st_size
    for dtype in (np.uint64, np.uint32):
        ids = begin[:begin.size // 8 * 8].view(dtype)
        if ids.size >= SURE and size % ids.itemsize == 0 and ids.max() < min(vocab_size or 2**16, 2**31):
            if dtype == np.uint64:
                raise UserError(f"{path} has ids of 64 bits; write them as uint16, or as uint32 for a vocabulary of "
                                f"more than {2**16:,} tokens")
            return np.dtype(dtype)
    return np.dtype(np.uint16 if (vocab_size or 0) <= 2**16 else np.uint32)


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _stored(file: Path, made_of: dict) -> Tokens:
    """The tokens of a file that prepare() wrote.  Raises UserError unless it is complete and made of `made_of`."""
    try:
        side = parse_json(_sidecar(file).read_bytes())
        ids = IdFile(file, side["dtype"])
        starts = np.array(side["documents"], np.int64)
        valid = len(ids) == side["tokens"] and made_of.items() <= side.items()
    except (OSError, ValueError, TypeError, KeyError):
        valid = False
    if not valid:
        raise UserError(f"{file} and {_sidecar(file).name} do not fit together; remove both and prepare them again")
    return Tokens(ids, starts, np.append(starts[1:], len(ids)))


# Split

def split(tokens: Tokens, validation: float = 0.1, by: Literal["position", "document"] = "position",
          seed: int = 0, block_size: int = 1) -> tuple[Tokens, Tokens]:
    """Split tokens: (training, validation), as views.

    validation  the share of the validation part, between 0 and 1
    by          "position": the last tokens, as in nanoGPT; "document": random documents
    seed        of the random documents

    Raises UserError if `validation` is not a share, or unless each part has the block_size + 1 tokens of a window.
    """
    if not 0 < validation < 1:
        raise UserError(f"validation {validation} is not a share: give a number between 0 and 1, such as 0.1")
    if by == "position":
        cut = int(len(tokens) * (1 - validation))
        parts = tokens.between(0, cut), tokens.between(cut, len(tokens))
    elif by == "document":
        count = len(tokens.starts)
        drawn = rng.generator(seed, "split").permutation(count) < max(1, round(count * validation))
        parts = tokens.where(~drawn), tokens.where(drawn)
    else:
        raise UserError(f"cannot split by {by!r}; split by 'position' or by 'document'")
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part) <= block_size:
            raise UserError(f"{len(part)} of {len(tokens)} tokens, in {len(part.starts)} of "
                            f"{counted(len(tokens.starts), 'document')}, are for {name}, but block_size "
                            f"{block_size} needs {block_size + 1}; give more text, make block_size "
                            f"smaller, or split in another way")
    return parts


# Windows

def windows_per_epoch(size: int, block_size: int) -> int:
    """The number of windows that an epoch visits.  Raises UserError if the tokens do not fill one window."""
    if size <= block_size:
        raise UserError(f"there are {size} tokens, but block_size {block_size} needs {block_size + 1}; "
                        f"give more text or a smaller block_size")
    return max(1, size // block_size - 1)           # one fewer than fit: their borders can move


def windows(tokens: Tokens, batch_size: int, block_size: int, seed: int, step: int) -> np.ndarray:
    """The windows of a step (0, 1, ...): int64 [B T+1], with inputs ids[:, :-1] and targets ids[:, 1:].

    Windows start every block_size = T tokens.  The last token of one window is thus the first of the next, and no
    target is lost between them.  An epoch visits each window once in random order.  Every epoch also draws the position
    of the first window, so the borders move; fewer than 2·block_size tokens at the ends are left to other epochs.  A
    batch may continue in the next epoch.  Raises UserError if the tokens do not fill one window.
    """
    return tokens[window_positions(len(tokens), batch_size, block_size, seed, step)]


def window_positions(size: int, batch_size: int, block_size: int, seed: int, step: int) -> np.ndarray:
    """The positions [B T+1] of windows() among `size` tokens."""
    count = windows_per_epoch(size, block_size)
    rows, phases = step_rows(count, batch_size, seed, step, phases=size - block_size * count)
    return (phases + block_size * rows)[:, None] + np.arange(block_size + 1)


def within_documents(labels: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The labels [B T+1], -100 where a token follows one of another document: segments [B T+1] are their numbers.

    >>> import numpy as np
    >>> from pyllama.text.tokens import within_documents
    >>> within_documents(np.array([[5, 6, 7, 8]]), np.array([[0, 0, 1, 1]]))
    array([[   5,    6, -100,    8]])
    """
    first = np.zeros(labels.shape, bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return np.where(first, -100, labels)


def evaluation_windows(tokens: Tokens, batch_size: int, block_size: int,
                       most: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids, labels), both int64 [B T+1], in order: every token but the first is a target exactly once.

    most     the number of batches, at most; None: all

    As in Hugging Face, labels are the ids, not shifted, and -100 at positions without a target: here the padding of
    the last window.  The model shifts them.  The last batch may have fewer rows.

    Raises UserError for fewer than 2 tokens.
    """
    if len(tokens) < 2:
        raise UserError(f"there are {len(tokens)} tokens to evaluate on, but at least 2 are needed; give more text")
    starts = np.arange(0, len(tokens) - 1, block_size)
    for row in range(0, len(starts), batch_size)[:most]:
        positions = starts[row:row + batch_size, None] + np.arange(block_size + 1)
        inside = positions < len(tokens)
        ids = np.where(inside, tokens[np.minimum(positions, len(tokens) - 1)], 0)
        yield ids, np.where(inside, ids, -100)


def packed_evaluation_windows(tokens: Tokens, batch_size: int, block_size: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield (ids, labels, segments) as evaluation_windows(), but a document's first token is not a target."""
    begin = 0
    for ids, labels in evaluation_windows(tokens, batch_size, block_size):
        positions = begin + block_size * np.arange(len(ids))[:, None] + np.arange(block_size + 1)
        segments = tokens.documents_at(np.minimum(positions, len(tokens) - 1))
        yield ids, within_documents(labels, segments), segments
        begin += block_size * len(ids)
