"""What a shape line promises of the outputs: how many there are, their shapes, their precision."""
from typing import Any

import numpy as np

from pyllama import shapes
from pyllama.errors import counted
from pyllama.testing.report import Fault
from pyllama.testing.trees import is_float

PROMISES = {"another number of outputs", "another shape", "another dtype"}                   # the kinds of the faults


def broken(name: str, declared: tuple, inputs: list, y: Any) -> tuple[Fault, ...]:
    """The promises of a shape line that a result breaks.

    name        of the function
    declared    (inputs, outputs) of the line, as shapes.parse() returns them
    inputs      arrays in the line's order; None for an optional one that is left out
    y           what the function returned: an array, a number, or a tuple of these

    >>> import numpy as np
    >>> from pyllama.shapes import parse
    >>> from pyllama.testing.promised import broken
    >>> x = np.ones((2, 3))
    >>> fault, = broken("total", parse("x[N D] -> y[N D]"), [x], x.sum(0))
    >>> fault.sentence
    'y has shape (3,), the line says y[N D] = (2, 3)'
    """
    wanted, sizes = declared[1], {}                         # type: ignore[var-annotated]
    outputs = y if isinstance(y, tuple) else (y,)
    if len(outputs) != len(wanted):
        said = ", ".join(map(str, wanted))
        return (Fault("another number of outputs",
                      f"{name} returns {counted(len(outputs), 'output')}, the line says {said}"),)
    for given, x in zip(declared[0], inputs, strict=True):
        if x is not None:
            shapes.fits(given.axes, x.shape, sizes)
    precisions = {x.dtype for x in inputs if is_float(x)}
    faults = []
    for output, a in zip(wanted, outputs, strict=True):
        if not shapes.fits(output.axes, np.shape(a), sizes):
            faults.append(Fault("another shape", f"{output.name} has shape {np.shape(a)}, the line says {output}"
                                                 f"{in_numbers(output.axes, sizes)}"))
        if is_float(a) and len(precisions) == 1 and a.dtype not in precisions:
            faults.append(Fault("another dtype", f"{output.name} is {a.dtype} for inputs of {min(precisions)}; return "
                                                 f"that precision"))
    return tuple(faults)


def in_numbers(axes: tuple[str, ...], sizes: dict) -> str:
    """" = (2, 3)": the shape that the axes have with these sizes; "" if that is not certain."""
    shape: list[int] = []
    for axis in axes:
        factors = [int(f) if f.isdigit() else sizes.get(f) for f in axis.split("*")]
        if axis == "..." and axis in sizes:
            shape += sizes[axis]
        elif any(not isinstance(f, int) for f in factors):
            return ""
        else:
            shape.append(int(np.prod(factors)))             # type: ignore[arg-type]
    return f" = {tuple(shape)}"
