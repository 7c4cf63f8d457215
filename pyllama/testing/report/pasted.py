"""A call of gradcheck as Python to paste: imports, arrays as short literals, the call."""
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pyllama.testing.trees import branches

WIDTH = 120


def as_python(function: str | Callable, named: dict[str, Any], options: dict[str, Any] | None = None) -> str:
    """Python to paste: imports, the arrays with their exact numbers and dtypes, and the call of gradcheck.

    function    "module:function", "file.py:function", a name that the reader has to define, or the function itself;
                it may be a functools.partial
    named       the inputs by name: arrays, numbers or trees of these
    options     keywords of gradcheck; a function among them is imported, too

    >>> import numpy as np
    >>> from pyllama.testing.report.pasted import as_python
    >>> print(as_python("pyllama.ops:tanh", {"x": np.array([0.5, 1.0])}, {"seed": 3}))
    import numpy as np
    from pyllama.ops import tanh
    from pyllama.testing import gradcheck
    <BLANKLINE>
    x = np.array([0.5, 1.0])
    gradcheck(tanh, [x], seed=3)
    """
    imports, called = imported(function) if isinstance(function, str) else of_callable(function)
    for cls in {cls for tree in named.values() for cls in classes(tree)}:
        imports |= of_callable(cls)[0]
    words = {}
    for key, value in (options or {}).items():
        if callable(value):
            more, words[key] = of_callable(value, key)
            imports |= more
        else:
            words[key] = repr(value)
    names = {name: identifier(name) for name in named}
    lines = [f"{names[name]} = {literal(tree, len(names[name]) + 3)}" for name, tree in named.items()]
    if any("ml_dtypes." in line for line in lines):
        imports.add("import ml_dtypes")
    arguments = [f"[{', '.join(names.values())}]", *(f"{key}={value}" for key, value in words.items())]
    imports |= {"import numpy as np", "from pyllama.testing import gradcheck"}
    return "\n".join([*grouped_lines(imports), "", *lines, f"gradcheck({', '.join([called, *arguments])})"])


def grouped_lines(imports: set[str]) -> list[str]:
    """The lines in the usual order: import, from, all others; a line for each module."""
    modules: dict[str, list[str]] = {}
    for line in sorted(line for line in imports if line.startswith("from ")):
        module, _, name = line.removeprefix("from ").partition(" import ")
        modules.setdefault(module, []).append(name)
    others = sorted(line for line in imports if not line.startswith(("from ", "import ")))
    return [*sorted(line for line in imports if line.startswith("import ")),
            *(f"from {module} import {', '.join(names)}" for module, names in modules.items()), *others]


def of_callable(function: Callable, nameless: str = "f") -> tuple[set[str], str]:
    """(lines that import the function or class, an expression for it).  A lambda gets the name `nameless`."""
    if isinstance(function, functools.partial):
        imports, name = of_callable(function.func, nameless)
        if not function.args and not function.keywords:
            return imports, name
        bound = [*map(written, function.args), *(f"{key}={written(x)}" for key, x in function.keywords.items())]
        return imports | {"import functools"}, f"functools.partial({', '.join([name, *bound])})"
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):                         # apply of a torch.autograd.Function
        imports, name = of_callable(owner)
        return imports, f"{name}.{function.__name__}"
    name = str(getattr(function, "__qualname__", None) or getattr(function, "name", nameless))
    if getattr(function, "has_kernels", False):         # an op, which is an object; ours have a name in pyllama.ops
        return imported(f"pyllama.ops:{name}")
    alone = hasattr(function, "__qualname__") and not inspect.ismethod(function)    # not part of an object
    module = (getattr(function, "__module__", None) or "") if alone else ""
    return imported(f"{module}:{name}" if module else name.rpartition(".")[2], nameless)


