"""C functions as functions of NumPy arrays, by their declarations.

    void scale(const double x[N][D], const double w[D], double y[N][D], long N, long D, double factor)

C's own declaration says it all, in C99's variable-length form: const arrays are inputs, the other arrays are outputs
(allocated here), integers that are named like a dimension are sizes, other numbers are inputs or bound by name.
"""
import ctypes
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

C_TYPES: dict[str, Any] = {
    "double": ctypes.c_double, "float": ctypes.c_float,
    "char": ctypes.c_char, "int": ctypes.c_int, "unsigned": ctypes.c_uint, "long": ctypes.c_long,
    "size_t": ctypes.c_size_t, "ssize_t": ctypes.c_ssize_t, "ptrdiff_t": ctypes.c_ssize_t,
    "int8_t": ctypes.c_int8, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64,
    "uint8_t": ctypes.c_uint8, "uint32_t": ctypes.c_uint32, "uint64_t": ctypes.c_uint64,
}
GUARD = 64                                          # numbers before and behind an output that must stay as they are
PARAMETER = re.compile(r"(?P<const>const )?(?P<type>\w+) (?P<name>\w+) ?(?P<sizes>(\[\w+\])*)")
EXAMPLE = "'const double x[N][D], double y[N][D], long N, long D'"


class Parameter(NamedTuple):
    """A parameter of a C function.

    role    "input", "output" or "size"
    sizes   names of dimensions or numbers; empty for a number
    """
    name: str
    c_type: Any
    role: str
    sizes: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.c_type)


def c_function(function: Any, declaration: str, fill: float = np.nan, **bound: float) -> Callable:
    """A C function, called through ctypes, as a function of NumPy arrays that returns its outputs.

    function      of a library that ctypes.CDLL loaded
    declaration   its parameters as C declares them, such as "const double x[N], double y[N], long N"
    fill          what outputs hold before the call: 0.0 for a function that adds to them.  A number that the function
                  forgets to write is then NaN, and the check says so
    bound         values of numbers, such as eps=1e-5; numbers without one are inputs

    The result takes its inputs in the order of the declaration: arrays of the declared shape in any layout (those that
    are not contiguous are copied), and Python numbers.  It returns an array, or a tuple of them.

    Raises ValueError for a declaration that it cannot read, and when called for shapes that do not fit it, or if the
    function wrote outside an output; TypeError for arrays of another precision.

    >>> import ctypes, numpy as np
    >>> from pyllama.testing import c_function
    >>> declaration = "void memcpy(double y[N], const double x[N], size_t bytes)"
    >>> copy = c_function(ctypes.CDLL(None).memcpy, declaration, bytes=16)
    >>> copy(np.array([1.0, 2.0]))
    array([1., 2.])
    """
    name = getattr(function, "__name__", "the C function")
    parameters = parsed(declaration, bound)
    inputs = [p for p in parameters if p.role == "input" and p.name not in bound]

    def call(*values):
        if len(values) != len(inputs):
            raise TypeError(f"{name} takes {', '.join(p.name for p in inputs)}: give {len(inputs)} inputs, not "
                            f"{len(values)}")
        arrays = {p.name: fitting(name, p, value) for p, value in zip(inputs, values, strict=True)}
        sizes = measured(name, inputs, arrays)
        rooms = {p.name: room(p, sizes, fill) for p in parameters if p.role == "output"}
        before = {key: whole.tobytes() for key, (whole, _) in rooms.items()}
        passed = bound | sizes | arrays | {key: y for key, (_, y) in rooms.items()}
        function.restype = None
        function(*(argument(p, passed[p.name]) for p in parameters))
        for key, (whole, y) in rooms.items():
            require_guards(name, key, before[key], whole, y)
        results = tuple(y for _, y in rooms.values())
        return results if len(results) > 1 else results[0]

    call.__name__ = call.__qualname__ = name
    call.__module__ = ""                                                    # it cannot be imported from here
    call.__signature__ = signature(inputs)                                  # type: ignore[attr-defined]
    return call


def signature(inputs: list[Parameter]) -> inspect.Signature:
    return inspect.Signature([inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_ONLY) for p in inputs])


