"""Word vectors as text: a line for each word, the word and its numbers with spaces between.

    .txt    of GloVe: nothing else
    .vec    of fastText and word2vec: before them a line with the number of words and that of numbers a word

Which of the two it is shows in the first line, not in the name; what ends in .gz is compressed.  A word may hold
spaces, as a few of GloVe's do, if its last part is no number.

    words, rows = vectors.read("glove.6B.100d.txt", vocabulary)
    found = vectors.into(p["model"]["embed_tokens"]["weight"], vocabulary, words, rows)

To keep the found rows as they are, set their gradient to zero before each step of the optimiser, and let none decay:

    grads["model"]["embed_tokens"]["weight"][found] = 0

Sources: nlp.stanford.edu/projects/glove; fasttext.cc/docs/en/english-vectors.html.
"""
import contextlib
import gzip
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyllama.errors import UserError
from pyllama.files import replacing


def read(path: str | Path, vocabulary: Collection[str] | None = None) -> tuple[list[str], np.ndarray]:
    """(words, float32[N D]) in the file's order, or of it only the words that the vocabulary holds.

    Of a word that comes twice the first counts.  The file is read line by line, and no further than to the last word
    wanted; in lines that are not wanted the numbers are counted, not parsed.  Raises UserError, naming the line, where
    there are fewer or more numbers than in the first, one that is not finite, no word, or a word that is not UTF-8;
    and if the file cannot be read, is empty, or has another number of lines than it promises.
    """
    wanted = None if vocabulary is None else {word.encode() for word in vocabulary}
    promised, width = None, 0
    seen: set[bytes] = set()
    words, numbers, number, count = [], array("f"), 0, 0
    for number, line in enumerate(_lines(path), 1):
        place = f"{path} line {number}"
        fields = line.rstrip().split(b" ")
        if number == 1:
            if len(fields) == 2 and all(field.isdigit() for field in fields):
                promised, width = map(int, fields)
                continue
            width = len(fields) - 1
        count += 1
        if width < 1 or len(fields) <= width or (len(fields) > width + 1 and _number(fields[-width - 1]) is not None):
            raise UserError(f"{place} has {len(fields) - 1} numbers where {width or 'some'} should follow a word; "
                            f"mend or remove it")
        word = b" ".join(fields[:-width])
        if word in seen or (wanted is not None and word not in wanted):
            continue
        with np.errstate(over="ignore"):
            row = np.array([_number(field) for field in fields[-width:]], np.float32)           # None becomes NaN
        if not np.isfinite(row).all():
            wrong = fields[-width:][int(np.argmin(np.isfinite(row)))].decode(errors="replace")
            raise UserError(f"{place} holds {wrong!r}, which is no finite number of float32; mend or remove it")
        try:
            words.append(word.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{place} is not UTF-8: {error.reason}; save the file as UTF-8") from None
        if not word:
            raise UserError(f"{place} has no word before its numbers; remove it")
        seen.add(word)
        numbers.frombytes(row.tobytes())
        if wanted is not None and len(seen) == len(wanted):
            promised = None
            break
    if not count and not promised:
        raise UserError(f"{path} is empty; give a file of word vectors")
    if promised not in (None, count):
        raise UserError(f"{path} promises {promised} words in its first line but holds {count} in {number} lines; "
                        f"it is cut short or damaged, fetch it again")
    return words, np.array(numbers, np.float32, copy=None).reshape(len(words), width)


def _number(field: bytes) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


def _lines(path: str | Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is no whole .gz file: {error}; fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file of word vectors") from None


def write(path: str | Path, words: Sequence[str], rows: np.ndarray) -> None:
    """Write rows[N D], whole or not at all, with nine digits: read() gives the same float32 back.

    Words and numbers are counted in a first line unless the name says .txt.  Raises UserError on a word that is empty,
    comes twice, or holds what separates words, and on a number that is not finite.
    """
    if rows.ndim != 2 or len(words) != len(rows):
        raise ValueError(f"there are {len(words)} words, but the vectors' shape is {rows.shape}")
    if len(set(words)) < len(words):
        raise UserError("a word comes twice, of which a reader would keep the first alone; remove one")
    if bad := [word for word in words if not word or any(c in word for c in " \r\n")]:
        raise UserError(f"{bad[0]!r} cannot be written as a word: it is empty or holds a space or a line's end; "
                        f"leave it out")
    if not np.isfinite(rows).all():
        wrong = words[int(np.argmin(np.isfinite(rows).all(axis=1)))]
        raise UserError(f"the vector of {wrong!r} is not finite; leave it out or train anew")
    path = Path(path)
    try:
        with replacing(path) as file, _packing(path, file) as out:
            # A first line of a word "7" and the number 3 would be read as a count.
            if ".txt" not in path.suffixes[-2:] or rows.shape[1] == 1:
                out.write(f"{len(words)} {rows.shape[1]}\n".encode())
            out.writelines(_formatted(words, rows))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make room or choose another folder") from None


def _packing(path: Path, file: BinaryIO) -> contextlib.AbstractContextManager:
    """The file itself, or what compresses into it, by the name it will have."""
    if path.suffix == ".gz":
        return gzip.GzipFile(path.stem, "wb", fileobj=file)
    return contextlib.nullcontext(file)


def _formatted(words: Iterable[str], rows: np.ndarray) -> Iterator[bytes]:
    for word, row in zip(words, rows, strict=True):
        yield " ".join([word, *(f"{x:.9g}" for x in row.tolist())]).encode() + b"\n"


def into(table: np.ndarray, vocabulary: Mapping[str, int], words: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Copy the vectors of the words that the vocabulary (word -> row of the table) knows into table[V D], in place.

    rows     [N D], cast to the table's precision
    returns  which rows of the table were found, bool[V]

    A tokenizer's vocabulary is tokenizer.rust.get_vocab().  Raises UserError if the widths differ.
    """
    if rows.shape[1] != table.shape[1]:
        raise UserError(f"the vectors have {rows.shape[1]} numbers, the table's rows {table.shape[1]}; "
                        f"choose vectors of that width or set hidden_size to theirs")
    known = [(vocabulary[word], i) for i, word in enumerate(words) if word in vocabulary]
    to, source = np.array(known, np.int64).reshape(-1, 2).T
    table[to] = rows[source]
    found = np.zeros(len(table), bool)
    found[to] = True
    return found
