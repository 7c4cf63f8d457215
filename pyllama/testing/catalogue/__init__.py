"""Bugs of backward passes, many of which really happened, as patches of our ops: to score a test, and to learn from.

NAME.toml has the bugs of op NAME, a table each.  `before` occurs once in the source of one function of the op's
module; `after` takes its place.  Every bug changes a gradient, and none changes the value of forward.

    >>> from pyllama.testing.catalogue import bugs
    >>> bug = bugs("tanh")[0]
    >>> bug.op, bug.function
    ('tanh', 'backward')
"""
import ast
import contextlib
import functools
import importlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pyllama.testing.mutation.planting import copied, plant, transplant

FOLDER = Path(__file__).parent
_planted: dict[str, str] = {}                               # op -> its bug, while planted


@dataclass(frozen=True)
class Bug:
    """One bug of one op.

    name       unique in the op: "sum_instead_of_mean"
    op         name of the op
    function   of the op's module: "backward", "forward", which then saves something wrong, or a helper
    before     text that occurs once in the function's source
    after      what the bug has in its place
    cause      a sentence of mathematics
    source     where it happened: "owner/project#number", "owner/project PR #number"; or "operator mutation"
    hints      three, the last of which gives the answer away

    >>> from pyllama.testing.catalogue import bugs
    >>> print(bugs("tanh")[0])
    tanh.square_missing
    """
    name: str
    op: str
    function: str
    before: str
    after: str
    cause: str
    source: str
    hints: tuple[str, str, str]

    def __str__(self):
        return f"{self.op}.{self.name}"

    @property
    def cited(self) -> bool:
        """Did it happen, as far as we know?"""
        return self.source != "operator mutation"

    @property
    def code(self) -> str:
        """The source of the function with the bug.  Raises ValueError if the patch does not apply."""
        source = original(module_of(self.op), self.function)
        if source.count(self.before) != 1:
            raise ValueError(f"the bug {self} does not apply: {self.before!r} occurs {source.count(self.before)} times "
                             f"in {self.function} of {self.op}, not once; adapt {self.op}.toml to the source")
        return source.replace(self.before, self.after)


def bugs(op: str | None = None) -> list[Bug]:
    """The bugs of an op, or of all ops; in the order of the files.

    Raises ValueError if the catalogue does not have the op.

    >>> from pyllama.testing.catalogue import bugs
    >>> len(bugs()) > len(bugs("softmax")) > 0
    True
    """
    known = sorted(path.stem for path in FOLDER.glob("*.toml"))
    if op is None:
        return [bug for name in known for bug in bugs(name)]
    if op not in known:
        raise ValueError(f"the catalogue has no op {op!r}; choose among {', '.join(known)}")
    tables = tomllib.loads((FOLDER / f"{op}.toml").read_text("utf-8"))
    return [Bug(name, op, **with_tuples(table)) for name, table in tables.items()]


def with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


@contextlib.contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Within this context the op has the bug, in every thread; its kernels are off, so the patched reference runs.

    The bug is put into the function object itself, so every module that imported it has the bug, too.

    Raises ValueError if the patch does not apply to the source, or if the op has a bug already.

    >>> import numpy as np
    >>> from pyllama.ops import tanh
    >>> from pyllama.testing.catalogue import bugs, planted
    >>> with planted(bugs("tanh")[0]):
    ...     y, back = tanh(np.array([0.0, 1.0]))
    ...     dx, = back(np.ones(2))
    >>> dx.round(4)                                 # right: 1 and 0.42
    array([1.    , 0.2384])
    """
    if bug.op in _planted:
        raise ValueError(f"{bug} cannot be planted: the op has the bug {_planted[bug.op]} already; leave that first")
    module = module_of(bug.op)
    op, function = getattr(module, bug.op), getattr(module, bug.function)
    right, kernels = copied(function), op.has_kernels
    plant(function, bug.code)
    _planted[bug.op], op.has_kernels = bug.name, False
    try:
        yield
    finally:
        transplant(right, function)
        op.has_kernels = kernels
        del _planted[bug.op]


def module_of(op: str) -> ModuleType:
    importlib.import_module("pyllama.ops")                  # registers all: a module alone would meet a half-made one
    return importlib.import_module(f"pyllama.ops.{op}")


@functools.cache                                            # files do not change while the catalogue is used
def original(module: ModuleType, function: str) -> str:
    """The source of a function as it stands in the file, whatever is planted."""
    text = Path(str(module.__file__)).read_text("utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return str(ast.get_source_segment(text, node)) + "\n"
    raise ValueError(f"{module.__name__} has no function {function!r}; the catalogue names one that does not exist")
