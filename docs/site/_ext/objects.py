"""The reference: every public name with its signature, its docstring and a link to its source."""
import ast
import inspect
import textwrap
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from docstrings import described
from docutils import nodes
from places import ROOT
from sources import link

# What the functions of a module return, beside its own names.
BESIDE = {"pyllama": ("pretrained:Model", "training.loop:Record")}


def sections(module: str) -> Iterator[nodes.section]:
    """A section for each public name of a module, in the order of the alphabet; then what its functions return."""
    for name in sorted(import_module(module).__all__, key=str.lower):
        yield section(f"{module}.{name}", getattr(import_module(module), name))
    for place in BESIDE.get(module, ()):
        home, _, name = place.partition(":")
        yield section(f"{module}.{home}.{name}", getattr(import_module(f"{module}.{home}"), name))


def section(name: str, value: Any) -> nodes.section:
    """The name, the signature, the docstring and, of a class, its public methods."""
    short = name.rpartition(".")[2]
    found = nodes.section("", nodes.title("", "", nodes.literal(short, short)), ids=[name],
                          support_smartquotes=False)
    if isinstance(value, ModuleType):
        found += elsewhere(name)
        return found
    head = signature(value)
    found += [nodes.literal_block(head, head, language="python"), *described(inspect.getdoc(value) or ""),
              source(value)]
    if inspect.isclass(value):
        found += [section(f"{name}.{method}", member) for method, member in methods(value)]
    return found


def methods(cls: type) -> list[tuple[str, Any]]:
    """(name, function) of the methods and properties of a class that have a docstring."""
    own = {name: member.fget if isinstance(member, property) else member for name, member in vars(cls).items()}
    return [(name, member) for name, member in own.items()
            if not name.startswith("_") and inspect.isfunction(member) and member.__doc__]


def signature(value: Any) -> str:
    """The head of a function as its source has it; of a class, its name and its fields."""
    text = textwrap.dedent(inspect.getsource(value))
    node = ast.parse(text).body[0]
    lines = text.splitlines()
    if not isinstance(node, ast.ClassDef):
        return "\n".join(lines[:node.body[0].lineno - 1]).removesuffix(":")
    fields = [line for part in node.body if isinstance(part, ast.AnnAssign) and "ClassVar" not in lines[part.lineno - 1]
              for line in lines[part.lineno - 1:part.end_lineno]]
    return "\n".join([lines[node.lineno - 1].removesuffix(":"), *fields])


def source(value: Any) -> nodes.paragraph:
    path, line = place(value)
    return nodes.paragraph("", "", nodes.Text("Source: "), link(path, line), classes=["source"])


def place(value: Any) -> tuple[str, int]:
    """(path in the repository, line) of a function or a class."""
    file = inspect.getsourcefile(value)
    return str(file).removeprefix(f"{ROOT}/"), inspect.getsourcelines(value)[1]


def elsewhere(name: str) -> nodes.paragraph:
    """A sentence that leads to the page of a module."""
    page = nodes.reference("", name, refuri=f"{name.rpartition('.')[2]}.html", internal=True)
    return nodes.paragraph("", "", nodes.Text("The ops have a page of their own: "), page, nodes.Text("."))
