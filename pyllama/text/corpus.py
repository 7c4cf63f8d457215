"""Text to learn from, document by document: files, folders, globs, JSON lines, standard input, Python's own manual."""
import functools
import glob
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pyllama.errors import UserError

# A line of a text file, with its end.  The words come first and "alone on the line" is looked up behind them, because
# a pattern that starts with a literal is found forty times faster.
SEPARATOR = re.compile(r"<\|endoftext\|>(?<=^<\|endoftext\|>)[^\S\n]*(?:\n|\Z)", re.MULTILINE)
CHUNK = 2**24                                       # bytes of a file in memory, besides the document it is part of
SUFFIXES = (".jsonl", ".md", ".rst", ".text", ".txt")               # what is taken from a folder

Document = tuple[str, str]                          # (name, text)
Sources = str | Path | Sequence[str | Path]


def documents(sources: Sources, field: str = "text") -> Iterator[Document]:
    """Yield (name, text) for each document of a source or of several, in an order that is the same everywhere.

    A source is
    - a text file in UTF-8: one document, or several between lines that hold <|endoftext|> alone;
    - a .jsonl file: one document a line, its text the string in `field`;
    - a folder: its text and .jsonl files (see SUFFIXES), however deep, but none that is hidden;
    - a pattern such as "src/**/*.py": the files it matches, of any suffix;
    - "-": standard input, read as a text file;
    - "python-docs": the language reference that comes with Python, 465 kB of English (pydoc_data.topics).

    Documents of white space alone are left out; line ends are kept as they are.  Raises UserError on what is missing,
    empty, not UTF-8 or not as described, naming the file and the place in it.
    """
    for source in [sources] if isinstance(sources, str | Path) else sources:
        if str(source) == "python-docs":
            from pydoc_data.topics import topics
            yield from ((f"python-docs/{topic}", topics[topic]) for topic in sorted(topics))
        elif str(source) == "-":
            yield from _nonempty("standard input", _texts("standard input", io.BytesIO(_standard_input())))
        else:
            for path in _files(source):
                try:
                    with path.open("rb") as file:
                        texts = _json_texts(path, file, field) if path.suffix == ".jsonl" else _texts(path, file)
                        yield from _nonempty(path, texts)
                except OSError as error:
                    raise UserError(f"cannot read {path}: {error.strerror}; mend that or leave the file out") from None


@functools.cache
def _standard_input() -> bytes:
    """Kept, because a corpus is read twice (to see whether it changed, then to encode it) and a pipe runs once."""
    return sys.stdin.buffer.read()


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file()
                       and not any(part.startswith(".") for part in file.relative_to(path).parts))
        if not found:
            raise UserError(f"the folder {path} holds no {', '.join(SUFFIXES)} file; a pattern such as "
                            f"'{path}/**/*.py' takes files of other names")
        return found
    if path.exists():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if not Path(name).is_dir())
    if not found:
        raise UserError(f"there is no file, folder or match of a pattern {str(source)!r} in {Path.cwd()}; "
                        f"check the spelling")
    return found


def _chunks(name: object, file: BinaryIO) -> Iterator[str]:
    """The text in whole lines, many at a time: a corpus may be larger than memory."""
    offset = lines = 0
    while raw := file.read(CHUNK) + file.readline():
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = lines + raw.count(b"\n", 0, error.start) + 1
            raise UserError(f"{name} is not UTF-8 at byte {offset + error.start} (line {line}): {error.reason}; "
                            f"save it as UTF-8, or leave it out if it is no text") from None
        yield text if offset else text.removeprefix("\ufeff")           # a byte order mark is no part of the text
        offset += len(raw)
        lines += raw.count(b"\n")


def _texts(name: object, file: BinaryIO) -> Iterator[Document]:
    """The documents of a text file."""
    number, parts = 1, []
    for chunk in _chunks(name, file):
        first, *others = SEPARATOR.split(chunk)
        parts.append(first)
        for other in others:
            yield f"{name}, document {number}", "".join(parts)
            number, parts = number + 1, [other]
    yield str(name) if number == 1 else f"{name}, document {number}", "".join(parts)


def _json_texts(name: object, file: BinaryIO, field: str) -> Iterator[Document]:
    """The documents of a .jsonl file."""
    lines = (line for chunk in _chunks(name, file) for line in chunk.removesuffix("\n").split("\n"))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({error}); mend it, or rename a plain text to .txt") from None
        if not isinstance(record, dict):
            raise UserError(f"{place} is not a JSON object; each line must look like {{{json.dumps(field)}: ...}}")
        if not isinstance(text := record.get(field), str):
            raise UserError(f"{place} has no text in a field {field!r}; its fields are "
                            f"{', '.join(record) or 'none'}; name the one to read")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{place} escapes half of a surrogate pair (\\ud800 to \\udfff), which is no character; "
                            f"mend or remove it") from None
        yield place, text


def _nonempty(name: object, texts: Iterator[Document]) -> Iterator[Document]:
    found = False
    for document in texts:
        if document[1].strip():
            found = True
            yield document
    if not found:
        raise UserError(f"{name} is empty; give it some text or leave it out")
