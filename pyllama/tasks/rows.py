"""Read the rows of a task from .jsonl, .json, .csv or .tsv files.  Each row knows its file and line."""
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pyllama import rng
from pyllama.errors import UserError, check_choices

SHOWN = 5                                           # invalid rows that a note lists


class Row(NamedTuple):
    """A row, and its place in the file for error messages."""
    place: str                                      # "reviews.jsonl line 7"
    values: dict


class BadRow(ValueError):
    """The error in a row; the message has the cause but not the place."""


NOT_OBJECT = "it is not an object"


@dataclass(frozen=True)
class Source:
    """A file of rows, and how to read it."""

    data: Path                                      # a .jsonl, .json, .csv or .tsv file
    fields: tuple[str, ...] = ()                    # fields to read, in the task's order (default: the task's names)
    bad_rows: Literal["fatal", "skip"] = "fatal"    # on an invalid row: stop, or skip the row

    def __post_init__(self):
        check_choices(self)


# (path, its text, names of the fields, how many of the last ones may be absent) -> (place, fields or the error) of each
# row
Reader = Callable[[Path, str, Sequence[str], int], Iterator[tuple[str, dict | BadRow]]]


def read(source: Source, names: Sequence[str], usable: Callable[[dict], dict],
         readers: dict[str, Reader] | None = None, answer: bool = True) -> tuple[list[Row], tuple[str, ...]]:
    """(rows, notes): the file's rows, each a dict with the task's `names`, and notes on the rows that were skipped.

    usable     the row as the task needs it, from its fields; raises BadRow
    readers    the task's own, by suffix
    answer     False: the last of the names may be absent, from the rows and from source.fields

    The first line of a .csv names its columns.  That of a .tsv may; else its columns are the names in order.

    Raises UserError with file, line and reason for an invalid row, unless source.bad_rows is "skip".
    """
    wanted = tuple(source.fields or names)
    if not answer and len(wanted) == len(names) - 1:
        wanted += tuple(names[-1:])
    if len(wanted) != len(names):
        raise UserError(f"fields names {len(wanted)} fields, but this task reads {len(names)}: {', '.join(names)}")
    rows, bad, spare = [], [], 0 if answer else 1
    for place, values in raw(source.data, wanted, spare, readers or {}):
        try:
            if isinstance(values, Exception):
                raise values
            if missing := [name for name in wanted[:len(wanted) - spare] if values.get(name) is None]:
                raise BadRow(f"it has no field {missing[0]!r}, only {', '.join(map(str, values)) or 'none'}; choose "
                             f"others with fields")
            rows.append(Row(place, usable({**values, **dict(zip(names, map(values.get, wanted), strict=True))})))
        except BadRow as error:
            if source.bad_rows == "fatal":
                raise UserError(f"{place}: {error}; fix it, or set bad_rows to skip") from None
            bad.append(f"{place}: {error}")
    if not rows:
        raise UserError(f"{source.data} has no valid row; give a file with {', '.join(wanted)}")
    return rows, left_out(bad, len(rows) + len(bad))


def left_out(bad: list[str], total: int) -> tuple[str, ...]:
    """Notes on the invalid rows: how many there are, and the first of them."""
    if not bad:
        return ()
    notes = [f"{len(bad)} of {total} rows skipped:", *(f"  {line}" for line in bad[:SHOWN])]
    if len(bad) > SHOWN:
        notes.append(f"  and {len(bad) - SHOWN} more")
    return tuple(notes)


def raw(path: Path, wanted: Sequence[str], spare: int,
        readers: dict[str, Reader]) -> Iterator[tuple[str, dict | BadRow]]:
    """(place, fields or the error) of each row that is not empty; the last `spare` fields may be absent."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a .jsonl, .json, .csv or .tsv file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}: {error.reason}; save it as UTF-8") from None
    by_suffix: dict[str, Reader] = {".jsonl": json_lines, ".json": json_array, ".csv": columns, ".tsv": columns,
                                    ".txt": columns, **readers}
    if path.suffix.lower() not in by_suffix:
        raise UserError(f"{path} has an unknown format; convert it to {', '.join(by_suffix)}")
    yield from by_suffix[path.suffix.lower()](path, text, wanted, spare)


def json_lines(path, text, wanted, spare):
    """A Reader of one JSON object a line."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except ValueError as error:
                values = BadRow(f"it is not JSON ({error})")
            yield f"{path} line {number}", values if isinstance(values, dict | BadRow) else BadRow(NOT_OBJECT)


def json_array(path, text, wanted, spare):
    """A Reader of a JSON list of objects, which may be the value of "data"."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fix it") from None
    items = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f"{path} is not a list of objects; give a list, or one object a line in a .jsonl")
    for number, values in enumerate(items, 1):
        yield f"{path} item {number}", values if isinstance(values, dict) else BadRow(NOT_OBJECT)


def columns(path, text, wanted, spare):
    """A Reader of a .csv (RFC 4180), or of a .tsv, whose columns are separated by tabs, without quotes."""
    if path.suffix.lower() == ".csv":
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            lines = [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: {error}; fix the quotes") from None
    else:
        lines = [(n, line.rstrip("\r").split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    head = lines[0][1] if lines and set(wanted[:len(wanted) - spare]) <= {*lines[0][1]} else None
    if path.suffix.lower() == ".csv" and not head and lines:
        raise UserError(f"the first line of {path} does not name {', '.join(wanted)}, but {', '.join(lines[0][1])}; "
                        f"name the columns to read with fields")
    names = head or list(wanted)
    for number, cells in lines[1:] if head else lines:
        complete = len(names) - (0 if head else spare) <= len(cells) <= len(names)
        values = dict(zip(names, cells, strict=False))
        yield (f"{path} line {number}",
               values if complete else BadRow(f"it has {len(cells)} columns instead of {len(names)}"))


def text_of(values: dict, name: str) -> str:
    """The text in a field, which must not be blank.  Raises BadRow."""
    if name not in values:
        raise BadRow(f"it has no field {name!r}")
    text = values[name]
    if not isinstance(text, str) or not text.strip():
        raise BadRow(f"{name!r} is {text!r}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name!r} contains half of a surrogate pair, which is not a character") from None
    return text


def texts_of(values: dict, names: Sequence[str], also: Sequence[str] = ()) -> dict[str, str]:
    """The texts in the fields, and in those of `also` that are not blank.  Raises BadRow."""
    present = [name for name in also if str(values.get(name) or "").strip()]
    return {name: text_of(values, name) for name in (*names, *present)}


def split(rows: list[Row], shares: Sequence[float], seed: int) -> list[list[Row]]:
    """[training rows, then the held-out rows of each share], chosen at random by the seed.

    Raises UserError if a share is not in 0 <= s < 1, or a part has no row.
    """
    order = rng.generator(seed, "split").permutation(len(rows))
    parts, first = [], 0
    for share in shares:
        if not 0 <= share < 1:
            raise UserError(f"a share of {share} cannot be held out; give a number in 0 <= s < 1, such as 0.1")
        count = round(share * len(rows)) if share else 0
        parts.append([rows[i] for i in sorted(order[first:first + count])])
        first += count
    training = [rows[i] for i in sorted(order[first:])]
    if not training or not all(part or not share for part, share in zip(parts, shares, strict=True)):
        raise UserError(f"{len(rows)} rows are too few to hold out shares of {' and '.join(map(str, shares))}; give "
                        f"more rows")
    return [training, *parts]
