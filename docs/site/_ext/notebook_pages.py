"""The notebooks as pages: text and code as they are, and the outputs kept of their last full run."""
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import jupytext
import pages
from docutils import nodes
from docutils.parsers.rst import Directive
from messages import html
from nbformat import NotebookNode
from places import SITE

FOLDER = SITE.parent / "notebooks"
FIRST = "train_llama", "own_op", "finetune_bert"
HTML, SVG, TEXT = "text/html", "image/svg+xml", "text/plain"
SIZE = re.compile(r' (width|height)="[^"]*pt"')
GROUP = re.compile(r'(?<=<g) id="[^"]*"')
NAMED = re.compile(r'(?<=id=")[mp]\w+|(?<=#)[mp]\w+')        # markers and clips, which a figure refers to
SCROLLED = '<pre tabindex="0">'                             # by the keyboard, too
CLOSING = """
This page is [docs/notebooks/{name}.py](repo:docs/notebooks/{name}.py) with the outputs of a full run.
[How to open it in Jupyter](../guides/python.md#notebooks).
"""


def names() -> list[str]:
    """All notebooks in the order in which they are read."""
    found = sorted(path.stem for path in FOLDER.glob("*.py"))
    return sorted(found, key=[*FIRST, *found].index)


def read(name: str) -> NotebookNode:
    return jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """The fingerprint of the code: other outputs belong to other code."""
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()


def kept_file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def kept(name: str) -> list[list[dict[str, str]]]:
    """The outputs of each code cell, each {kind: text}.  Raises ValueError if they are those of other code."""
    stored = json.loads(kept_file(name).read_text("utf-8"))
    if stored["digest"] != digest(read(name)):
        raise ValueError(f"{kept_file(name).name} has the outputs of an older {name}.py; run make notebooks")
    return stored["outputs"]


# --- pages ------------------------------------------------------------------------------------------------------------

def all_pages() -> Iterator[tuple[Path, str]]:
    """(path, text) of each notebook."""
    for name in names():
        yield Path("notebooks") / f"{name}.md", "\n".join(parts(name))


def parts(name: str) -> Iterator[str]:
    number = 0
    for cell in read(name).cells:
        if cell.cell_type == "markdown":
            yield f"{cell.source}\n"
        else:
            yield f"```python\n{cell.source}\n```\n\n```{{outputs}} {name} {number}\n```\n"
            number += 1
    yield CLOSING.format(name=name)


class Outputs(Directive):
    """The outputs of a code cell, by the name of the notebook and the number of the cell."""
    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        name, number = self.arguments[0], int(self.arguments[1])
        alt = code(read(name))[number].metadata.get("alt", "")
        return [html(shown(output, alt, f"cell-{number}")) for output in kept(name)[number]]


def shown(output: dict[str, str], alt: str, place: str) -> str:
    """The HTML of an output, by its kind.  Raises ValueError for a figure without a text."""
    (kind, text), = output.items()
    if kind == SVG and not alt:
        raise ValueError('a cell with a figure needs a text: # %% alt="..."')
    if kind == SVG:
        return f'<figure class="output">{figure(text, alt, place)}</figure>'
    if kind == HTML:
        return f'<div class="output" tabindex="0">{text.replace("<pre>", SCROLLED)}</div>'
    return f'<pre class="literal output" tabindex="0"><code>{escape(text.rstrip())}</code></pre>'


def figure(svg: str, alt: str, place: str) -> str:
    """The figure in the color of the page's text, as wide as there is room; its ids are not those of others."""
    svg = NAMED.sub(rf"\g<0>-{place}", GROUP.sub("", SIZE.sub("", svg))).replace("#000000", "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def write_notebooks(app) -> None:
    for path, text in all_pages():
        pages.write(SITE / path, text)


def setup(app):
    app.connect("builder-inited", write_notebooks)
    app.add_directive("outputs", Outputs)
    return {"parallel_read_safe": True}
