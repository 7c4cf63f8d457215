"""Directives for what is computed while the site is built: tables, formulas that are run, and sessions of Python."""
import doctest
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import claims
import cost
import derived
import numpy as np
import rounding
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from extension import collects
from messages import html, literal, table, translated

from pyllama import backend

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Table(NamedTuple):
    """The headings, which are translated, and a function that yields the rows, which are not."""
    headings: tuple[str, ...]
    rows: Callable[[], Iterator[tuple[str, ...]]]
    of_kernels: bool = False


TABLES = {
    "cost": Table(("Model", "Parameters", "N", "Tokens in a step", "6 N for a token", "Context T", "Attention's share",
                   "Context where it is half"), cost.costs),
    "speed": Table(("Model", "Tokens a second", "Operations for a token", "Operations a second",
                    "Share of the fastest product"), cost.speeds),
    "memory": Table(("Model", "Parameters, four times", "Activations", "Recomputed", "Scores of the vocabulary",
                     "Scores of attention"), cost.memories),
    "pieces": Table(("Model", "Tokens at a time", "Parameters", "Gradients", "Means of AdamW", "Activations", "Sum",
                     "Measured peak"), cost.pieces),
    "sums": Table(("Numbers", "One after another", "In 16 lanes", "In pairs", "Bound"), rounding.sums),
    "exponential": Table(("Precision", "Degree", "First term left out", "Largest error"), rounding.exponentials, True),
    "errors": Table(("Op", "Outputs", "Gradients"), rounding.errors, True),
}


class Computed(Directive):
    """One of the tables above."""
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        one, where = TABLES[self.arguments[0]], self.state.document.current_source
        if one.of_kernels and backend.cpu is None and not collects(self):
            return [nodes.paragraph("", backend.why_no_cpu)]
        rows = ([nodes.paragraph("", cell) for cell in row] for row in one.rows())
        return [table((translated(text, where) for text in one.headings), () if collects(self) else rows, "computed")]


class Claim(Directive):
    """Formulas, which are run: see claims.py.  Without an argument they go on with those before them on the page."""
    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        if not collects(self):
            names = names_of_page(self)
            if self.arguments:
                names["claims"] = claims.about(self.arguments[0])
            claims.require(names["claims"], list(self.content))
        return [html(derived.displays(self.content))]


class Session(Directive):
    """A session of Python, which goes on with the names of those before it on the page.

    The build fails unless it prints what the page says; one with :kernels: is run only where there are some.
    """
    has_content = True
    option_spec = {"kernels": directives.flag}              # noqa: RUF012 -- as docutils has it

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        if not collects(self) and (backend.cpu or "kernels" not in self.options):
            require(text, names_of_page(self).setdefault("session", {"np": np}))
        return [literal(text)]


def require(session: str, names: dict[str, Any]) -> None:
    """Run a session with these names, and add its own.  Raises ValueError if it prints anything else than it says."""
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(session + "\n", names, "session", None, 0)
    with np.errstate(all="ignore"):
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    if said:
        raise ValueError("".join(said))
    names.update(test.globs)


def names_of_page(directive: Directive) -> Any:
    """What the directives of a page leave for those that follow."""
    return directive.state.document.settings.env.temp_data


def setup(app):
    app.add_directive("computed", Computed)
    app.add_directive("claim", Claim)
    app.add_directive("session", Session)
    return {"parallel_read_safe": True}
