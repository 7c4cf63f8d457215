"""docs/architecture.md is true: it lists every module; imports run within a layer or downward, never in a circle."""
import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

import pyllama

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyllama"

PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
LAYERS = [line.split()[1:] for line in re.search(r"```layers\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def statements(node):
    """All nodes below this one, but expressions and those of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        checking = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        if not checking and not isinstance(child, ast.expr):                        # no expression holds an import
            yield child
            yield from statements(child)


def imported(path):
    """The modules of the package that a file imports, wherever in the file the import stands; none that only type
    checkers see."""
    for node in statements(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and str(node.module) in MODULES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                lazy = node.module == "pyllama" and alias.name in pyllama.__all__
                yield whole if whole in MODULES else "pyllama.api" if lazy else node.module


@functools.cache
def graph():
    """{module: the modules of the package that it imports}"""
    return {name: {*imported(path)} - {name} for name, path in MODULES.items()}


def part(module):
    """The flat module or the subpackage below pyllama that a module belongs to."""
    return module.split(".")[1]


def test_no_import_runs_upward():
    names = [name for name in MODULES if name.count(".") and part(name) != "__main__"]
    upward = [(name, other) for name in names for other in graph()[name]
              if other != "pyllama" and HEIGHT[part(other)] > HEIGHT[part(name)]]
    assert not upward


def test_imports_have_no_circle():
    assert [*graphlib.TopologicalSorter(graph()).static_order()]          # a CycleError names the circle


# An op, a derivation, a model or a task is added by one file and one line in a list, without a change to the page.
LISTED_ELSEWHERE = "ops/", "models/", "tasks/", "study/derivations/"


def test_the_page_lists_every_module_and_no_other():
    package, _, _ = PAGE.partition("## Outside the package")
    listed = set(names := re.findall(r"`([\w/]+\.py)`", package))
    assert len(names) == len(listed)
    paths = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert listed - paths == set()
    unlisted = paths - listed
    assert {path for path in unlisted if "__" not in path and not path.startswith(LISTED_ELSEWHERE)} == set()


def test_the_package_stays_flat_enough_to_be_read():
    flat = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert len(flat) <= 18, flat


@pytest.mark.parametrize("folder", ["pyllama", "csrc", "tests", "bench", "docs"])
def test_no_file_is_longer_than_400_lines(folder):
    code = (path for path in (ROOT / folder).rglob("*.*") if path.suffix in {".py", ".pyx", ".pxi", ".c", ".h", ".cu",
                                                                             ".cuh", ".cpp"})
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in code}
    assert not {name: lines for name, lines in lengths.items() if lines > 400}
