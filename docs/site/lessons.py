"""A Sphinx directive of the chapters on training and on the block of the textbook: it shows what they compute."""
from collections.abc import Callable

import derived
import textbook_facts
import training_facts
from docutils import nodes
from docutils.parsers.rst import Directive
from messages import html

SHOWN: dict[str, Callable[[str], nodes.Node]] = {
    "schedules": lambda where: html(training_facts.schedules()),
    "accumulation": training_facts.accumulation,
    "resuming": training_facts.resuming,
    "block": lambda where: html(derived.displays(textbook_facts.formulas(""))),
    "residual": lambda where: html(derived.displays(textbook_facts.formulas("residual"))),
    "changes": textbook_facts.changes,
    "measured": textbook_facts.measured}


class Shown(Directive):
    """A table, a diagram or formulas, by name."""
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [SHOWN[self.arguments[0]](self.state.document.current_source)]


def setup(app):
    app.add_directive("shown", Shown)
    return {"parallel_read_safe": True}
