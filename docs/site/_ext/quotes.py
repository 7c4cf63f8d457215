"""A directive that quotes lines of a file of the project, and fails if they are gone.

    ```{quote} csrc/cpu/rows.h
    static inline idx first_row(idx block, idx N) { return block * N / BLOCKS; }
    ```
"""
import textwrap
from collections.abc import Iterator
from html import escape

from docutils.parsers.rst import Directive
from messages import html
from places import ROOT


class Quote(Directive):
    """Lines that follow each other in a file; the indentation that all of them share does not count."""
    required_arguments = 1
    has_content = True

    def run(self):
        path, = self.arguments
        self.state.document.settings.env.note_dependency(str(ROOT / path))
        lines = list(self.content)
        return [html(figure(path, place(lines, (ROOT / path).read_text("utf-8"), path), lines))]


def place(lines: list[str], text: str, path: str) -> int:
    """The number of the first of these lines in the text.  Raises ValueError if they do not stand there."""
    wanted = unindented(lines)
    for first, here in enumerate(windows(text.splitlines(), len(lines)), 1):
        if unindented(here) == wanted:
            return first
    raise ValueError(f"{path} does not have the quoted lines that begin with {lines[0].strip()!r}; quote it as it is")


def windows(lines: list[str], size: int) -> Iterator[list[str]]:
    return (lines[first:first + size] for first in range(len(lines) - size + 1))


def unindented(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).splitlines()


def figure(path: str, number: int, lines: list[str]) -> str:
    code = escape("\n".join(unindented(lines)))
    return (f'<figure class="quote" lang="en"><figcaption>{path}:{number}</figcaption>'
            f'<pre class="literal" tabindex="0"><code>{code}</code></pre></figure>')


def setup(app):
    app.add_directive("quote", Quote)
    app.add_css_file("chapters.css")
    return {"parallel_read_safe": True}
