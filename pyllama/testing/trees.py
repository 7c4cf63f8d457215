"""Inputs and outputs as trees: dicts, lists, tuples and dataclasses, whose leaves are arrays and numbers.

A leaf that is a Python or NumPy number is computed with as a 0-d array, and handed to the function as what it was.
"""
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np


def is_float(x: Any) -> bool:
    """Is x an array of floating numbers?  bfloat16 is one, though its kind is not "f"."""
    return isinstance(x, np.ndarray | np.generic) and (x.dtype.kind == "f" or "float" in x.dtype.name)


def in_float64(arrays: Iterable, dtype: Any = np.float64) -> list:
    """The floating arrays in float64 or another precision, the others as they are."""
    return [np.asarray(a, dtype) if is_float(a) else a for a in arrays]


def copies(arrays: Iterable) -> list:
    return [None if x is None else np.array(x) for x in arrays]


def in_precision(function: Callable, arrays: list, dtype: Any = np.float64) -> tuple[list, Exception | None]:
    """(the arrays in float64 or another precision, None); (as given, why not) if the function refuses that."""
    wide = in_float64(arrays, dtype)
    try:
        function(copies(wide))
    except Exception as error:
        return arrays, error
    return wide, None


def branches(tree: Any) -> list[tuple[str, Any]] | None:
    """[(key, branch), ...], or None for a leaf."""
    if isinstance(tree, dict):
        return [(str(key), branch) for key, branch in tree.items()]
    if isinstance(tree, list | tuple):
        return [(str(i), branch) for i, branch in enumerate(tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return None


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, leaf) in the order of the tree.

    >>> from pyllama.testing.trees import leaves
    >>> list(leaves({"norm": {"weight": 1.0}, "layers": [2.0, 3.0]}))
    [('norm.weight', 1.0), ('layers.0', 2.0), ('layers.1', 3.0)]
    """
    below = branches(tree)
    if below is None:
        yield path, tree
        return
    for key, branch in below:
        yield from leaves(branch, f"{path}.{key}" if path else key)


def rebuild(tree: Any, values: Iterator) -> Any:
    """A tree of the same structure, whose leaves are taken from the iterator `values` in the order of leaves()."""
    if isinstance(tree, dict):
        twin = copy.copy(tree)                                               # it may be a defaultdict
        twin.update({key: rebuild(branch, values) for key, branch in tree.items()})
        return twin
    if isinstance(tree, list):
        return [rebuild(branch, values) for branch in tree]
    if isinstance(tree, tuple):
        parts = [rebuild(branch, values) for branch in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if branches(tree) is None:
        return next(values)
    twin = copy.copy(tree)
    for key, branch in branches(tree) or []:
        object.__setattr__(twin, key, rebuild(branch, values))               # it may be frozen
    return twin


def mapped(f: Callable, tree: Any) -> Any:
    """The tree with f of each leaf."""
    return rebuild(tree, (f(leaf) for _, leaf in leaves(tree)))


def as_given(like: Any, x: Any) -> Any:
    """The array x in the form of `like`: a Python number, a NumPy number or an array."""
    if isinstance(like, int | float | np.generic) and isinstance(x, np.ndarray):
        return x[()] if isinstance(like, np.generic) else x.item()
    return x
