"""Read and write word vectors in text files: one line for each word, the word and its numbers, separated by spaces.

    .txt    GloVe: only these lines
    .vec    fastText and word2vec: a first line with the number of words and the width of the vectors
    .bin    word2vec, read only: such a first line; then each word, a space and its numbers in little-endian float32

read() looks at the content to tell which of these a file is and whether it is compressed, not at its name.  A word may
contain spaces, as a few of GloVe's do, if its last part is not a number.

    words, rows = vectors.read("glove.6B.100d.txt", vocabulary)
    filled = vectors.into(p["model"]["embed_tokens"]["weight"], vocabulary, words, rows)

To freeze these rows, set their gradient to zero before each step of the optimizer and turn weight decay off:

    grads["model"]["embed_tokens"]["weight"][filled] = 0

Sources: nlp.stanford.edu/projects/glove; fasttext.cc/docs/en/english-vectors.html.
"""
import codecs
import contextlib
import gzip
import itertools
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyllama.errors import UserError
from pyllama.files import opened, replacing

LONGEST = 2**24                                     # bytes of a line
WIDEST = 2**20                                      # numbers in a vector
FASTTEXT = (793712314).to_bytes(4, "little")        # the first bytes of fastText's .bin


def read(path: str | Path, vocabulary: Collection[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Read (words, rows float32 [N D]) in the order of the file.

    vocabulary  read only these words; None: all.  Reading stops at the last of them.

    If a word occurs twice, the first counts.  In lines of other words the numbers are counted, but not parsed.

    Raises UserError with the line number if a line has more or fewer numbers than the first, a number that is not
    finite, no word, or a word that is not UTF-8.  Raises it also if the file cannot be read, is empty, or has another
    number of words than its first line says.  A byte order mark is skipped.

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
    seen: set[bytes] = set()
    words, numbers, count, complete = [], array("f"), 0, True
    with _source(path) as (promised, width, entries):
        for place, word, fields in entries:
            count += 1
            if word in seen or (wanted is not None and word not in wanted):
                continue
            row = _row(place, fields)
            try:
                words.append(word.decode())
            except UnicodeDecodeError as error:
                raise UserError(f"{place} is not UTF-8: {error.reason}; save the file as UTF-8") from None
            if not word:
                raise UserError(f"{place} has no word before its numbers; remove it")
            seen.add(word)
            numbers.frombytes(row.tobytes())
            if wanted is not None and len(seen) == len(wanted):
                complete = False
                break
    if complete and promised not in (None, count):
        raise UserError(f"{path} announces {promised} words in its first line but has {count}; it is truncated or "
                        f"damaged; fetch it again")
    return words, np.array(numbers, np.float32, copy=None).reshape(len(words), width)


def _row(place: str, fields: list[bytes] | np.ndarray) -> np.ndarray:
    """The numbers of a vector, float32 [D].  Raises UserError if one is not finite."""
    with np.errstate(over="ignore"):
        row = fields if isinstance(fields, np.ndarray) else np.array([_number(field) for field in fields], np.float32)
    if not np.isfinite(row).all():
        wrong = fields[int(np.argmin(np.isfinite(row)))]
        shown = wrong.decode(errors="replace") if isinstance(wrong, bytes) else str(wrong)
        raise UserError(f"{place} has {shown!r}, which is not a finite float32 number; fix or remove it")
    return row


def _number(field: bytes) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None                                         # becomes NaN


@contextlib.contextmanager
def _source(path: str | Path) -> Iterator[tuple[int | None, int, Iterator[tuple]]]:
    """(number of words that the file announces, width, an iterator of (place, word, its numbers)) of a file."""
    try:
        with opened(path) as (file, _):
            first = _line(path, 1, file).removeprefix(codecs.BOM_UTF8)
            if not first:
                raise UserError(f"{path} is empty; give a file of word vectors")
            if first.startswith(FASTTEXT):
                raise UserError(f"{path} is a model of fastText with its subwords; give the .vec file beside it")
            fields = first.rstrip().split(b" ")
            if len(fields) == 2 and all(field.isdigit() for field in fields):
                promised, width = map(int, fields)
                if not promised or not 0 < width <= WIDEST:
                    raise UserError(f"{path} announces {promised} words of {width} numbers; give a file of word "
                                    f"vectors")
                binary = _is_binary(file.peek(), width)
                yield promised, width, (_binary(path, file, promised, width) if binary else
                                        _text(path, file, width, 2, ()))
            else:
                yield None, len(fields) - 1, _text(path, file, len(fields) - 1, 1, (first,))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file of word vectors") from None


def _line(path, number: int, file) -> bytes:
    """The next line.  Raises UserError if it is longer than LONGEST."""
    line = file.readline(LONGEST)
    if len(line) == LONGEST:
        raise UserError(f"{path} line {number} is longer than {LONGEST:,} bytes; give a file of word vectors, one a "
                        f"line")
    return line


def _text(path, file, width: int, number: int, lines: Sequence[bytes]) -> Iterator[tuple[str, bytes, list[bytes]]]:
    """The entries of a text: `lines` are its next ones, which have been read, the first of them line `number`."""
    rest = itertools.takewhile(bool, (_line(path, n, file) for n in itertools.count(number + len(lines))))
    for number, line in enumerate(itertools.chain(lines, rest), number):            # noqa: B020
        fields = line.rstrip().split(b" ")
        if width < 1 or len(fields) <= width or (len(fields) > width + 1 and _number(fields[-width - 1]) is not None):
            raise UserError(f"{path} line {number} has {len(fields) - 1} numbers where {width or 'some'} should follow "
                            f"a word; fix or remove it")
        yield f"{path} line {number}", b" ".join(fields[:-width]), fields[-width:]


def _is_binary(head: bytes, width: int) -> bool:
    """Are these the first bytes after the first line of word2vec's binary file, and not a text?"""
    line, end, _ = head.partition(b"\n")
    fields = line.rstrip().split(b" ")[1:]
    whole = fields if end else fields[:-1]                                          # the last may be cut
    if whole and all(_number(field) is not None for field in whole) and (not end or len(whole) == width):
        return False
    numbers = head.partition(b" ")[2][:4 * width]
    try:
        codecs.getincrementaldecoder("utf-8")().decode(numbers)
    except UnicodeDecodeError:
        return True
    return re.search(rb"[\x00-\x08\x0e-\x1f]", numbers) is not None


def _binary(path, file, promised: int, width: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """The entries of word2vec's binary file: a word, a space, its numbers, perhaps a line end."""
    content, at, size = b"", 0, 4 * width
    for number in range(1, promised + 1):
        while (space := content.find(b" ", at)) < 0 or len(content) < space + 1 + size:
            more = file.read(2 ** 20) if len(content) - at <= LONGEST else b""
            if not more:
                raise UserError(f"{path} ends in word {number} of the {promised} that it announces; fetch it again")
            content, at = content[at:] + more, 0
        word = content[at:space].lstrip(b"\n")
        yield f"{path} word {number}", word, np.frombuffer(content, "<f4", width, space + 1).astype(np.float32)
        at = space + 1 + size
    if (content[at:] + file.read(2)).strip():
        raise UserError(f"{path} has more than the {promised} words that it announces; fetch it again")


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
            # Else a first line "7 3" would be read as a count, not as the word 7, and U+FEFF as a byte order mark.
            if ".txt" not in path.suffixes[-2:] or rows.shape[1] == 1 or (words and words[0][0] == "\ufeff"):
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
