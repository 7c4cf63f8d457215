"""Read the rows of a task from .jsonl, .json, .csv or .tsv files.  Each row knows its file and line."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pyllama import rng
from pyllama.errors import UserError, check_choices, counted
from pyllama.tasks.columns import found, listed, plain
from pyllama.tasks.row_files import READERS, BadRow, Reader, content_of
from pyllama.text.records import value_of

SHOWN = 5                                           # invalid rows that a note lists


class Row(NamedTuple):
    """A row, and its place in the file for error messages."""
    place: str                                      # "reviews.jsonl line 7"
    values: dict                                    # the fields that the task needs
    given: Mapping[str, Any] = MappingProxyType({}) # all fields of the file, as they are there
    number: int = 0                                 # of the row in its file, from 1; invalid rows count


@dataclass(frozen=True)
class Source:
    """A file of rows, and how to read it."""

    data: Path                                      # a .jsonl, .json, .csv or .tsv file
    fields: tuple[str, ...] = ()                    # fields to read, in the task's order (default: the task's names)
    bad_rows: Literal["fatal", "skip"] = "fatal"    # on an invalid row: stop, or skip the row

    def __post_init__(self):
        check_choices(self)


def read(source: Source, names: Sequence[str], usable: Callable[[dict], dict],
         readers: dict[str, Reader] | None = None, answer: bool = True, *, optional: Sequence[str] = (),
         unpacked: Callable[[dict], dict] = dict, all_optional: bool = False) -> tuple[list[Row], tuple[str, ...]]:
    """(rows, notes): the file's rows, each a dict with the task's `names`, and notes on how they were read.

    usable     the row as the task needs it, from its fields; raises BadRow
    readers    the task's own, by suffix
    answer     False: the last of the names may be absent, from the rows and from source.fields
    optional   names that a row may also have; source.fields has them all, before the answer, or none
    all_optional    without an answer, source.fields has the optional names, if it has as many
    unpacked   unpacked(values) adds fields that others contain; raises BadRow

    source.fields may name a field inside an object: data.text.  Without source.fields a field may have another spelling
    or a synonym: see columns.py.  The first line of a .csv names its columns.  That of a .tsv may; else its columns are
    the names in order.

    Raises UserError with file, line and reason for an invalid row, unless source.bad_rows is "skip".
    """
    asked = columns_of(source.fields, names, optional, answer, all_optional)
    needed = names if answer else names[:-1]
    by_suffix = READERS | (readers or {})
    path, suffix, text = content_of(source.data, by_suffix)
    of_table = [column for name, column in asked.items() if name in names or len(source.fields) == len(asked)]
    records = by_suffix[suffix](path, text, of_table, 0 if answer else 1)
    rows: list[Row] = []
    bad: list[str] = []
    columns_in: dict[tuple, dict[str, str]] = {}            # {the names of a row's fields: {name of the task: one}}
    stripped = number = 0
    for number, (place, given) in enumerate(records, 1):
        try:
            if isinstance(given, BadRow):
                raise given
            values = unpacked(given)
            if (fields := tuple(values)) not in columns_in:
                here = found(list(asked.values()), fields)
                columns_in[fields] = {name: here.get(column, column) for name, column in asked.items()}
            columns = columns_in[fields]
            by_name = {name: value_of(values, column) for name, column in columns.items()}
            for name in needed:
                if by_name[name] is None:
                    raise BadRow(why_absent(columns[name], values))
            for name in optional:
                if by_name[name] is None:
                    del by_name[name]
            row = Row(place, usable({**values, **by_name}), given, number)
        except BadRow as error:
            if source.bad_rows == "fatal":
                raise UserError(f"{place}: {error}; fix it, or set bad_rows to skip") from None
            bad.append(f"{place}: {error}")
            continue
        rows.append(row)
        written, kept = by_name[names[-1]], row.values.get(names[-1])
        stripped += isinstance(written, str) and written != kept == written.strip()
    if not rows:
        raise UserError(f"{path} has no valid row; give a file with "
                        f"{', '.join(asked[name] for name in needed)}")
    synonyms = {column: asked[name] for columns in columns_in.values() for name, column in columns.items()
                if plain(asked[name]) != plain(column)}
    notes = [f"the field {column!r} is read as {name!r}" for column, name in synonyms.items()]
    if stripped:
        notes.append(f"white space around {names[-1]!r} is removed in {stripped} of {number} rows")
    return rows, (*notes, *left_out(bad, number))


def columns_of(fields: Sequence[str], names: Sequence[str], optional: Sequence[str],
               answer: bool = True, all_optional: bool = False) -> dict[str, str]:
    """{a name of the task: the column that is asked for}, the optional ones before the answer, which is last.

    Raises UserError if `fields` has another number of them.
    """
    every = (*names[:-1], *optional, names[-1])
    without_answer = () if answer else (names[:-1], every[:-1])
    for asked in (every, *(without_answer[::-1] if all_optional else ()), names, *without_answer):
        if len(fields) in (0, len(asked)):
            columns = dict(zip(asked, fields or asked, strict=True))
            return {name: columns.get(name, name) for name in every}
    also = f", or {len(every)}: {', '.join(every)}" if optional else ""
    raise UserError(f"fields names {len(fields)} fields, but this task reads {len(names)}: {', '.join(names)}{also}")


def why_absent(column: str, values: dict) -> str:
    """Why a row has no value in a column: it is null, or absent."""
    if column in values:
        return f"{column!r} is null"
    inside = [f"{name}.{column}" for name, value in values.items() if isinstance(value, dict) and column in value]
    if inside:
        return f"it has no field {column!r}, but {inside[0]!r}; name that with fields"
    return f"it has no field {column!r}, only {listed(values)}; choose others with fields"


def left_out(bad: list[str], total: int) -> tuple[str, ...]:
    """Notes on the invalid rows: how many there are, and the first of them."""
    if not bad:
        return ()
    notes = [f"{len(bad)} of {total} rows skipped:", *(f"  {line}" for line in bad[:SHOWN])]
    if len(bad) > SHOWN:
        notes.append(f"  and {len(bad) - SHOWN} more")
    return tuple(notes)


def text_of(values: dict, name: str) -> str:
    """The text in a field, which must not be blank.  Raises BadRow."""
    if name not in values:
        raise BadRow(f"it has no field {name!r}")
    text = values[name]
    if not isinstance(text, str):
        raise BadRow(f"{name!r} is {text!r}, not a text")
    if not text.strip():
        raise BadRow(f"{name!r} is empty")
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
        held = " and ".join(str(share) for share in shares if share)
        raise UserError(f"the data has {counted(len(rows), 'row')}, too few to hold out {held} of them; give more")
    return [training, *parts]
