"""A corpus as token ids: encoded once into a memory-mapped file, split, and cut into windows.

A batch depends on (seed, step) alone, so a run that is resumed, or shared among ranks, sees what one run would see.
"""
import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from pyllama import rng
from pyllama.errors import UserError
from pyllama.files import replacing, rewrite
from pyllama.text.corpus import Document, Sources, documents
from pyllama.text.epochs import step_rows
from pyllama.text.tokenizer import Tokenizer

AT_ONCE = 2**20                                     # characters gathered to be encoded in parallel

# llm.c's token files open with 256 int32: a magic number, a version, the count of tokens, and zeros.
LLM_C: dict[tuple[int, ...], type] = {(20240520, 1): np.uint16, (20240801, 7): np.uint32}
LLM_C_HEADER = 1024


class Batch(NamedTuple):
    """What a step learns from."""
    inputs: dict[str, np.ndarray]                   # the arrays a model's loss takes by name, a row an example
    targets: float                                  # how many count, or their weight: the loss is the mean over them

    def beside(self, x) -> "Batch":
        """On the device that x is on."""
        return self._replace(inputs={name: np.asarray(a, like=x) for name, a in self.inputs.items()})


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids laid end to end: the stretches ids[starts[i]:stops[i]] of one array, at first one a document.

    tokens[a:b] and tokens[positions], for an integer array of any shape, are int64 copies.
    """
    ids: np.ndarray                                 # ids[N], uint16 or uint32, mostly memory-mapped
    starts: np.ndarray                              # int64
    stops: np.ndarray

    @functools.cached_property
    def _ends(self):
        """Where each stretch ends, laid end to end."""
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
        stretch = np.searchsorted(self._ends, positions, "right")
        return self.ids[positions - self._ends[stretch] + self.stops[stretch]].astype(np.int64)

    def between(self, begin: int, end: int) -> "Tokens":
        """The tokens at positions begin to end - 1, as a view."""
        starts = self.starts + np.clip(begin - self._ends + self.stops - self.starts, 0, None)
        stops = self.stops - np.clip(self._ends - end, 0, None)
        return Tokens(self.ids, starts, stops).where(starts < stops)

    def where(self, chosen: np.ndarray) -> "Tokens":
        """The stretches (documents) where chosen[i] is true, as a view."""
        return Tokens(self.ids, self.starts[chosen], self.stops[chosen])

    def batch(self, settings, step: int) -> Batch:
        """The windows of a step of train.train: see windows()."""
        ids = windows(self, settings.rows_per_step, settings.block_size, settings.seed, step)
        return Batch({"ids": ids, "labels": ids}, ids[:, 1:].size)


def joined(documents: Sequence[np.ndarray]) -> Tokens:
    """Documents, integer arrays of any length, laid end to end."""
    ends = np.cumsum([len(ids) for ids in documents], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, np.uint16), *documents])
    return Tokens(ids, np.concatenate([[0], ends[:-1]]).astype(np.int64)[:len(ends)], ends)


# Encode once

def prepare(sources: Sources, tokenizer: Tokenizer, folder: str | Path, field: str = "text",
            progress: Callable[[int, int], object] = lambda done, total: None) -> Tokens:
    """The tokens of corpus.documents(sources, field), kept as folder/tokens.bin for the next time.

    The tokenizer's end-of-text token, if it has one, follows every document, the last one too, because a split by
    document moves it.  tokens.bin.json beside the file says what it was made of: where the text, the tokenizer or the
    file's size is another, it is made anew, under a temporary name until whole.  progress(done, total) is told
    characters.  Raises UserError as documents() and Tokenizer.encode() do, naming the document.
    """
    digest, total = _fingerprint(documents(sources, field))
    made_of = {"format": 1, "text": digest, "tokenizer": tokenizer.hash}
    file = Path(folder) / "tokens.bin"
    with contextlib.suppress(UserError):
        return _stored(file, made_of)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as out:
            starts, count = _encode(documents(sources, field), tokenizer, out, lambda done: progress(done, total))
            # From here to the end no sidecar may vouch for the file: the old one would for the new tokens.
            _sidecar(file).unlink(missing_ok=True)
        side = {**made_of, "dtype": tokenizer.dtype.name, "tokens": count, "documents": starts}
        rewrite(_sidecar(file), [json.dumps(side).encode()])
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; make room or choose another folder") from None
    return _stored(file, made_of)


def token_file(path: str | Path, vocab_size: int | None = None, tokenizer_hash: str | None = None) -> Tokens:
    """Tokens that are ready: a file of prepare(), of llm.c (with its header) or of nanoGPT (uint16 and nothing else).

    Raises UserError if it is none of these, is cut short, holds an id that is not below vocab_size, or was prepared
    with a tokenizer of another hash.
    """
    path = Path(path)
    if _sidecar(path).exists():
        tokens = _stored(path, {})
        if tokenizer_hash not in (None, json.loads(_sidecar(path).read_bytes()).get("tokenizer")):
            raise UserError(f"{path} was made with another tokenizer; give that one, or make the tokens anew")
    else:
        try:
            header = np.fromfile(path, np.int32, 3).tolist()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; give a file of tokens") from None
        dtype = LLM_C.get(tuple(header[:2]))
        offset, size = LLM_C_HEADER if dtype else 0, path.stat().st_size
        count, rest = divmod(size - offset, np.dtype(dtype or np.uint16).itemsize)
        if rest or count < 1 or (dtype and count != header[2]):
            raise UserError(f"{path} is no whole file of tokens: it has {size} bytes"
                            + (f", its header promises {header[2]} tokens" if dtype else "") + "; copy it anew")
        ids = np.memmap(path, dtype or np.uint16, "r", offset).view(np.ndarray)
        tokens = Tokens(ids, np.array([0]), np.array([count]))
    if vocab_size is not None and (largest := int(tokens.ids.max())) >= vocab_size:
        raise UserError(f"{path} holds the id {largest}, the vocabulary has {vocab_size} tokens; "
                        f"give the tokenizer that the file was made with")
    return tokens


def _fingerprint(texts: Iterable[Document]) -> tuple[str, int]:
    """(SHA-256 of the texts, number of characters)"""
    digest, total = hashlib.sha256(), 0
    for _, text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
        total += len(text)
    return digest.hexdigest(), total


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _stored(file: Path, made_of: dict) -> Tokens:
    """The tokens of a file that prepare() wrote.  Raises UserError unless it is whole and made of this."""
    try:
        side = json.loads(_sidecar(file).read_bytes())
        ids = np.memmap(file, side["dtype"], "r").view(np.ndarray)
        starts = np.array(side["documents"], np.int64)
        whole = len(ids) == side["tokens"] and made_of.items() <= side.items()
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{file} and {_sidecar(file).name} do not fit together; remove both and prepare them again")
    return Tokens(ids, starts, np.append(starts[1:], len(ids)))


def _encode(texts: Iterable[Document], tokenizer: Tokenizer, out: BinaryIO,
            progress: Callable[[int], object]) -> tuple[list[int], int]:
    """Write the ids; return (where each document starts, how many ids there are)."""
    end = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], tokenizer.dtype)
    starts, count, done = [], 0, 0
    for batch in _gather(texts):
        for ids in _encode_batch(batch, tokenizer):
            starts.append(count)
            count += len(ids) + len(end)
            out.write(ids.tobytes() + end.tobytes())
        done += sum(len(text) for _, text in batch)
        progress(done)
    return starts, count


def _gather(texts: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in texts:
        batch.append(document)
        size += len(document[1])
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_batch(batch: list[Document], tokenizer: Tokenizer) -> list[np.ndarray]:
    try:
        return tokenizer.encode_batch([text for _, text in batch])
    except UserError:
        for name, text in batch:                    # again one by one, to name the document
            try:
                tokenizer.encode(text)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        raise


# Split

def split(tokens: Tokens, validation: float = 0.1, by: Literal["position", "document"] = "position",
          seed: int = 0, block_size: int = 1) -> tuple[Tokens, Tokens]:
    """(training, validation) as views; `validation` is the share of the latter.

    By position the last share of the tokens is for validation, as in nanoGPT; by document, documents drawn by seed.
    Raises UserError unless each part has the block_size + 1 tokens of a window.
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
            raise UserError(f"{len(part)} of {len(tokens)} tokens, in {len(part.starts)} of {len(tokens.starts)} "
                            f"documents, would be for {name}, but block_size {block_size} needs {block_size + 1}; "
                            f"give more text, a smaller block_size, or another share or way to split")
    return parts


