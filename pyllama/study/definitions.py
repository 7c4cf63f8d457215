"""What a derivation has defined: single lines, and recurrences, whose lines need each other; what a tree contains."""
from typing import Any, NamedTuple

from pyllama.study import notation
from pyllama.study.evaluate import whole_name
from pyllama.study.notation import Call, Name, Node


class Definition(NamedTuple):
    """name_letters = node"""
    name: str
    letters: tuple[str, ...]
    node: Node
    matrices: bool


class System(NamedTuple):
    """Definitions that need each other: one, or the lines of a recurrence.

    uses    the names and functions that they contain
    """
    definitions: tuple[Definition, ...]
    names: frozenset[str]
    uses: frozenset[str]
    is_recurrence: bool

    @classmethod
    def of(cls, definitions: tuple[Definition, ...], functions: dict) -> "System":
        names, nodes = frozenset(one.name for one in definitions), tuple(one.node for one in definitions)
        return cls(definitions, names, frozenset(used(nodes, functions)), not names.isdisjoint(shifted(nodes)))


def shifted(node: Any) -> set[str]:
    """The names that a tree has at a shifted index, as in h_{t-1}."""
    if not isinstance(node, tuple):
        return set()
    found = {node.text} if isinstance(node, Name) and any(isinstance(i, notation.Sum) for i in node.indices) else set()
    return found.union(*map(shifted, node))


def letter(node: Node) -> str:
    """The letter that an index or an argument is.  Raises ValueError if it is anything else."""
    if not isinstance(node, Name) or node.indices or len(node.text) > 1:
        raise ValueError("what is defined has letters alone as its indices or arguments")
    return node.text


def used(node: Any, functions: dict) -> set[str]:
    """The names and functions that a tree contains, and those that these functions contain."""
    if not isinstance(node, tuple):
        return set()
    found = {whole_name(node), node.text} if isinstance(node, Name) else set()
    if isinstance(node, Call):
        found = {node.function}
    for name in found & functions.keys():
        body = functions[name][1]
        found |= used(body, {k: v for k, v in functions.items() if k != name})
    for part in node:
        found |= used(part, functions)
    return found


def variables(node: Any) -> set[str]:
    """The names in the arguments of the functions in a tree."""
    if not isinstance(node, tuple):
        return set()
    if isinstance(node, Call):
        return {name for argument in node.arguments for name in used(argument, {})}
    return {name for part in node for name in variables(part)}


def replaced(node: Any, where: dict[Node, Node]) -> Any:
    """The tree with other nodes in the places of some."""
    if node in where:
        return where[node]
    if not isinstance(node, tuple):
        return node
    parts = [replaced(part, where) for part in node]
    return type(node)(*parts) if hasattr(node, "_fields") else tuple(parts)

