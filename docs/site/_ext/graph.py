"""The map of what depends on what: a column for each kind of thing, and the same as a table.

_static/map.js makes buttons of the names.  Without it the columns are lists of links, and the table says the rest.
"""
from collections.abc import Iterable
from html import escape

from docutils import nodes
from docutils.parsers.rst import Directive
from joined import joined
from messages import Details, Summary, html, table, translated

from pyllama.op import OPS

HEADINGS = {"op": "Ops", "derivation": "Derivations", "test": "Tests", "kernel": "Kernels", "model": "Models"}
AS_A_TABLE = "The map as a table"


class Map(Directive):
    """The columns, and the table."""

    def run(self):
        where = self.state.document.current_source
        edges = {name: joined(name) for name in sorted(OPS)}
        columns = [nodes.container("", translated(heading, where, "case"), html(column(kind, edges)),
                                   classes=["column"]) for kind, heading in HEADINGS.items()]
        rows = [[html(linked("op", name)), *(html(", ".join(linked(kind, other) for other in others) or "–")
                                             for kind, others in kinds.items())] for name, kinds in edges.items()]
        headings = [translated(heading, where) for heading in HEADINGS.values()]
        return [nodes.container("", *columns, classes=["map"]),
                Details("", translated(AS_A_TABLE, where, node=Summary), table(headings, rows, "joined"))]


def column(kind: str, edges: dict[str, dict[str, list[str]]]) -> str:
    """The names of a kind.  An op has the ids of what is joined with it."""
    if kind == "op":
        items = [item(kind, name, (key(of, other) for of, others in kinds.items() for other in others))
                 for name, kinds in edges.items()]
    else:
        names = dict.fromkeys(name for kinds in edges.values() for name in kinds[kind])
        items = [item(kind, name) for name in (names if kind == "model" else sorted(names))]
    return f'<ul lang="en">{"".join(items)}</ul>'


def item(kind: str, name: str, others: Iterable[str] = ()) -> str:
    return f'<li id="{key(kind, name)}" data-joined="{" ".join(others)}">{linked(kind, name)}</li>'


def key(kind: str, name: str) -> str:
    return f"{kind}-{name}"


def linked(kind: str, name: str) -> str:
    """A link to the page that shows it, if there is one."""
    if kind == "op" or (kind == "derivation" and name in OPS):
        return f'<a href="ops/{name}.html">{name}</a>'
    if kind == "derivation":
        return f'<a href="derivations/{name}.html">{name}</a>'
    return f"<span>{escape(name)}</span>"


def setup(app):
    app.add_directive("map", Map)
    app.add_css_file("map.css")
    app.add_js_file("map.js")
    return {"parallel_read_safe": True}
