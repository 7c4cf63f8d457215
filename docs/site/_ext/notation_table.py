"""The table of the notation: each example of the docstring of pyllama/study/notation.py, as text and as a formula."""
import re
from collections.abc import Iterator

from docutils import nodes
from messages import html, table, translated

from pyllama.study import notation
from pyllama.study.mathml import mathml

HEADINGS = "In the code", "Here", "Meaning"
COLUMN = 44                                                 # of the docstring, where the meanings begin


def notation_table(where: str) -> nodes.table:
    rows = [[plain(examples), html("&emsp; ".join(map(mathml, examples))), translated(meaning, where)]
            for examples, meaning in entries()]
    return table((translated(text, where) for text in HEADINGS), rows, "notation")


def entries() -> Iterator[tuple[list[str], str]]:
    """(examples, meaning) of each line of the docstring's table."""
    for line in str(notation.__doc__).splitlines():
        if line.startswith("    ") and line[COLUMN - 1:COLUMN] == " " and line[COLUMN:COLUMN + 1].strip():
            yield re.split(r"\s{2,}", line[:COLUMN].strip()), line[COLUMN:].strip()


def plain(examples: list[str]) -> nodes.paragraph:
    spaced = [part for example in examples for part in (nodes.Text("   "), nodes.literal(example, example))]
    return nodes.paragraph("", "", *spaced[1:])
