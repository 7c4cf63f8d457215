"""A call of gradcheck as Python to paste: imports, arrays as short literals, the call."""
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

WIDTH = 120


def as_python(function: str | Callable, named: dict[str, np.ndarray], options: dict[str, Any] | None = None) -> str:
    """Python to paste: imports, the arrays with their exact numbers and dtypes, and the call of gradcheck.

    function    "module:function", "file.py:function", a name that the reader has to define, or the function itself;
                it may be a functools.partial
    named       the leaves by name; "input 1 at layers.0.weight" is a leaf of a tree
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
    trees = grouped(named)
    words = {}
    for key, value in (options or {}).items():
        if callable(value):
            more, words[key] = of_callable(value)
            imports |= more
        else:
            words[key] = repr(value)
    names = {name: identifier(name) for name in trees}
    lines = [f"{names[name]} = {literal(tree, len(names[name]) + 3)}" for name, tree in trees.items()]
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


def of_callable(function: Callable) -> tuple[set[str], str]:
    """(lines that import the function, an expression that is the function)."""
    if isinstance(function, functools.partial):
        imports, name = of_callable(function.func)
        bound = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in function.keywords.items())]
        return imports | {"import functools"}, f"functools.partial({', '.join([name, *bound])})"
    module = getattr(function, "__module__", None) or ""
    name = str(getattr(function, "__qualname__", None) or getattr(function, "name", "f"))
    if hasattr(function, "has_kernels"):                # an op, which is an object; ours have a name in pyllama.ops
        module = "pyllama.ops" if function.has_kernels else ""
    return imported(f"{module}:{name}" if module else name)


def imported(function: str) -> tuple[set[str], str]:
    """(lines that import the function, its name there)."""
    module, _, name = function.rpartition(":")
    root, *inner = name.split(".")
    if not name.replace(".", "").isidentifier() or module == "__main__":
        last = name.rpartition(".")[2]
        clean = last if last.isidentifier() else "f"
        return {f"# {clean} is the function that was checked; define it first"}, clean
    if module.endswith(".py"):
        return {"import runpy", f"{root} = runpy.run_path({module!r})[{root!r}]"}, ".".join([root, *inner])
    if not module:
        return {f"# {name} is the function that was checked; define it first"}, name
    return {f"from {module} import {root}"}, ".".join([root, *inner])


def identifier(name: str) -> str:
    """The name as one of Python: "input 0" is x0."""
    name = re.sub(r"^input (\d+)", r"x\1", name)
    return name if name.isidentifier() else "x_" + re.sub(r"\W+", "_", name)


def grouped(named: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inputs: an array, or a tree of dicts and lists for names with " at "."""
    trees: dict[str, Any] = {}
    for full, x in named.items():
        name, _, path = full.partition(" at ")
        if not path:
            trees[name] = x
            continue
        branch = trees.setdefault(name, {})
        *above, last = path.split(".")
        for key in above:
            branch = branch.setdefault(key, {})
        branch[last] = x
    return {name: with_lists(tree) for name, tree in trees.items()}


def with_lists(tree: Any) -> Any:
    """A dict with the keys 0, 1, 2, ... as a list."""
    if not isinstance(tree, dict):
        return tree
    branches = {key: with_lists(branch) for key, branch in tree.items()}
    return [*branches.values()] if [*branches] == [str(i) for i in range(len(branches))] else branches


def literal(tree: Any, indent: int = 0) -> str:
    """An array or a tree as Python."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {literal(branch, indent)}" for key, branch in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(literal(branch, indent) for branch in tree) + "]"
    return "None" if tree is None else of_array(np.asarray(tree), indent)


def of_array(x: np.ndarray, indent: int) -> str:
    """An array as a call of np.array or np.zeros."""
    dtype = f", dtype={dtype_of(x)}" if x.dtype.name not in ("float64", "int64", "bool") or not x.size else ""
    if not x.size:
        return f"np.zeros({x.shape}{dtype})"
    if x.size > 8 and (x == x.flat[0]).all() and number(x.flat[0]) in ("0.0", "1.0", "0", "1"):
        kind = "ones" if x.flat[0] else "zeros"
        return f"np.{kind}({x.shape}, dtype={dtype_of(x)})"
    return f"np.array({nested(x, indent + len('np.array('))}{dtype})"


def dtype_of(x: np.ndarray) -> str:
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
