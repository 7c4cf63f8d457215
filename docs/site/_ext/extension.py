"""Sphinx directives that show a derivation, the code beside it, and the catalogued bugs; and the pages that use them.

The builder gettext, which collects messages, runs no derivation and no check.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape

import broken
import derived
import failing
import pages
import widgets
from chinese import Chinese
from docutils import nodes
from docutils.parsers.rst import Directive
from messages import Button, Details, Formulas, Summary, closing, html, literal, opening, translated
from notation_table import notation_table
from places import SITE
from trust import trust_table
from users import users

from pyllama.op import OPS

UNDERIVED = "This op is not derived step by step."
CHECKED_NOW = ("Steps by what shows that they hold, kernels (✓: its gradients were checked when this page was made), "
               "and catalogued bugs that the gradient checker finds.")


@contextmanager
def mistakes(directive: Directive) -> Iterator[None]:
    """A step, a quote, a formula or a bug that is not right is an error of the page: make docs ends with it."""
    try:
        yield
    except ValueError as error:
        raise directive.error(str(error)) from error


class About(Directive):
    """A directive with the name of an op or a derivation."""
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        with mistakes(self):
            return list(self.nodes(self.arguments[0], self.state.document.current_source))

    def computed(self, make: Callable[..., str], *args) -> Iterator[nodes.Node]:
        """The HTML that make() returns; nothing if messages are collected."""
        if not collects(self):
            yield html(make(*args))


class Steps(About):
    """Two columns: the steps, each with its equation, its badge and its reason; the code that they justify."""

    def nodes(self, name, where):
        if collects(self):
            yield from (translated(text, where) for text in [*derived.said(name), UNDERIVED])
            return
        steps = nodes.container(classes=["steps"])
        steps += list(self.steps(name, where)) or translated(UNDERIVED, where)
        yield nodes.container("", steps, html(derived.listing(name)), classes=["facing"])

    def steps(self, name, where):
        number, lines = 0, derived.code(name)
        for case, steps in derived.derived(name):
            if case:
                yield translated(derived.CASE.format(case=case), where, "case")
            for step in steps:
                number += 1
                item = nodes.container(classes=["step"], ids=[f"step-{number}"])
                item += html(derived.equation(step, number, derived.quoted(step.code, lines)))
                item += translated(step.badge, where, "badge", step.kind)
                item += translated(step.why, where, "why")
                yield item


class Widgets(About):
    """What a reader may turn and see: filled by _static/widgets."""

    def nodes(self, name, where):
        yield html(widgets.places(name))


class Arrays(About):
    """What a reader must know first: the shape line of an op, and the docstring above Forward, as it is."""

    def nodes(self, name, where):
        if name in OPS:
            line = f"{name}: {OPS[name].shapes}"
            yield nodes.paragraph("", "", nodes.literal(line, line), translatable=False)
        yield literal(pages.head(name))


class Bugs(About):
    """Catalogued bugs: the cause, the place where it happened, the patch, and what the check says of it.

    With a script the reader plants it: it stands in the code, and the steps fail that it breaks.
    """
    plant = "Plant this bug"
    unseen = "The numbers of the steps do not show this bug. The check does:"

    def nodes(self, name, where):
        for bug in broken.shown(name):
            item = nodes.container(classes=["bug"])
            item += translated(bug.cause, where, "cause")
            item += html(broken.patch(bug) + broken.source(bug))
            item += translated(self.plant, where, "plant", node=Button)
            item += html(broken.planting(bug))
            item += nodes.container("", *self.outcome(bug, where), classes=["outcome"])
            item += list(self.computed(broken.complaint, bug))
            yield item

    def outcome(self, bug, where):
        """What is seen of it: numbers of the steps that fail, beside those of the code."""
        if collects(self):
            yield from (*self.failure(failing.Failure(0, "", "", ""), where), translated(self.unseen, where))
            return
        failures = failing.failures(bug)
        for failure in failures:
            yield nodes.container("", *self.failure(failure, where), classes=["failure"])
        if not failures:
            yield translated(self.unseen, where)

    def failure(self, failure, where):
        yield html(f'<a class="number" href="#step-{failure.step}">{failure.step}</a>')
        yield translated("fails", where, "badge", "fails")
        yield html(f"<code>{escape(failure.entry)}</code>")
        for side, number in (("by the steps", failure.right), ("by the code", failure.wrong)):
            yield translated(side, where)
            yield html(f"<code>{escape(number)}</code>")


class Exercise(About):
    """A function with a bug that the page does not show, two hints, and the answer, folded."""
    task = "One place in this function is wrong. Which one, and what must stand there?"

    def nodes(self, name, where):
        number, bug = broken.exercise(name)
        yield translated(self.task, where)
        yield literal(bug.code.rstrip())
        yield nodes.bullet_list("", *(nodes.list_item("", translated(hint, where)) for hint in bug.hints[:2]))
        answer = translated(bug.hints[2], where)
        yield Details("", translated("Answer", where, node=Summary), answer, html(broken.patch(bug)))
        yield translated("Check your own answer:", where)
        yield literal(f"pyllama dojo {name}.{number}")


class Users(About):
    """The models, kernels and tests of the op."""

    def nodes(self, name, where):
        for heading, paths in users(name).items():
            yield translated(heading, where)
            yield nodes.bullet_list("", *(nodes.list_item("", nodes.paragraph("", "", nodes.literal(path, path)))
                                          for path in paths))


class Formula(Directive):
    """Formulas of a chapter, one a line."""
    has_content = True

    def run(self):
        with mistakes(self):
            return [html(derived.displays(self.content))]


class Trust(Directive):
    """What is proved, what is checked, and what is not, for every op."""

    def run(self):
        return [trust_table(self.state.document.current_source, sorted(OPS), counted=not collects(self))]


class Verdict(About):
    """The row of one op, on its page."""

    def nodes(self, name, where):
        yield trust_table(where, [name], counted=not collects(self), linked=False)
        yield translated(CHECKED_NOW, where)


class Notation(Directive):
    """All that a formula may have."""

    def run(self):
        return [notation_table(self.state.document.current_source)]


def collects(directive: Directive) -> bool:
    """Is this the builder that only collects messages?"""
    return directive.state.document.settings.env.app.builder.name == "gettext"


def write_pages(app) -> None:
    """The pages of ops and derivations."""
    for path, text in pages.all_pages():
        pages.write(SITE / path, text)


# What the HTML of Sphinx and of the theme lacks for readers who hear the page or use the keyboard.
REPAIRS = {' role="heading"': ' role="heading" aria-level="2"',
           '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
           '<div class="highlight"><pre>': '<div class="highlight"><pre tabindex="0">',
           '<th class="head"><p></p></th>': "<td></td>"}


def repair(app, pagename, templatename, context, doctree) -> None:
    for part in ("body", "furo_navigation_tree"):
        for old, new in REPAIRS.items():
            context[part] = context.get(part, "").replace(old, new)


def setup(app):
    app.connect("builder-inited", write_pages)
    app.connect("html-page-context", repair, priority=900)      # after the theme's
    for name, directive in {"steps": Steps, "arrays": Arrays, "bugs": Bugs, "exercise": Exercise, "users": Users,
                            "trust": Trust, "verdict": Verdict, "notation": Notation, "formula": Formula,
                            "widgets": Widgets}.items():
        app.add_directive(name, directive)
    app.add_node(Details, html=(opening("details"), closing("details")))
    app.add_node(Summary, html=(opening("summary"), closing("summary")))
    app.add_node(Button, html=(opening("button", type="button", **{"aria-pressed": "false"}), closing("button")))
    app.add_post_transform(Formulas)
    app.add_search_language(Chinese)
    app.add_css_file("widgets/widgets.css")
    for script in widgets.SCRIPTS:
        app.add_js_file(f"widgets/{script}")
    return {"parallel_read_safe": True}
