"""The blocks of a docstring as nodes: paragraphs, definitions, and what stays as it is."""
import re
import textwrap
from collections.abc import Iterator

from docutils import nodes

ITEM = re.compile(r"(\w[\w, ]*?)(?: {2,}(\S.*))?")          # a name, or several, and what it is
GAP = " " * 3                                               # columns of a table or a formula, which must stay


def described(doc: str) -> Iterator[nodes.Node]:
    """The nodes of a docstring without its margin, in its order."""
    for block in filter(None, re.split(r"\n\s*\n", doc.strip("\n"))):
        yield node_of(block)


def node_of(block: str) -> nodes.Node:
    text = textwrap.dedent(block)
    if text.startswith(">>>"):
        return nodes.literal_block(text, text, language="pycon")
    lines = block.splitlines()
    if entries := items(lines):
        return nodes.definition_list("", *map(definition, entries))
    if any(line.startswith(" ") or GAP in line for line in lines):
        return nodes.literal_block(text, text, language="text")
    return paragraph(" ".join(lines))


def items(lines: list[str]) -> list[tuple[str, str]]:
    """(name, meaning) of each entry of a list of definitions; [] for other lines."""
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if match := ITEM.fullmatch(line):
            found.append((match[1], [match[2] or ""]))
        elif line.startswith(" ") and found:
            found[-1][1].append(line.strip())
        else:
            return []
    entries = [(name, " ".join(filter(None, parts))) for name, parts in found]
    return entries if all(meaning for _, meaning in entries) else []


def definition(item: tuple[str, str]) -> nodes.definition_list_item:
    name, meaning = item
    return nodes.definition_list_item("", nodes.term("", "", nodes.literal(name, name)),
                                      nodes.definition("", paragraph(meaning)))


def paragraph(text: str) -> nodes.paragraph:
    """A paragraph; what stands in backticks is code."""
    squeezed = " ".join(text.split())
    parts = [nodes.literal(part, part) if k % 2 else nodes.Text(part)
             for k, part in enumerate(re.split(r"`+", squeezed)) if part]
    return nodes.paragraph("", "", *parts)
