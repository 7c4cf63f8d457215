"""Readers of .jsonl, .json, .csv and .tsv files: (place, fields or the error) of each row."""
import codecs
import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from pyllama.errors import UserError, counted
from pyllama.files import opened
from pyllama.tasks.columns import found, is_a_name, is_number, listed
from pyllama.text.records import BY_COLUMNS, by_columns


class BadRow(ValueError):
    """The error in a row; the message has the cause but not the place."""


NOT_OBJECT = "it is not an object"


class NotObject(BadRow):
    """The error in a row that is another JSON value, which a task's own reader may know."""
    def __init__(self, value):
        super().__init__(NOT_OBJECT)
        self.value = value


STANDARD_INPUT = Path("/dev/stdin")
PACKED = (".gz", ".zip")
DELIMITERS = (",", ";", "\t", "|")                          # of a .csv, in the order in which they are tried

# (path, its text, names of the fields, how many of the last ones may be absent) -> (place, fields or the error) of each
# row
Reader = Callable[[Path, str, Sequence[str], int], Iterator[tuple[str, dict | BadRow]]]


def content_of(path: Path, endings: Collection[str]) -> tuple[Path, str, str]:
    """(name for messages, ending, text) of a file of rows in UTF-8, compressed or not; "-" is standard input.

    A pipe has no ending, so its content decides: see ending_of().  Raises UserError if the file cannot be read, or has
    another format or encoding.
    """
    is_pipe = str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir())
    name = Path("standard input") if str(path) == "-" else path
    if not is_pipe and not path.is_dir() and path.suffix.lower() not in (*endings, *PACKED):
        raise UserError(f"{path} has an unknown format; convert it to {', '.join(endings)}")
    try:
        with opened(STANDARD_INPUT if str(path) == "-" else path) as (file, inside):
            content = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a .jsonl, .json, .csv or .tsv file") from None
    text, ending = decoded(name, content), Path(inside).suffix.lower()
    if ending not in endings and not is_pipe:
        raise UserError(f"{path} holds {inside}, which has an unknown format; convert it to {', '.join(endings)}")
    return name, ending if ending in endings else ending_of(text), text


def ending_of(text: str) -> str:
    """The ending of a file with this content: a JSON list or object, one object a line, or a table with columns.

    >>> from pyllama.tasks.row_files import ending_of
    >>> ending_of('{"text": "a"}'), ending_of('[{"text": "a"}]'), ending_of("text\\tlabel"), ending_of("text,label")
    ('.jsonl', '.json', '.tsv', '.csv')
    """
    first = text.lstrip().partition("\n")[0]
    try:
        values = parsed(first)
    except BadRow:
        values = None
    if isinstance(values, dict) and not isinstance(values.get("data"), list):
        return ".jsonl"
    if first.startswith(("[", "{")):
        return ".json"
    return ".tsv" if "\t" in first else ".csv"


def decoded(path: Path, content: bytes) -> str:
    """The text of UTF-8.  Raises UserError for another encoding."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16, not UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 at byte {error.start} in line {line}: 0x{content[error.start]:02x}; if "
                        f"it is Western European, convert it with `iconv -f WINDOWS-1252 -t UTF-8`") from None
    if "\0" in text:
        raise UserError(f"{path} contains the byte 0, which no text has; if it is UTF-16, convert it with `iconv -f "
                        f"UTF-16LE -t UTF-8`")
    return text


def parsed(text: str):
    """The value of a JSON text.  Raises BadRow."""
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except BadRow:
        raise
    except RecursionError:
        raise BadRow("its lists are nested too deeply") from None
    except ValueError as error:
        raise BadRow(f"it is not JSON ({error})") from None


def without_repeats(pairs: list[tuple[str, object]]) -> dict:
    """The object of these fields.  Raises BadRow if it has one of them twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"it has the field {repeated!r} twice")
    return values


