"""What the adapters share: trees of arguments, and which of their leaves are differentiated."""
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Adapted(NamedTuple):
    """A function of another library as a function of NumPy arrays.

    f         y, back = f(*inputs); the arrays may have any precision, and may be complex
    inputs    the arrays that f takes: one for each leaf that is an array, floating or of integers
    names     of the inputs, such as "x" or "params at weight"
    jvp       jvp(inputs, tangents) is the tangent of y; None if the library cannot tell
    notes     what the reader of a report should know; filled while f and back run
    """
    f: Callable
    inputs: list[np.ndarray]
    names: list[str]
    jvp: Callable | None
    notes: list[str]


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for each leaf of dicts, lists, tuples and dataclasses."""
    branches = parts(tree)
    if branches is None:
        yield path, tree
    else:
        for key, branch in branches.items():
            yield from leaves(branch, f"{path}.{key}" if path else str(key))


def rebuilt(tree: Any, new: Iterator) -> Any:
    """The tree with its leaves taken from `new`, in the order of leaves()."""
    branches = parts(tree)
    if branches is None:
        return next(new)
    values = {key: rebuilt(branch, new) for key, branch in branches.items()}
    if isinstance(tree, dict):
        return values
    if dataclasses.is_dataclass(tree):
        return dataclasses.replace(tree, **values)                          # type: ignore[type-var]
    return type(tree)(*values.values()) if hasattr(tree, "_fields") else type(tree)(values.values())


def parts(tree: Any) -> dict | None:
    """The branches of a tree by key; None for a leaf."""
    if isinstance(tree, dict):
        return tree
    if isinstance(tree, list | tuple):
        return dict(enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return None


def named(func: Callable, inputs: list) -> list[str]:
    """The name of each leaf of the inputs: that of func's parameter, or "input 0", and the path within it."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        known = [p.name for p in inspect.signature(func).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        known = []
    outer = [known[i] if i < len(known) else f"input {i}" for i in range(len(inputs))]
    return [f"{name} at {path}" if path else name
            for name, tree in zip(outer, inputs, strict=True) for path, _ in leaves(tree)]


def form(outputs: list, single: bool) -> Any:
    """One output alone, several as a tuple."""
    return outputs[0] if single and len(outputs) == 1 else tuple(outputs)
