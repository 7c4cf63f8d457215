"""Read text document by document: files, folders, glob patterns, JSON lines, standard input, Python's own manual."""
import functools
import glob
import io
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pyllama.errors import UserError
from pyllama.files import opened
from pyllama.text import records
from pyllama.text.records import Document

# A line of a text file, with its end.  The lookbehind checks that the separator starts the line: a pattern that starts
# with a literal is forty times as fast.
SEPARATOR = re.compile(r"<\|endoftext\|>(?<=^<\|endoftext\|>)[^\S\n]*(?:\n|\Z)", re.MULTILINE)
CHUNK = 2**24                                       # bytes of a file read at once
SUFFIXES = (".jsonl", ".md", ".ndjson", ".rst", ".text", ".txt")               # of the files read from a folder

# The files with texts that pyllama writes in a run's folder, the first group, which one of the marks tells from others.
OF_A_RUN = re.compile(r"(.*/)(?:log\.jsonl|metrics\.json|data/(?:(?:train|dev|test)\.jsonl|tokens\.bin\.json)"
                      r"|checkpoints/\.?step-\d[^/]*/[^/]+)")
MARKS = ("checkpoints", "lock", "data/tokens.bin.json")

Sources = str | Path | Sequence[str | Path]


def documents(sources: Sources, field: str = "text") -> Iterator[Document]:
    """Yield (name, text) for each document of one or more sources, in the same order on every machine.

    A source is
    - a text file in UTF-8: one document, or several separated by lines with <|endoftext|> alone;
    - a .jsonl, .json, .csv or .tsv file: one document a record, whose `field` is the text: see records.py;
    - a folder: its text, .jsonl and .ndjson files (see SUFFIXES), recursively, without hidden ones and those of a run;
    - a .gz or .zip of one of these files, or a pipe such as <(zcat file.gz);
    - a pattern such as "src/**/*.py": the files that match it, with any suffix, without those of a run;
    - "-": standard input, read as a text file;
    - "python-docs": the language reference that comes with Python, 465 kB of English (pydoc_data.topics).

    Documents that are only white space are skipped.  Line ends are not changed.  Raises UserError with the file and
    line if a source is missing, empty, not UTF-8 or not as described.
    """
    for source in [sources] if isinstance(sources, str | Path) else sources:
        if not str(source):
            raise UserError("the name of a source is empty; give a file, a folder or a pattern")
        if str(source) == "python-docs":
            from pydoc_data.topics import topics
            yield from ((f"python-docs/{topic}", topics[topic]) for topic in sorted(topics))
        elif str(source) == "-":
            yield from _nonempty("standard input", _texts("standard input", io.BytesIO(_standard_input())))
        else:
            for path in _files(source):
                try:
                    with opened(path) as (file, name):
                        yield from _nonempty(path, _texts_of(path, name, file, field))
                except OSError as error:
                    raise UserError(f"cannot read {path}: {error.strerror}; fix that or leave the file out") from None


@functools.cache
def _standard_input() -> bytes:
    """Cached, because a corpus is read twice (to see whether it changed, then to encode it) but a pipe only once."""
    return sys.stdin.buffer.read()


def _files(source: str | Path) -> list[Path]:
    """The files of a path, a folder or a pattern.  Raises UserError if there are none."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
                       and not any(part.startswith(".") for part in file.relative_to(path).parts)
                       and not _is_of_a_run(file))
        if not files:
            raise UserError(f"the folder {path} has no {', '.join(SUFFIXES)} file; for files with other suffixes give "
                            f"a pattern such as '{path}/**/*.py'")
        return files
    if path.exists():
        return [path]
    files = sorted(Path(name) for name in glob.glob(str(source), recursive=True)
                   if not Path(name).is_dir() and not _is_of_a_run(Path(name)))
    if not files:
        raise UserError(f"there is no file or folder {str(source)!r} in {Path.cwd()}, and no file matches it "
                        f"as a pattern; check the spelling")
    return files


def _is_of_a_run(file: Path) -> bool:
    """Is this a file that a run keeps: its log, its rows, a file of its checkpoints?"""
    match = OF_A_RUN.fullmatch(file.absolute().as_posix())
    return match is not None and any((Path(match[1]) / mark).exists() for mark in MARKS)


def _texts_of(path: Path, name: str, file: BinaryIO, field: str) -> Iterator[Document]:
    """The documents of a file, by the ending of its name without .gz or in the .zip, in upper or lower case."""
    reader = records.READERS.get(Path(name).suffix.lower())
    return reader(path, _chunks(path, file), field) if reader else _texts(path, file)


def _chunks(name: object, file: BinaryIO) -> Iterator[str]:
    """Yield the text in chunks of complete lines, because a corpus may be larger than memory."""
    offset = lines = 0
    while raw := file.read(CHUNK) + file.readline():
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = lines + raw.count(b"\n", 0, error.start) + 1
            raise UserError(f"{name} is not UTF-8 at byte {offset + error.start} (line {line}): {error.reason}; "
                            f"save it as UTF-8, or leave it out if it is not text") from None
        if (zero := text.find("\0")) >= 0:
            line = lines + text.count("\n", 0, zero) + 1
            raise UserError(f"{name} has a zero character (NUL) in line {line}, so it is UTF-16 or not text; save it "
                            f"as UTF-8, or leave it out")
        yield text if offset else text.removeprefix("\ufeff")           # a byte order mark is not part of the text
        offset += len(raw)
        lines += raw.count(b"\n")


def _texts(name: object, file: BinaryIO) -> Iterator[Document]:
    """The documents of a text file.  The line break before a separator belongs to it."""
    number, parts = 1, []
    for chunk in _chunks(name, file):
        first, *others = SEPARATOR.split(chunk)
        parts.append(first)
        for other in others:
            yield f"{name}, document {number}", "".join(parts).removesuffix("\n").removesuffix("\r")
            number, parts = number + 1, [other]
    yield str(name) if number == 1 else f"{name}, document {number}", "".join(parts)


def _nonempty(name: object, texts: Iterator[Document]) -> Iterator[Document]:
    """Skip documents that are only white space.  Raises UserError if none is left."""
    empty = True
    for document in texts:
        if document[1].strip():
            empty = False
            yield document
    if empty:
        raise UserError(f"{name} is empty; add some text or leave it out")
