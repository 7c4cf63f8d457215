"""Rows of a task's data, from .jsonl, .json, .csv or .tsv, each with the place it came from."""
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pyllama import rng
from pyllama.errors import UserError

SHOWN = 5                                           # bad rows that a note names one by one


class Row(NamedTuple):
    """A row, and where it stands, for whoever has to fix it."""
    place: str                                      # "reviews.jsonl line 7"
    values: dict


class BadRow(ValueError):
    """What is wrong with a row, and how to fix it, without its place."""


NOT_OBJECT = "it is not an object"


@dataclass(frozen=True)
class Source:
    """Where the rows come from."""

    data: Path                                      # a .jsonl, .json, .csv or .tsv file
    fields: tuple[str, ...] = ()                    # the fields to read, in the task's order; none: its usual names
    bad_rows: Literal["fatal", "skip"] = "fatal"    # what to do about a row that cannot be used: stop, or leave it out


# (path, its text, the fields wanted, how many of the last ones may be absent) -> the place of each row, and its fields
# or what is wrong with them
Reader = Callable[[Path, str, Sequence[str], int], Iterator[tuple[str, dict | BadRow]]]


def read(source: Source, names: Sequence[str], usable: Callable[[dict], dict],
         readers: dict[str, Reader] | None = None, answer: bool = True) -> tuple[list[Row], tuple[str, ...]]:
    """(rows, notes): the file's rows, each a dict of the task's `names`, and what to say of those left out.

    `usable` gives a row as the task wants it, or raises BadRow; `readers` are the task's own, by suffix.  A .csv names
    its columns in the first line; so may a .tsv, else its columns are the names in their order.  answer=False: the last
    of the names need not be there, nor in `fields`.

    Raises UserError naming file, line and reason of a bad row, unless these are to be skipped: then the notes say how
    many were, and why the first of them.
    """
    wanted = tuple(source.fields or names)
    if not answer and len(wanted) == len(names) - 1:
        wanted += tuple(names[-1:])
    if len(wanted) != len(names):
        raise UserError(f"--fields names {len(wanted)} fields, but this task reads {len(names)}: {', '.join(names)}")
    rows, bad, spare = [], [], 0 if answer else 1
    for place, values in raw(source.data, wanted, spare, readers or {}):
        try:
            if isinstance(values, Exception):
                raise values
            if missing := [name for name in wanted[:len(wanted) - spare] if values.get(name) is None]:
                raise BadRow(f"it has no {missing[0]!r}, only {', '.join(map(str, values)) or 'nothing'}; name the "
                             f"fields to read with --fields")
            rows.append(Row(place, usable({**values, **dict(zip(names, map(values.get, wanted), strict=True))})))
        except BadRow as error:
            if source.bad_rows == "fatal":
                raise UserError(f"{place}: {error}; fix it, or leave such rows out with --bad-rows skip") from None
            bad.append(f"{place}: {error}")
    if not rows:
        raise UserError(f"{source.data} has no row to use; give a file with {', '.join(wanted)}")
    return rows, left_out(bad, len(rows) + len(bad))


def left_out(bad: list[str], total: int) -> tuple[str, ...]:
    """Notes on the bad rows: how many there are, and the first of them."""
    if not bad:
        return ()
    notes = [f"{len(bad)} of {total} rows left out:", *(f"  {line}" for line in bad[:SHOWN])]
    if len(bad) > SHOWN:
        notes.append(f"  and {len(bad) - SHOWN} more")
    return tuple(notes)


def raw(path: Path, wanted: Sequence[str], spare: int,
        readers: dict[str, Reader]) -> Iterator[tuple[str, dict | BadRow]]:
    """(place, fields or what is wrong) of each row that is not empty; the last `spare` fields may be absent."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a .jsonl, .json, .csv or .tsv file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}: {error.reason}; save it as UTF-8") from None
    known: dict[str, Reader] = {".jsonl": json_lines, ".json": json_array, ".csv": columns, ".tsv": columns,
                                ".txt": columns, **readers}
    if path.suffix.lower() not in known:
        raise UserError(f"{path} is not a {', '.join(known)}; convert it to one of these")
    yield from known[path.suffix.lower()](path, text, wanted, spare)


def json_lines(path, text, wanted, spare):
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except ValueError as error:
                values = BadRow(f"it is not JSON ({error})")
            yield f"{path} line {number}", values if isinstance(values, dict | BadRow) else BadRow(NOT_OBJECT)


def json_array(path, text, wanted, spare):
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fix it") from None
    items = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f"{path} is not a list of objects; give one, or one object a line in a .jsonl")
    for number, values in enumerate(items, 1):
        yield f"{path} item {number}", values if isinstance(values, dict) else BadRow(NOT_OBJECT)


def columns(path, text, wanted, spare):
    """Tabs separate a .tsv's columns and nothing is quoted; a .csv is as RFC 4180 has it."""
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
                        f"name the columns to read with --fields")
    names = head or list(wanted)
    for number, cells in lines[1:] if head else lines:
        whole = len(names) - (0 if head else spare) <= len(cells) <= len(names)
        yield f"{path} line {number}", dict(zip(names, cells, strict=False)) if whole else \
            BadRow(f"it has {len(cells)} columns instead of {len(names)}")


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
        raise BadRow(f"{name!r} escapes half of a surrogate pair, which is no character") from None
    return text


def texts_of(values: dict, names: Sequence[str], also: Sequence[str] = ()) -> dict[str, str]:
    """The texts in the fields, and in those of `also` that are not blank.  Raises BadRow."""
    there = [name for name in also if str(values.get(name) or "").strip()]
    return {name: text_of(values, name) for name in (*names, *there)}


def split(rows: list[Row], shares: Sequence[float], seed: int) -> list[list[Row]]:
    """Training rows and, for each share, rows kept apart from them, drawn by the seed.

    Raises UserError unless every part has a row.
    """
    order = rng.generator(seed, "split").permutation(len(rows))
    parts, first = [], 0
    for share in shares:
        if not 0 <= share < 1:
            raise UserError(f"a share of {share} cannot be kept apart; give a number in 0 <= s < 1, such as 0.1")
        many = round(share * len(rows)) if share else 0
        parts.append([rows[i] for i in sorted(order[first:first + many])])
        first += many
    training = [rows[i] for i in sorted(order[first:])]
    if not training or not all(part or not share for part, share in zip(parts, shares, strict=True)):
        raise UserError(f"{len(rows)} rows are too few to keep {' and '.join(map(str, shares))} of them apart; "
                        f"give more")
    return [training, *parts]
