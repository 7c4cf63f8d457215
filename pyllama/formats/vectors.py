"""Read and write word vectors in text files: one line for each word, the word and its numbers, separated by spaces.

    .txt    GloVe: only these lines
    .vec    fastText and word2vec: a first line with the number of words and the width of the vectors

read() looks at the first line to tell which of the two a file is, not at its name.  A file whose name ends in .gz is
compressed.  A word may contain spaces, as a few of GloVe's do, if its last part is not a number.

    words, rows = vectors.read("glove.6B.100d.txt", vocabulary)
    filled = vectors.into(p["model"]["embed_tokens"]["weight"], vocabulary, words, rows)

To freeze these rows, set their gradient to zero before each step of the optimizer and turn weight decay off:

    grads["model"]["embed_tokens"]["weight"][filled] = 0

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
    """Read (words, rows float32 [N D]) in the order of the file.

    vocabulary  read only these words; None: all.  Reading stops at the last of them.

    If a word occurs twice, the first counts.  In lines of other words the numbers are counted, but not parsed.

    Raises UserError with the line number if a line has more or fewer numbers than the first, a number that is not
    finite, no word, or a word that is not UTF-8.  Raises it also if the file cannot be read, is empty, or has another
    number of lines than its first line says.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from pyllama.formats import vectors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two.txt"
    ...     _ = path.write_text("cat 1 2\\ndog 3 4\\n")
    ...     words, rows = vectors.read(path, {"dog"})
    >>> words, rows.tolist()
    (['dog'], [[3.0, 4.0]])
    """
    wanted = None if vocabulary is None else {word.encode() for word in vocabulary}
    promised, width = None, 0
    seen: set[bytes] = set()
    words, numbers, number, count = [], array("f"), 0, 0
    for number, line in enumerate(_lines(path), 1):
        location = f"{path} line {number}"
        fields = line.rstrip().split(b" ")
        if number == 1:
            if len(fields) == 2 and all(field.isdigit() for field in fields):
                promised, width = map(int, fields)
                continue
            width = len(fields) - 1
        count += 1
        if width < 1 or len(fields) <= width or (len(fields) > width + 1 and _number(fields[-width - 1]) is not None):
            raise UserError(f"{location} has {len(fields) - 1} numbers where {width or 'some'} should follow a word; "
                            f"fix or remove it")
        word = b" ".join(fields[:-width])
        if word in seen or (wanted is not None and word not in wanted):
            continue
        with np.errstate(over="ignore"):
            row = np.array([_number(field) for field in fields[-width:]], np.float32)           # None becomes NaN
        if not np.isfinite(row).all():
            wrong = fields[-width:][int(np.argmin(np.isfinite(row)))].decode(errors="replace")
            raise UserError(f"{location} has {wrong!r}, which is not a finite float32 number; fix or remove it")
        try:
            words.append(word.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{location} is not UTF-8: {error.reason}; save the file as UTF-8") from None
        if not word:
            raise UserError(f"{location} has no word before its numbers; remove it")
        seen.add(word)
        numbers.frombytes(row.tobytes())
        if wanted is not None and len(seen) == len(wanted):
            promised = None
            break
    if not count and not promised:
        raise UserError(f"{path} is empty; give a file of word vectors")
    if promised not in (None, count):
        raise UserError(f"{path} announces {promised} words in its first line but has {count} in {number} lines; "
                        f"it is truncated or damaged; fetch it again")
    return words, np.array(numbers, np.float32, copy=None).reshape(len(words), width)


def _number(field: bytes) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


def _lines(path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed.  Raises UserError if it cannot be read."""
    try:
        with gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a complete .gz file: {error}; fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file of word vectors") from None


def write(path: str | Path, words: Sequence[str], rows: np.ndarray) -> None:
    """Write rows [N D] with nine digits, so that read() returns the same float32 numbers.

    The first line has the number of words and the width, unless the name ends in .txt or .txt.gz.  The file appears
    under its name only when it is complete.  Raises UserError if a word is empty, occurs twice, or contains a space or
    a line end, if a number is not finite, or if the file cannot be written; ValueError if the shapes do not fit.
    """
    if rows.ndim != 2 or len(words) != len(rows):
        raise ValueError(f"there are {len(words)} words, but the vectors have shape {rows.shape}")
    if len(set(words)) < len(words):
        raise UserError("a word occurs twice, and a reader would keep only the first; remove one")
    if bad := [word for word in words if not word or any(c in word for c in " \r\n")]:
        raise UserError(f"{bad[0]!r} cannot be written as a word: it is empty or contains a space or a line end; "
                        f"leave it out")
    if not np.isfinite(rows).all():
        wrong = words[int(np.argmin(np.isfinite(rows).all(axis=1)))]
        raise UserError(f"the vector of {wrong!r} is not finite; leave it out or train again")
    path = Path(path)
    try:
        with replacing(path) as file, _packing(path, file) as out:
            # With width 1, a first line "7 3" would be read as a count, not as the word 7.
            if ".txt" not in path.suffixes[-2:] or rows.shape[1] == 1:
                out.write(f"{len(words)} {rows.shape[1]}\n".encode())
            out.writelines(_formatted(words, rows))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from None


def _packing(path: Path, file: BinaryIO) -> contextlib.AbstractContextManager:
    """The file itself, or a compressor that writes to it, if its final name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.GzipFile(path.stem, "wb", fileobj=file)
    return contextlib.nullcontext(file)


def _formatted(words: Iterable[str], rows: np.ndarray) -> Iterator[bytes]:
    """Yield one line for each word."""
    for word, row in zip(words, rows, strict=True):
        yield " ".join([word, *(f"{x:.9g}" for x in row.tolist())]).encode() + b"\n"


def into(table: np.ndarray, vocabulary: Mapping[str, int], words: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Copy word vectors into the rows of an embedding table, in place.

    table       [V D]
    vocabulary  word -> row of the table; for a tokenizer, tokenizer.rust.get_vocab()
    words       N words; those that the vocabulary lacks are skipped
    rows        [N D], their vectors; cast to the table's precision
    returns     bool [V]: which rows of the table have a vector now

    Raises UserError if the widths differ.

    >>> import numpy as np
    >>> from pyllama.formats import vectors
    >>> table = np.zeros((3, 2))
    >>> vectors.into(table, {"a": 0, "cat": 2}, ["cat", "dog"], np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([False, False,  True])
    >>> table[2]
    array([1., 2.])
    """
    if rows.shape[1] != table.shape[1]:
        raise UserError(f"the vectors have width {rows.shape[1]}, but the table has width {table.shape[1]}; "
                        f"choose vectors of that width or set hidden_size to theirs")
    pairs = [(vocabulary[word], i) for i, word in enumerate(words) if word in vocabulary]
    to, source = np.array(pairs, np.int64).reshape(-1, 2).T
    table[to] = rows[source]
    filled = np.zeros(len(table), bool)
    filled[to] = True
    return filled
