"""Encode documents into a file of ids, many short ones together and a long one in parts."""
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from pyllama.errors import UserError
from pyllama.files import sha256
from pyllama.text import special
from pyllama.text.records import Document
from pyllama.text.tokenizer import Tokenizer

AT_ONCE = 2**20                                     # characters that are encoded together, in parallel


def fingerprint(texts: Iterable[Document]) -> tuple[str, int]:
    """(SHA-256 of the texts in hexadecimal, number of characters)"""
    digest, total = sha256(), 0
    for _, text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
        total += len(text)
    return digest.hexdigest(), total


def encode(texts: Iterable[Document], tokenizer: Tokenizer, frame: special.Frame, out: BinaryIO,
           progress: Callable[[int], object]) -> tuple[list[int], int]:
    """Write the ids of all documents; return (the position of each document, the number of ids).

    progress    called as progress(done), in characters

    Raises UserError as Tokenizer.encode() does, with the name of the document.
    """
    before, behind = (np.array(ids, tokenizer.dtype) for ids in (frame.before, frame.behind))
    line_break = np.zeros(0, tokenizer.dtype)
    if not frame.before and not frame.behind:
        with contextlib.suppress(UserError):            # a vocabulary of characters may have no line break
            line_break = tokenizer.encode("\n")
    starts, count, done, ended = [], 0, 0, True
    for batch in _gather(texts):
        for (_, text), parts in zip(batch, _encode_batch(batch, tokenizer), strict=True):
            starts.append(count)
            for ids in itertools.chain([line_break[:0 if ended else None], before], parts, [behind]):
                count += len(ids)
                out.write(ids.tobytes())
            ended = text.endswith("\n")
        done += sum(len(text) for _, text in batch)
        progress(done)
    return starts, count


def _gather(texts: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents until each group has AT_ONCE characters."""
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


def _encode_batch(batch: list[Document], tokenizer: Tokenizer) -> Iterator[Iterable[np.ndarray]]:
    """Yield the ids of each document, in parts.  Raises UserError with the name of the document."""
    if sum(len(text) for _, text in batch) < 2 * AT_ONCE:                   # else the last is long
        with contextlib.suppress(UserError):                                # _parts() names the document
            yield from [[ids] for ids in tokenizer.encode_batch([text for _, text in batch])]
            return
    yield from (_parts(document, tokenizer) for document in batch)


def _parts(document: Document, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of a document, in parts."""
    name, text = document
    try:
        yield from tokenizer.encode_in_parts(text)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