# Windows

def windows_per_epoch(size: int, block_size: int) -> int:
    """The same for every epoch.  Raises UserError if the tokens do not fill one window."""
    if size <= block_size:
        raise UserError(f"there are {size} tokens, but block_size {block_size} needs {block_size + 1}; "
                        f"give more text or a smaller block_size")
    return max(1, size // block_size - 1)           # one fewer than fit, so that their borders have room to move


def windows(tokens: Tokens, batch_size: int, block_size: int, seed: int, step: int) -> np.ndarray:
    """ids[B T+1], int64: the windows of this step (0, 1, ...), inputs ids[:, :-1] and targets ids[:, 1:].

    An epoch visits windows that lie side by side, each once, in shuffled order.  Every epoch draws its order and the
    position of the first window, so that borders move; fewer than 2·block_size tokens, at the ends, are left to other
    epochs.  A batch may reach into the next epoch.  Side by side means every block_size tokens: the last token of one
    window is the first of the next, so no target is lost between them.
    """
    count = windows_per_epoch(len(tokens), block_size)
    rows, phases = step_rows(count, batch_size, seed, step, phases=len(tokens) - block_size * count)
    starts = phases + block_size * rows
    return tokens[starts[:, None] + np.arange(block_size + 1)]


def evaluation_windows(tokens: Tokens, batch_size: int, block_size: int,
                       most: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids[B T+1], labels[B T+1]), int64, in order: every token but the first is a target exactly once.

    Labels are as in Hugging Face: the ids, not shifted (the model does that), and -100 for what is no target, here
    the padding of the last window.  The last batch has as many rows as are left.  `most` bounds the batches.
    """
    if len(tokens) < 2:
        raise UserError(f"there are {len(tokens)} tokens to evaluate on, but it takes 2 to predict one; give more text")
    starts = np.arange(0, len(tokens) - 1, block_size)
    for row in range(0, len(starts), batch_size)[:most]:
        positions = starts[row:row + batch_size, None] + np.arange(block_size + 1)
        inside = positions < len(tokens)
        ids = np.where(inside, tokens[np.minimum(positions, len(tokens) - 1)], 0)
        yield ids, np.where(inside, ids, -100)
