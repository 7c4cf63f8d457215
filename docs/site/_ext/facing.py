"""A derivation on two facing columns, in rows: a line of the forward pass, and the backward lines that it causes."""
from collections.abc import Iterable

import derived
from docutils import nodes
from docutils.statemachine import StringList
from extension import About, collects
from messages import html, table, translated
from passes import Line, axes, passes

from pyllama.study.mathml import mathml
from pyllama.study.notation import Name

DOWN, UP = "Forward: read downwards", "Backward: read upwards"
SUM, SAVED = "The uses of the value, over which this is a sum:", "Needed again:"
HEADINGS = "Value", "Axes", "Needed again in"
NOT_SAVED = "Not needed again"


class Facing(About):
    """The two columns.  A line `NAME: heading` of the content stands above the line that defines NAME."""
    has_content = True

    def nodes(self, name, where):
        self.one, = derived.of(name)
        self.passes = passes(self.one)
        directions = [translated(text, where, kind) for text, kind in ((DOWN, "down"), (UP, "up"))]
        page = nodes.container("", nodes.container("", *directions, classes=["facing", "directions"]),
                               classes=["passes"])
        headings = dict(line.split(": ", 1) for line in self.content)
        for row in self.passes.rows():
            if heading := headings.pop(row.forward.defines, ""):
                page += self.heading(heading)
            page += self.row(row, where)
        if headings:
            raise self.error(f"no line defines {', '.join(headings)}")
        yield page

    def heading(self, text):
        item = nodes.container(classes=["case"])
        self.state.nested_parse(StringList([text], ""), self.content_offset, item)
        return item

    def row(self, row, where):
        left = nodes.container("", self.forward(row.forward, where), classes=["forward"])
        right = nodes.container("", *(self.backward(line, where) for line in row.backward), classes=["backward"])
        return nodes.container("", left, right, classes=["facing"])

    def forward(self, line, where):
        again = self.passes.again(line.defines)
        return self.line(line, again, [(SAVED, again)] if again else [], where)

    def backward(self, line, where):
        needed = [before for before in self.passes.forward if before.defines in line.uses]
        uses = self.passes.uses(line.defines[1:])
        return self.line(line, needed, [(SUM, uses)] if len(uses) > 1 else [], where)

    def line(self, line, joined, notes, where):
        item = nodes.container(classes=["entry"], ids=[f"line-{line.number}"])
        if collects(self):
            item += [translated(badge, where) for badge in derived.CLASSES]
        else:
            (_, steps), = derived.derived(self.arguments[0])
            step, page = steps[line.number - 1], f"derivations/{self.arguments[0]}.html"
            item += html(derived.equation(step, line.number, [other.number for other in joined], page))
            item += translated(step.badge, where, "badge", step.kind)
        for text, others in notes:
            item += nodes.container("", translated(text, where), html(links(others)), classes=["others"])
        return item


class Saved(About):
    """The values of the forward pass that the backward pass needs again."""

    def nodes(self, name, where):
        one, = derived.of(name)
        both = passes(one)
        values = [line for line in both.forward if isinstance(line.name, Name)]
        needed = [line for line in values if both.again(line.defines)]
        rows = [[html(shown(line)), plain(axes(line, one, both.forward)), html(links(both.again(line.defines)))]
                for line in needed]
        others = " ".join(shown(line) for line in values if line not in needed)
        rows.append([translated(NOT_SAVED, where), plain(""), html(others)])
        yield table((translated(text, where) for text in HEADINGS), rows, "saved")


def shown(line: Line) -> str:
    return mathml(line.defines)


def plain(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", nodes.Text(text), translatable=False)


def links(found: Iterable[Line]) -> str:
    return '<p class="lines">' + " ".join(f'<a href="#line-{line.number}">{line.number}</a>' for line in found) + "</p>"


def setup(app):
    app.add_directive("facing", Facing)
    app.add_directive("saved", Saved)
    app.add_css_file("passes.css")
    app.add_js_file("passes.js")
    return {"parallel_read_safe": True}
