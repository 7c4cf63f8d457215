"""Sphinx directives and pages of the guides and the reference, which are in English on the Chinese site, too."""
from collections.abc import Iterator

import command_line
import guide_pages
import objects
import pages
import sources
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from messages import plain, table
from places import SITE
from pygments.lexers.special import TextLexer
from sphinx.directives.other import TocTree

from pyllama.op import OPS

ENGLISH = "guides/", "notebooks/", "reference/", "source/"                # the beginnings of the names of pages
PARTS = "body", "toc"


class Guides(TocTree):
    """The guides as entries of the table of contents."""
    has_content = False

    def run(self):
        self.content = StringList([f"guides/{name}" for name in guide_pages.names()])
        return super().run()


class Objects(Directive):
    """The public names of a module, from their signatures and docstrings."""
    required_arguments = 1

    def run(self):
        return list(objects.sections(self.arguments[0]))


class OpList(Directive):
    """A line for each op: its page, its shapes, what it is."""

    def run(self):
        return [table(map(plain, ("Op", "Arrays", "Derivation")), map(self.row, sorted(OPS)), "ops")]

    def row(self, name: str) -> Iterator[nodes.Node]:
        shapes = OPS[name].shapes
        link = nodes.reference("", "", nodes.literal(name, name), refuri=f"../ops/{name}.html", internal=True)
        yield nodes.paragraph("", "", link)
        yield nodes.paragraph("", "", nodes.literal(shapes, shapes))
        yield plain(pages.title(name))


class Commands(Directive):
    """The commands of the command line, from their parsers."""

    def run(self):
        return list(command_line.sections())


def write_guides(app) -> None:
    for path, text in guide_pages.all_pages():
        pages.write(SITE / path, text)


def in_english(app, pagename, templatename, context, doctree) -> None:
    """Say to a reader of the Chinese site, or to a voice that reads it, that these parts are English."""
    if pagename.startswith(ENGLISH) and app.config.language != "en":
        for part in PARTS:
            context[part] = f'<div lang="en">{context.get(part, "")}</div>'


def setup(app):
    app.connect("builder-inited", write_guides)
    app.connect("html-collect-pages", sources.pages)
    app.connect("html-page-context", in_english, priority=900)      # after the theme's
    app.add_lexer("layers", TextLexer)                      # of architecture.md
    for name, directive in {"guides": Guides, "objects": Objects, "op-list": OpList, "commands": Commands}.items():
        app.add_directive(name, directive)
    app.add_post_transform(sources.RepositoryLinks)
    return {"parallel_read_safe": True}
