"""Answers beside the rows that they belong to: every column of the user's stays, and new ones come after them."""
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyllama.errors import UserError
from pyllama.tasks.rows import Row

Table = list[dict[str, Any]]


class Answered(dict):
    """The columns of a row of the file, and the new ones after them.

    added    the new ones, under the names that they have where the file has no column of that name
    """
    def __init__(self, given: Mapping[str, Any], added: Mapping[str, Any], names: Mapping[str, str]):
        super().__init__({**given, **{names[name]: value for name, value in added.items()}})
        self.added = added


class ByClass(dict):
    """A number for each class.  A table of cells has a column for each, such as probabilities.good."""


def beside(rows: Sequence[Row], answers: Sequence, details: Sequence[dict], numbered: bool) -> Table:
    """The rows of the file, each with its answer in the column "predicted", then the details of the answer.

    numbered    also with the number of each row in its file, from 1, in the column "row"

    A new column whose name the file has already gets another one, such as predicted_2.
    """
    taken = {name for row in rows for name in row.given}
    added = [{**({"row": row.number} if numbered else {}), "predicted": answer, **detail}
             for row, answer, detail in zip(rows, answers, details, strict=True)]
    names = {name: unused(name, taken) for new in added for name in new}
    return [Answered(row.given, new, names) for row, new in zip(rows, added, strict=True)]


def unused(name: str, taken: Iterable[str]) -> str:
    """The name or, if it is taken, the first of name_2, name_3, ... that is not."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def json_lines(table: Table) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def json_list(table: Table) -> str:
    """A JSON list of objects."""
    return json.dumps(table, ensure_ascii=False, indent=1) + "\n"


def comma_separated(table: Table) -> str:
    """A .csv (RFC 4180); a value that is neither a text nor null is written as JSON."""
    names, rows = cells(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def tab_separated(table: Table) -> str:
    """A .tsv without quotes.  Raises UserError if a cell contains a tab or a line end."""
    names, rows = cells(table)
    for cell in (cell for row in [names, *rows] for cell in row):
        if any(character in cell for character in "\t\n\r"):
            raise UserError(f"{cell[:60]!r} contains a tab or a line end, which a .tsv cannot hold; write a .csv or "
                            f".jsonl")
    return "".join("\t".join(row) + "\n" for row in [names, *rows])


def word_columns(table: Table) -> str:
    """A .conll: each word and its tag in a line, and an empty line after each row.

    Raises UserError if the answers are not tags, or a word contains a tab or a line end.
    """
    sentences = []
    for row in table:
        if not isinstance(row, Answered) or "predicted_tags" not in row.added:
            raise UserError("a .conll has words and their tags, but the answers are not tags; write a .jsonl or .csv")
        words = row.added.get("tokens", row.get("tokens"))
        if broken := next((word for word in words if any(character in word for character in "\t\n\r")), None):
            raise UserError(f"{broken[:60]!r} contains a tab or a line end, which a .conll cannot hold; write a .jsonl")
        pairs = zip(words, row.added["predicted_tags"], strict=True)
        sentences.append("".join(f"{word}\t{tag}\n" for word, tag in pairs))
    return "\n".join(sentences)


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """(names of all columns, the cells of each row)"""
    table = [flat(row) for row in table]
    names = list(dict.fromkeys(name for row in table for name in row))
    return names, [[cell(row.get(name)) for name in names] for row in table]


def flat(row: dict) -> dict:
    """The row with a column for each class of a ByClass."""
    return dict(pair for name, value in row.items()
                for pair in ([(f"{name}.{inner}", number) for inner, number in value.items()]
                             if isinstance(value, ByClass) else [(name, value)]))


def cell(value: Any) -> str:
    """A value as the text of a cell."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


FORMATS: dict[str, Callable[[Table], str]] = {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_list,
                                              ".csv": comma_separated, ".tsv": tab_separated,
                                              ".conll": word_columns}


def format_of(path: Path, plain: Callable[[Table], str]) -> Callable[[Table], str]:
    """How to write a table into this file: by its ending; plain without one, or for .txt.

    Raises UserError for another ending.
    """
    suffix = path.suffix.lower()
    if suffix in ("", ".txt"):
        return plain
    if suffix not in FORMATS:
        raise UserError(f"answers cannot be written as {suffix}; name a file with the ending {', '.join(FORMATS)}")
    return FORMATS[suffix]