def json_lines(path, text, wanted, spare):
    """A Reader of one JSON object a line."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = parsed(line)
            except BadRow as error:
                values = error
            yield f"{path} line {number}", values if isinstance(values, dict | BadRow) else NotObject(values)


def json_array(path, text, wanted, spare):
    """A Reader of a JSON list of objects, which may be the value of "data"."""
    try:
        content = parsed(text)
    except BadRow as error:
        raise UserError(f"{path} cannot be read: {error}; fix it") from None
    if by_columns(content):
        raise UserError(f"{path} {BY_COLUMNS}")
    items = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f"{path} is not a list of objects; give a list, or one object a line in a .jsonl")
    for number, values in enumerate(items, 1):
        yield f"{path} item {number}", values if isinstance(values, dict) else NotObject(values)


def comma_separated(path, text, wanted, spare):
    """A Reader of a .csv (RFC 4180), whose first line names its columns.  Semicolons, tabs and bars separate too."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = list(io.StringIO(text, newline=""))
    needed = wanted[:len(wanted) - spare]
    for delimiter in DELIMITERS:
        records = quoted(lines, delimiter)
        _, head = next(records, (1, []))
        if not isinstance(head, BadRow) and found(needed, head).keys() >= {*needed}:
            yield from named(path, head, wanted, records)
            return
    _, head = next(quoted(lines, DELIMITERS[0]), (1, []))
    if isinstance(head, BadRow):
        raise UserError(f"{path} line 1: {head}; fix it")
    if head:
        names = f"{','.join(needed)}" if len(head) == len(needed) else "with the names of its columns"
        raise UserError(f"the first line of {path} does not name {', '.join(needed)}, but {listed(head)}; name the "
                        f"columns to read with fields or, if it is a row, write the line {names} above it")


def quoted(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """(number of its first line, cells or the error) of each record; the first record gives the number of cells.

    A quote that is not closed may swallow the rest of the file.  So the line where it opens is an error, and the next
    line begins a record.
    """
    first, width = 0, 0
    while first < len(lines):
        reader = csv.reader((lines[i] for i in range(first, len(lines))), delimiter=delimiter, strict=True)
        begin = first
        try:
            for cells in reader:
                several_lines = first + reader.line_num - begin > 1
                width = width or len(cells)
                if several_lines and len(cells) != width:
                    raise csv.Error("a quote is not closed")
                if cells:
                    yield begin + 1, cells
                begin = first + reader.line_num
            return
        except csv.Error as error:
            yield begin + 1, BadRow(f"its quotes do not match ({error}); a quote inside a cell is written twice")
            first = begin + 1


def tab_separated(path, text, wanted, spare):
    """A Reader of a .tsv, whose columns are separated by tabs, without quotes.

    The first line may name the columns; otherwise they are the wanted ones in order.  Raises UserError if it looks like
    names, but not of all wanted columns.
    """
    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, line.split("\t")) for number, line in enumerate(rows, 1) if line.strip()]
    if not lines:
        return
    first, needed = lines[0][1], wanted[:len(wanted) - spare]
    if found(needed, first).keys() >= {*needed}:
        yield from named(path, first, wanted, lines[1:])
        return
    others = [cells for _, cells in lines[1:]]
    above_numbers = any(not is_number(cell) and len(others) > 1 and all(len(cells) > i and is_number(cells[i])
                                                                        for cells in others)
                        for i, cell in enumerate(first))
    if above_numbers or any(is_a_name(cell, wanted) for cell in first):
        raise UserError(f"the first line of {path} seems to name its columns ({listed(first)}), but not "
                        f"{', '.join(needed)}; name the columns to read with fields or, if it is a row, write the line "
                        f"{' TAB '.join(wanted)} above it")
    for number, cells in lines:
        yield f"{path} line {number}", fields_of(cells, wanted, len(needed))


def named(path: Path, head: list[str], wanted: Sequence[str], records):
    """(place, fields or the error) of each record of a table whose columns have names.

    Raises UserError if two columns have the name of a wanted one.  Of other columns the second x is called x.1.
    """
    names: list[str] = []
    for name in head:
        if name in names and name in found(wanted, dict.fromkeys(head)).values():
            raise UserError(f"{path} has two columns {name!r}; rename one of them")
        copies = head[:len(names)].count(name)
        names.append(f"{name}.{copies}" if copies else name)
    for number, cells in records:
        yield f"{path} line {number}", cells if isinstance(cells, BadRow) else fields_of(cells, names, len(names))


def fields_of(cells, names, least):
    """{name: cell} of a row with at least so many cells, or the error."""
    if least <= len(cells) <= len(names):
        return dict(zip(names, cells, strict=False))
    return BadRow(f"it has {counted(len(cells), 'column')} instead of {len(names)}")


READERS: dict[str, Reader] = {".jsonl": json_lines, ".json": json_array, ".csv": comma_separated, ".tsv": tab_separated,
                              ".txt": tab_separated, ".ndjson": json_lines}
