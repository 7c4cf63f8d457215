"""Documents in the records of .jsonl, .json, .csv and .tsv files: the text is one field of each.

With the field "", every text of a record is a document.
"""
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pyllama.errors import UserError, counted
from pyllama.files import parse_json

Document = tuple[str, str]                          # (name, text)
Reader = Callable[[Path, Iterable[str], str], Iterator[Document]]      # (path, chunks of whole lines, field)
BY_COLUMNS = ("has a table column by column; write one object a row: with pandas, to_json(FILE, orient='records', "
              "lines=True), as a .jsonl")
AS_TEXT = "rename the file to .txt if it is plain text"


def value_of(values: dict, name: str) -> Any:
    """The value of a field, or of one inside an object, such as data.text; None if there is none."""
    if name in values:
        return values[name]
    first, dot, rest = name.partition(".")
    inner = values.get(first)
    return value_of(inner, rest) if dot and isinstance(inner, dict) else None


def by_columns(content: Any) -> bool:
    """Is this a table in JSON whose columns are objects or lists, as pandas writes it?"""
    columns = list(content.values()) if isinstance(content, dict) else []
    if columns and all(isinstance(column, dict) and column for column in columns):
        return all(column.keys() == columns[0].keys() and all(map(str.isdecimal, column)) for column in columns)
    return {"columns", "index", "data"} == (content.keys() if columns else set())


def json_lines(path: Path, chunks: Iterable[str], field: str) -> Iterator[Document]:
    """The documents of a .jsonl file, one object a line."""
    for number, line in enumerate(_lines(chunks), 1):
        if line.strip():
            yield from _document(f"{path} line {number}", _parsed(f"{path} line {number}", line), field)


def json_file(path: Path, chunks: Iterable[str], field: str) -> Iterator[Document]:
    """The documents of a .json file: a list of objects, which may be the value of "data", or one object a line."""
    lines = iter(_lines(chunks))
    first = next((line for line in lines if line.strip()), "")
    try:
        by_line = isinstance(parse_json(first), dict)
    except ValueError:
        by_line = False
    if by_line:
        following = next((line for line in lines if line.strip()), None)
        if following is not None:
            yield from json_lines(path, ("\n".join([first, following, *lines]),), field)
            return
    content = _parsed(str(path), "\n".join([first, *lines]))
    if by_columns(content):
        raise UserError(f"{path} {BY_COLUMNS}")
    items = content.get("data", content) if isinstance(content, dict) else content
    for number, item in enumerate(items if isinstance(items, list) else [items], 1):
        yield from _document(f"{path} item {number}", item, field)


def table(path: Path, chunks: Iterable[str], field: str, **dialect: Any) -> Iterator[Document]:
    """The documents of a .csv or .tsv file, whose first line names the columns.  dialect: see csv.reader()."""
    csv.field_size_limit(2 ** 31 - 1)
    reader = csv.reader((f"{line}\n" for line in _lines(chunks)), **dialect)
    try:
        names = [name.strip() for name in next(reader, [])]
        if field and field not in names:
            raise UserError(f"{path} has no column {field!r}; its first line names {', '.join(names) or 'none'}; name "
                            f"the column that has the text with field, or {AS_TEXT}")
        place = f"{path} line {reader.line_num + 1}"
        for cells in reader:
            if field and cells and len(cells) != len(names):        # of an unquoted comma, the text would be cut there
                raise UserError(f"{place} has {counted(len(cells), 'column')} instead of {len(names)}; fix "
                                f"it, or {AS_TEXT}")
            chosen = cells if not field else cells[names.index(field):][:1]
            yield from ((place, cell) for cell in chosen)
            place = f"{path} line {reader.line_num + 1}"
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}; fix the quotes, or {AS_TEXT}") from None


READERS: dict[str, Reader] = {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_file,
                              ".csv": partial(table, strict=True),
                              ".tsv": partial(table, delimiter="\t", quoting=csv.QUOTE_NONE)}


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    return (line for chunk in chunks for line in chunk.removesuffix("\n").split("\n"))


def _parsed(location: str, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{location} is not JSON ({error}); fix it, or {AS_TEXT}") from None


def _document(location: str, record: Any, field: str) -> Iterator[Document]:
    """The document of a record; none if its text is null."""
    if not isinstance(record, dict):
        raise UserError(f"{location} is not a JSON object; each must look like {{{json.dumps(field)}: ...}}")
    if not field:
        for name in record:
            if isinstance(record[name], str):
                yield from _document(location, record, name)
        return
    text = value_of(record, field)
    if text is None and field in record:
        return
    if not isinstance(text, str):
        raise UserError(f"{location} has no text in a field {field!r}; its fields are {', '.join(record) or 'none'}; "
                        f"name the field that has the text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{location} escapes half of a surrogate pair (\\ud800 to \\udfff), which is not a character; "
                        f"fix or remove it") from None
    yield location, text