def written(value: Any) -> str:
    """A value that is bound to a function, as Python."""
    return of_array(value, WIDTH // 2) if isinstance(value, np.ndarray) else repr(value)


def imported(function: str, nameless: str = "f") -> tuple[set[str], str]:
    """(lines that import the function, its name there)."""
    module, _, name = function.rpartition(":")
    root, *inner = name.split(".")
    if not name.replace(".", "").isidentifier() or module == "__main__":
        last = name.rpartition(".")[2]
        clean = last if last.isidentifier() else nameless
        return {f"# {clean} cannot be imported; define it first"}, clean
    if module.endswith(".py"):
        return {"import runpy", f"{root} = runpy.run_path({module!r})[{root!r}]"}, ".".join([root, *inner])
    if not module:
        return {f"# {name} cannot be imported; define it first"}, name
    return {f"from {module} import {root}"}, ".".join([root, *inner])


def identifier(name: str) -> str:
    """The name as one of Python: "input 0" is x0."""
    name = re.sub(r"^input (\d+)", r"x\1", name)
    return name if name.isidentifier() else "x_" + re.sub(r"\W+", "_", name)


def classes(tree: Any) -> Iterator[type]:
    """The dataclasses and the named tuples of a tree."""
    if dataclasses.is_dataclass(tree) or hasattr(tree, "_fields"):
        yield type(tree)
    for _, branch in branches(tree) or ():
        yield from classes(branch)


def literal(tree: Any, indent: int = 0) -> str:
    """An array, a number or a tree as Python."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {literal(branch, indent)}" for key, branch in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(literal(branch, indent) for branch in tree) + "]"
    if dataclasses.is_dataclass(tree) or hasattr(tree, "_fields"):
        return of_fields(tree, indent)
    if isinstance(tree, tuple):
        return "(" + ", ".join(literal(branch, indent) for branch in tree) + "," * (len(tree) == 1) + ")"
    if tree is None or isinstance(tree, int):
        return repr(tree)
    if isinstance(tree, float | np.generic):
        value = np.asarray(tree)[()]
        return number(value) if isinstance(tree, float) else f"{dtype_of(value)}({number(value)})"
    return of_array(np.asarray(tree), indent)


def of_fields(tree: Any, indent: int) -> str:
    """A dataclass or a named tuple as a call of its class."""
    names = tree._fields if hasattr(tree, "_fields") else [each.name for each in dataclasses.fields(tree) if each.init]
    fields = [f"{name}={literal(getattr(tree, name), indent)}" for name in names]
    return f"{of_callable(type(tree))[1]}({', '.join(fields)})"


def of_array(x: np.ndarray, indent: int) -> str:
    """An array as a call of np.array or np.zeros."""
    dtype = f", dtype={dtype_of(x)}" if x.dtype.name not in ("float64", "int64", "bool") or not x.size else ""
    if not x.size:
        return f"np.zeros({x.shape}{dtype})"
    if x.size > 8 and (x == x.flat[0]).all() and number(x.flat[0]) in ("0.0", "1.0", "0", "1"):
        kind = "ones" if x.flat[0] else "zeros"
        return f"np.{kind}({x.shape}, dtype={dtype_of(x)})"
    return f"np.array({nested(x, indent + len('np.array('))}{dtype})"


def dtype_of(x: np.ndarray | np.generic) -> str:
    return f"ml_dtypes.{x.dtype.name}" if x.dtype.kind == "V" else f"np.{x.dtype.name}"


def nested(x: np.ndarray, indent: int) -> str:
    """Nested lists of the numbers, a row a line if they do not fit on one."""
    if not x.ndim:
        return number(x[()])
    parts = [nested(part, indent + 1) for part in x]
    flat = f"[{', '.join(parts)}]"
    if indent + len(flat) + 20 <= WIDTH:
        return flat
    if x.ndim > 1:
        return "[" + (",\n" + " " * (indent + 1)).join(parts) + "]"
    lines = [""]
    for part in parts:
        if indent + len(lines[-1]) + len(part) + 22 > WIDTH:
            lines.append("")
        lines[-1] += part + ", "
    return "[" + ("\n" + " " * (indent + 1)).join(line.rstrip() for line in lines).rstrip(",") + "]"


def number(value: Any) -> str:
    """The number with as many digits as its precision needs."""
    if value.dtype.kind in "iub":
        return repr(value.item())
    wide = float(value)
    if wide != wide or abs(wide) == float("inf"):
        return {"nan": "np.nan", "inf": "np.inf", "-inf": "-np.inf"}[str(wide)]
    brief = repr(float(str(value)))
    return brief if type(value)(float(brief)) == value else repr(wide)