def parsed(declaration: str, bound: dict) -> list[Parameter]:
    """The parameters of a declaration; the function's name and parentheses may stand around them."""
    text = declaration.strip().removesuffix(";").rstrip()
    text = text.partition("(")[2].removesuffix(")") if "(" in text else text
    text = re.sub(r"\b(restrict|static)\b|\blong (?=long\b|int\b)|\bunsigned (?=int\b)", "", text)
    found = [PARAMETER.fullmatch(" ".join(part.split())) for part in text.split(",")]
    for part, match in zip(text.split(","), found, strict=True):
        if not match or match["type"] not in C_TYPES:
            raise ValueError(f"{part.strip()!r} is not a parameter with a type of C and sizes in brackets; write it "
                             f"like {EXAMPLE}")
    matches = [match for match in found if match]
    dimensions = {size for match in matches for size in sizes(match)}
    parameters = [Parameter(m["name"], C_TYPES[m["type"]], role(m, dimensions), sizes(m)) for m in matches]
    if unknown := bound.keys() - {p.name for p in parameters} - dimensions:
        raise ValueError(f"{min(unknown)} is bound, but it is not in the declaration; check its name")
    known = {size for p in parameters if p.role == "input" for size in p.sizes} | bound.keys()
    for p in parameters:
        if missing := [size for size in p.sizes if not size.isdigit() and size not in known]:
            raise ValueError(f"the size {missing[0]} of {p.name} is not a size of an input; give it by name, such as "
                             f"{missing[0]}=4")
    if not any(p.role == "output" for p in parameters):
        raise ValueError(f"the declaration has no output, which is an array without const; write it like {EXAMPLE}")
    return parameters


def sizes(match: re.Match) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", match["sizes"]))


def role(match: re.Match, dimensions: set) -> str:
    if match["sizes"]:
        return "input" if match["const"] else "output"
    return "size" if match["name"] in dimensions else "input"


def fitting(name: str, p: Parameter, value: Any) -> Any:
    """A contiguous array of the declared dtype; a number as it is."""
    if not p.sizes:
        return value
    x = np.asarray(value)
    if x.dtype != p.dtype:
        raise TypeError(f"{name} takes {p.name} as {p.dtype}, not {x.dtype}; convert it")
    if x.ndim != len(p.sizes):
        raise ValueError(f"{name} takes {p.name}[{']['.join(p.sizes)}], not an array of shape {x.shape}")
    return np.asarray(x, order="C")


def measured(name: str, inputs: list[Parameter], arrays: dict) -> dict[str, int]:
    """The sizes by name.  Raises ValueError if two arrays disagree."""
    lengths: dict[str, int] = {}
    for p in inputs:
        for size, length in zip(p.sizes, np.shape(arrays[p.name]), strict=True):
            if length != int(lengths.setdefault(size, int(size) if size.isdigit() else length)):
                raise ValueError(f"{p.name} of {name} has the size {length} where {size} is {lengths[size]}; give "
                                 f"arrays that fit the declaration")
    return lengths


def room(p: Parameter, sizes: dict[str, int], fill: float) -> tuple[np.ndarray, np.ndarray]:
    """An array for an output: (with its guards, without)."""
    shape = tuple(int(size) if size.isdigit() else sizes[size] for size in p.sizes)
    count = int(np.prod(shape))
    start = fill if p.dtype.kind == "f" else np.iinfo(p.dtype).min if np.isnan(fill) else int(fill)
    whole = np.full(count + 2 * GUARD, start, p.dtype)
    return whole, whole[GUARD:GUARD + count].reshape(shape)


def require_guards(name: str, key: str, before: bytes, whole: np.ndarray, y: np.ndarray) -> None:
    """Raise ValueError if the function wrote before or behind an output."""
    edge = GUARD * whole.itemsize
    after = whole.tobytes()
    if before[:edge] != after[:edge] or before[-edge:] != after[-edge:]:
        raise ValueError(f"{name} writes outside {key}, which has the shape {y.shape}; check its loops and the order "
                         f"of its sizes")


def argument(p: Parameter, value: Any) -> Any:
    """What ctypes passes for a parameter."""
    if not p.sizes:
        return p.c_type(int(value) if p.dtype.kind in "iu" else value)
    return ctypes.c_void_p(value.ctypes.data)
