"""Nodes whose text goes into the message catalogues, and nodes whose text does not."""
from collections.abc import Callable, Iterable
from html import escape

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from pyllama.study.mathml import mathml


def translated(text: str, where: str, *classes: str, node: type[nodes.TextElement] = nodes.paragraph) -> nodes.Element:
    """A paragraph whose text goes into the message catalogue."""
    parts = [nodes.literal(part, part) if k % 2 else nodes.Text(part) for k, part in enumerate(text.split("`"))]
    paragraph = node(text, "", *parts, classes=list(classes))
    paragraph.source, paragraph.line = where, 1
    return paragraph


def literal(text: str) -> nodes.raw:
    """A block of text that stays as it is in every language."""
    return html(f'<pre class="literal" tabindex="0" lang="en"><code>{escape(text)}</code></pre>')


def html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def plain(text: object) -> nodes.paragraph:
    """A paragraph that is the same in every language."""
    return nodes.paragraph("", str(text))


def table(headings: Iterable[nodes.Node], rows: Iterable[Iterable[nodes.Node]], *classes: str) -> nodes.table:
    head = cells(headings)
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    group += [nodes.thead("", head), nodes.tbody("", *map(cells, rows))]
    return nodes.table("", group, classes=list(classes))


def cells(row: Iterable[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", cell) for cell in row))


class Formulas(SphinxPostTransform):
    """Formulas in the reasons, once they are translated, become MathML."""
    default_priority = 200

    def run(self, **options):
        for paragraph in self.document.findall(nodes.paragraph):
            if "why" in paragraph["classes"]:
                for formula in list(paragraph.findall(nodes.literal)):
                    formula.replace_self(html(mathml(formula.astext())))


class Details(nodes.General, nodes.Element):
    """What is folded until the reader asks for it."""


class Summary(nodes.Part, nodes.TextElement):
    """The line that unfolds it."""


class Button(nodes.Part, nodes.TextElement):
    """What a script listens to; pressed or not."""


def opening(tag: str, **attributes: str) -> Callable:
    def visit(self, node):
        self.body.append(self.starttag(node, tag, "", **attributes))
    return visit


def closing(tag: str) -> Callable:
    def depart(self, node):
        self.body.append(f"</{tag}>\n")
    return depart
