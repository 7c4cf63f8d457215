"""The smallest call of an op at which a function is wrong, and that call as Python to paste.

The axes are made shorter first, by their letters in the shape line, because arrays share them.  Options get their
defaults, arrays an ordinary layout, and numbers become 0, 1, ½ or eighths, wherever the function stays wrong.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyllama.shapes import Array
from pyllama.testing.layouts import LAYOUTS
from pyllama.testing.report import smallest as smaller
from pyllama.testing.report.pasted import literal
from pyllama.testing.trees import is_float


@dataclass(frozen=True)
class Call:
    """A call of an op, and the gradients of its outputs.

    declared        the inputs and then the outputs that the arrays are of
    arrays          the inputs, None for one left out, and then one dy for each output
    sizes           {axis: length}; "..." has the tuple of leading lengths
    layouts         the layout of each array: see layouts.py
    defaults        options to try instead of those given
    """
    declared: tuple[Array, ...]
    arrays: tuple[np.ndarray | None, ...]
    outputs: int
    options: dict[str, Any]
    sizes: dict[Any, Any]
    layouts: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self):
        return [laid_out(x, how) for x, how in zip(self.arrays, self.layouts, strict=True)][:-self.outputs]

    @property
    def dys(self):
        return [laid_out(x, how) for x, how in zip(self.arrays, self.layouts, strict=True)][-self.outputs:]

    @property
    def dtype(self):
        """Of the floating arrays."""
        return next(x.dtype for x in self.arrays if x is not None and is_float(x))

    def named(self) -> Iterator[tuple[str, np.ndarray | None, str]]:
        """(name, array, layout) of each input, in order, then of each dy."""
        for place, (declared, x, how) in enumerate(zip(self.declared, self.arrays, self.layouts, strict=True)):
            yield declared.name if place < len(self.arrays) - self.outputs else f"d{declared.name}", x, how


def laid_out(x, how):
    return None if x is None else LAYOUTS[how](x)


def smallest(fails: Callable[[Call], bool], call: Call) -> Call:
    """The smallest call found for which fails(call) is true, as it is for the given one."""
    for simpler in (shorter, plainer):
        while found := next(filter(fails, simpler(call)), None):
            call = found
    return simplified(fails, call)


def shorter(call: Call) -> Iterator[Call]:
    """Calls with fewer or shorter axes, the smallest first."""
    leading = call.sizes.get("...", ())
    for kept in (leading[:0], leading[-1:]):
        if len(kept) < len(leading) and 0 not in leading:
            yield resized(call, call.sizes | {"...": kept})
    for place, n in enumerate(leading):
        for less in lengths(n):
            yield resized(call, call.sizes | {"...": (*leading[:place], less, *leading[place + 1:])})
    for axis, n in call.sizes.items():
        if isinstance(axis, str) and axis != "...":
            for less in lengths(n):
                yield resized(call, call.sizes | {axis: less})
    for place, (declared, x) in enumerate(zip(call.declared, call.arrays, strict=True)):
        if declared.optional and x is not None:
            yield replace(call, arrays=put(call.arrays, place, None))


def lengths(n: int) -> list[int]:
    """Lengths to try instead of n."""
    return sorted({m for m in (1, 2, 3, n // 2, n - 1) if 0 < m < n})


def resized(call: Call, sizes: dict) -> Call:
    """The call with each array cut to these sizes; ids keep below their bounds."""
    def cut(declared, x):
        if x is None:
            return None
        shape = shape_of(declared, x, call.sizes, sizes)
        while x.ndim > len(shape):
            x = x[0]
        x = x[tuple(slice(n) for n in shape)].copy()
        bound = sizes.get(declared.below)
        return np.where(x >= bound, x % bound, x) if bound else x

    return replace(call, sizes=sizes, arrays=tuple(map(cut, call.declared, call.arrays)))


def shape_of(declared: Array, x: np.ndarray, before: dict, after: dict) -> list[int]:
    """The shape of x after the sizes of its axes have changed."""
    shape: list[int] = []
    old = list(x.shape)
    absent = sum(axis != "..." for axis in declared.axes) + len(before.get("...", ())) * ("..." in declared.axes) \
        > x.ndim
    for axis in declared.axes:
        if axis == "...":
            shape += after["..."]
            del old[:len(before["..."])]
            continue
        if axis.endswith("?") and absent:
            continue
        n = old.pop(0)
        product = np.prod([int(f) if f.isdigit() else after[f] for f in axis.rstrip("?").removesuffix("|1").split("*")])
        shape.append(1 if axis.endswith("|1") and n == 1 else int(product))
    return shape


def plainer(call: Call) -> Iterator[Call]:
    """Calls with the default of one option more, or one array less in an unusual layout."""
    for name, value in call.defaults.items():
        if call.options[name] != value:
            yield replace(call, options=call.options | {name: value})
    for place, how in enumerate(call.layouts):
        if how != "C":
            yield replace(call, layouts=put(call.layouts, place, "C"))


def simplified(fails: Callable[[Call], bool], call: Call) -> Call:
    """The call with the simplest numbers."""
    shapes = shapes_of(call.arrays)

    def fails_with(arrays):
        return shapes_of(arrays) == shapes and fails(replace(call, arrays=tuple(arrays)))

    return replace(call, arrays=tuple(smaller.smallest(fails_with, list(call.arrays))))


def shapes_of(arrays):
    return [None if x is None else x.shape for x in arrays]


def put(values: tuple, place: int, value) -> tuple:
    return (*values[:place], value, *values[place + 1:])


def as_python(call: Call, imports: list[str], statements: list[str]) -> str:
    """The call as Python to paste: imports, the arrays by name, statements."""
    arrays = {name: (x, how) for name, x, how in call.named() if x is not None}
    lines = [f"{name} = {literal(x, len(name) + 3)}" if how == "C" else
             f"{name} = LAYOUTS[{how!r}]({literal(x, len(name) + len(how) + 14)})" for name, (x, how) in arrays.items()]
    if any(how != "C" for _, how in arrays.values()):
        imports = [imports[0], "from pyllama.testing.layouts import LAYOUTS", *imports[1:]]
    if any("ml_dtypes." in line for line in lines):
        imports = ["import ml_dtypes", *imports]
    return "\n".join(["import numpy as np", *imports, *lines, *statements])
