"""Sphinx directives that show a derivation, the code beside it, and the catalogued bugs; and the pages that use them.

The pages of ops and of other derivations are written before the build: a new op needs no new page.
"""
from pathlib import Path

import pages
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.transforms.post_transforms import SphinxPostTransform

from pyllama.study.mathml import mathml

HERE = Path(__file__).parent


def translated(text: str, where: str, *classes: str) -> nodes.paragraph:
    """A paragraph whose text goes into the message catalogue."""
    parts = [nodes.literal(part, part) if k % 2 else nodes.Text(part) for k, part in enumerate(text.split("`"))]
    paragraph = nodes.paragraph(text, "", *parts, classes=list(classes))
    paragraph.source, paragraph.line = where, 1
    return paragraph


class Formulas(SphinxPostTransform):
    """Formulas in the reasons, once they are translated, become MathML."""
    default_priority = 200

    def run(self, **options):
        for paragraph in self.document.findall(nodes.paragraph):
            if "why" in paragraph["classes"]:
                for literal in list(paragraph.findall(nodes.literal)):
                    literal.replace_self(html(mathml(literal.astext())))


def html(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


class About(Directive):
    """A directive with the name of an op or a derivation."""
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return list(self.nodes(self.arguments[0], self.state.document.current_source))


class Steps(About):
    """The derivation: equation, badge, reason, the line of the code."""

    def nodes(self, name, where):
        if self.state.document.settings.env.app.builder.name == "gettext":
            yield from (translated(text, where) for text in pages.said(name))
            return
        for case, steps in pages.derived(name):
            if case:
                yield translated(pages.CASE.format(case=case), where)
            listed = nodes.container(classes=["steps"])
            for number, step in enumerate(steps, 1):
                item = nodes.container(classes=["step"], ids=[f"{name}-{case or 'step'}-{number}"])
                item += html(pages.equation(step, number))
                item += translated(step.badge, where, "badge", step.kind)
                item += translated(step.why, where, "why")
                listed += item
            yield listed


class Arrays(About):
    """What the op takes and gives: the sections of its docstring above Forward, as they are."""

    def nodes(self, name, where):
        yield nodes.literal_block("", pages.head(name), language="text")


class Code(About):
    """Both passes, with the lines that the steps justify marked."""

    def nodes(self, name, where):
        yield html(pages.code(name))


class Bugs(About):
    """Catalogued bugs: cause, place where it happened, and what the check says of it."""

    def nodes(self, name, where):
        for bug in pages.bugs(name):
            item = nodes.container(classes=["bug"])
            item += translated(bug.cause, where, "cause")
            item += html(pages.patch(bug))
            yield item


class Users(About):
    """The models that use the op."""

    def nodes(self, name, where):
        yield html(pages.users(name))


class Trust(Directive):
    """A table: what is proved, what is checked, and what is not, for every op."""

    def run(self):
        return [html(pages.trust())]


def write_pages(app) -> None:
    """The pages of ops and derivations, rewritten only if they change: Sphinx then reads only these again."""
    for path, text in pages.all_pages():
        target = HERE / path
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or target.read_text("utf-8") != text:
            target.write_text(text, "utf-8")


def setup(app):
    app.connect("builder-inited", write_pages)
    for name, directive in {"steps": Steps, "arrays": Arrays, "opcode": Code, "bugs": Bugs, "users": Users,
                            "trust": Trust}.items():
        app.add_directive(name, directive)
    app.add_post_transform(Formulas)
    return {"parallel_read_safe": True}
