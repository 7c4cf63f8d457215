"""A Sphinx directive of the chapters on training and on the block of the textbook: it shows what they compute."""
from collections.abc import Callable

import derived
import textbook_facts
import training_facts
from docutils import nodes
from docutils.parsers.rst import Directive
from extension import collects
from messages import html

SHOWN: dict[str, Callable[[], str]] = {
    "schedules": training_facts.schedules,
    "block": lambda: derived.displays(textbook_facts.formulas("")),
    "residual": lambda: derived.displays(textbook_facts.formulas("residual"))}
TABLES: dict[str, Callable[[str, bool], nodes.table]] = {
    "accumulation": training_facts.accumulation,
    "resuming": training_facts.resuming,
    "changes": textbook_facts.changes,
    "measured": textbook_facts.measured}


class Shown(Directive):
    """A table, a diagram or formulas, by name."""
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name, counted = self.arguments[0], not collects(self)
        if name in TABLES:
            return [TABLES[name](self.state.document.current_source, counted)]
        return [html(SHOWN[name]())] if counted else []


def setup(app):
    app.add_directive("shown", Shown)
    return {"parallel_read_safe": True}
