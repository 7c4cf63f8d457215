"""A plan as csrc/cpu/decode.c runs it: its buffers, and every step as the numbers and addresses that it needs."""
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllama import backend
from pyllama.decode.plan import SCORES, Attend, Cross, Embed, Norm, Normalize, Pick, Plan, Product, Step, written
from pyllama.quantization import EncodedArray, decoded_tree

ROWS = 512                                  # tokens that pass through a plan at a time
NO_WINDOW = 2 ** 62


def compiled(plan: Plan, dtype: Any) -> Any:
    """The pyllama.cpu.Machine of a plan in this precision, float32 or float64.

    Raises ValueError if an array is not of the shape that a step reads.
    """
    check(plan)
    like = np.empty(0, dtype)
    buffers = buffers_of(plan, dtype)
    widest = max(matrix.weight.shape[1] for step in plan.steps if isinstance(step, Product) for matrix in step.matrices)
    steps = [dict(fields(step, buffers, np.dtype(dtype))) for step in plan.steps]
    return backend.cpu.Machine(steps, like, ROWS, widest, plan.attention[0].width, plan.vocabulary)


def buffers_of(plan: Plan, dtype: Any) -> dict[str, np.ndarray]:
    """The buffers [ROWS columns] of a plan; a group shares memory."""
    buffers: dict[str, np.ndarray] = {}
    for group in plan.groups:
        memory = np.empty(ROWS * max(plan.widths[name] for name in group), dtype)
        buffers |= {name: memory[:ROWS * plan.widths[name]].reshape(ROWS, -1) for name in group}
    return buffers


def check(plan: Plan) -> None:
    """Raise ValueError if an array or a buffer is not of the shape that a step reads: C would read past its end."""
    widths = plan.widths | {SCORES: plan.vocabulary}
    for step in plan.steps:
        for name, columns in (*written(step, widths), *read(step, widths)):
            if widths[name] != columns:
                raise ValueError(f"{name} has {widths[name]} columns, but a {type(step).__name__} has {columns}")
        for name, array, shape in arrays(step, widths, plan):
            if np.shape(array) != shape:
                raise ValueError(f"{name} has the shape {np.shape(array)}, but its plan needs {shape}")


def read(step: Step, widths: dict[str, int]) -> Iterator[tuple[str, int]]:
    """(buffer, columns) that attention reads."""
    if isinstance(step, Attend):
        yield step.read, (step.heads + 2 * step.groups) * step.width
    if isinstance(step, Cross):
        yield step.read, step.heads * step.width


def arrays(step: Step, widths: dict[str, int], plan: Plan) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """(name, array, the shape it must have) of the parameters of a step.  There may be any number of positions."""
    if isinstance(step, Embed):
        yield step.table.name, step.table.weight, (plan.vocabulary, widths[step.to])
        positions = plan.tables(1, np.float32).positions
        if positions is not None:
            yield "a position", positions[0], (widths[step.to],)
    if isinstance(step, Product):
        for name, weight, bias in step.matrices:
            yield name, weight, (widths[step.active] if step.active else weight.shape[0], widths[step.read])
            if bias is not None:
                yield f"the bias of {name}", np.ravel(bias), (weight.shape[0],)
    for norm, width in norms(step, widths):
        yield "a norm", norm.weight, (width,)
        if norm.bias is not None:
            yield "the bias of a norm", norm.bias, (width,)


def norms(step: Step, widths: dict[str, int]) -> Iterator[tuple[Norm, int]]:
    """(norm, the width of what it norms) of a step."""
    if isinstance(step, Normalize | Product) and step.norm:
        yield step.norm, widths[step.read]
    if isinstance(step, Attend):
        yield from ((norm, step.width) for norm in (step.q_norm, step.k_norm) if norm)


def fields(step: Step, buffers: dict[str, np.ndarray], dtype: np.dtype) -> Iterator[tuple[str, Any]]:
    """The fields of `step` in csrc/plan.h, by name."""
    def columns(name, first=0):
        return None if name == SCORES else buffers[name][:, first:]

    yield "kind", backend.cpu.codes[type(step).__name__.lower()]
    yield "y", [columns(step.to)]
    if isinstance(step, Embed):
        yield "D", step.table.weight.shape[1]
        yield "scale", step.scale
        yield "matrices", [stored(step.table.weight, dtype, may_turn=False)]
        return
    yield "x", columns(step.read)
    if isinstance(step, Normalize | Product):
        yield "D", buffers[step.read].shape[1]
        yield "wanted", step.wanted
        yield from norm_fields(step.norm, dtype)
    if isinstance(step, Pick):
        yield "D", buffers[step.read].shape[1]
    if isinstance(step, Product):
        yield "matrices", [stored(matrix.weight, dtype) for matrix in step.matrices]
        yield "biases", [vector(matrix.bias, dtype) for matrix in step.matrices]
        yield "accumulate", step.adds
        sizes = [matrix.weight.shape[0] for matrix in step.matrices]
        begin = step.into[0] if step.into else 0
        values = [columns(step.to)] if begin and step.activation == "swiglu" else []
        yield "y", [columns(step.to, begin + sum(sizes[:i])) for i in range(len(sizes))] + values
        if step.activation:
            yield "activation", backend.cpu.codes[step.activation]
            yield "to", columns(step.active)
    if isinstance(step, Cross | Attend):
        yield from {"layer": step.layer, "K": step.width}.items()
    if isinstance(step, Cross):
        yield from {"G": step.heads, "R": 1}.items()
    if isinstance(step, Attend):
        yield from {"G": step.groups, "R": step.heads // step.groups, "window": step.window or NO_WINDOW,
                    "interleaved": step.interleaved}.items()
        for name, norm in (("q_norm", step.q_norm), ("k_norm", step.k_norm)):
            if norm:
                yield name, vector(norm.weight, dtype)
                yield "eps", norm.eps


def norm_fields(norm: Norm | None, dtype: np.dtype) -> Iterator[tuple[str, Any]]:
    """The fields of a norm; none if there is none."""
    if norm:
        yield "norm", backend.cpu.codes[norm.kind]
        yield "norm_w", vector(norm.weight, dtype)
        yield "norm_b", vector(norm.bias, dtype)
        yield "eps", norm.eps


def stored(weight: Any, dtype: np.dtype, may_turn: bool = True) -> tuple[int, np.ndarray, int, int]:
    """(kind, its array as the kernels read it, rows, columns) of a matrix.  A plain array is used where it lies.

    may_turn    False: a table, whose rows are read, and so it is copied if they are not contiguous
    """
    E, D = weight.shape
    if isinstance(weight, EncodedArray):
        return backend.cpu.codes[weight.kind], weight.interleaved(), E, D
    if may_turn and weight.T.flags.c_contiguous and not weight.flags.c_contiguous:
        return backend.cpu.codes["turned"], np.ascontiguousarray(weight.T, dtype), E, D
    return backend.cpu.codes["reals"], np.ascontiguousarray(weight, dtype), E, D


def vector(x: Any, dtype: np.dtype) -> np.ndarray | None:
    """A vector of the parameters, or None."""
    return None if x is None else np.ascontiguousarray(decoded_tree(x, dtype), dtype)
