"""A plan as csrc/cpu/decode.c runs it: its buffers, and every step as the numbers and addresses that it needs."""
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllama import backend
from pyllama.decode.plan import SCORES, Attend, Cross, Embed, Norm, Normalize, Pick, Plan, Product, Step
from pyllama.quantization import EncodedArray, decoded_tree

ROWS = 256                                  # tokens that pass through a plan at a time
NO_WINDOW = 2 ** 62


def compiled(plan: Plan, dtype: Any) -> Any:
    """The pyllama.cpu.Machine of a plan in this precision, float32 or float64."""
    like = np.empty(0, dtype)
    buffers = {name: np.empty((ROWS, columns), dtype) for name, columns in plan.widths.items()}
    widest = max(matrix.weight.shape[1] for step in plan.steps if isinstance(step, Product) for matrix in step.matrices)
    steps = [dict(fields(step, buffers, np.dtype(dtype))) for step in plan.steps]
    return backend.cpu.Machine(steps, like, ROWS, widest, plan.attention[0].width, plan.vocabulary)


def fields(step: Step, buffers: dict[str, np.ndarray], dtype: np.dtype) -> Iterator[tuple[str, Any]]:
    """The fields of `step` in csrc/kernels.h, by name."""
    def columns(name, first=0):
        return None if name == SCORES else buffers[name][:, first:]

    yield "kind", backend.cpu.codes[type(step).__name__.lower()]
    yield "y", [columns(step.to)]
    if isinstance(step, Embed):
        yield "D", step.table.weight.shape[1]
        yield "scale", step.scale
        yield "matrices", [stored(step.table.weight, dtype)]
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
        yield "y", [columns(step.to, sum(sizes[:i])) for i in range(len(sizes))]
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


def stored(weight: Any, dtype: np.dtype) -> tuple[int, np.ndarray, int, int]:
    """(kind, its array as the kernels read it, rows, columns) of a matrix.  A plain array is used where it lies."""
    E, D = weight.shape
    if isinstance(weight, EncodedArray):
        return backend.cpu.codes[weight.kind], weight.interleaved(), E, D
    if weight.T.flags.c_contiguous and not weight.flags.c_contiguous:
        return backend.cpu.codes["turned"], np.ascontiguousarray(weight.T, dtype), E, D
    return backend.cpu.codes["reals"], np.ascontiguousarray(weight, dtype), E, D


def vector(x: Any, dtype: np.dtype) -> np.ndarray | None:
    """A vector of the parameters, or None."""
    return None if x is None else np.ascontiguousarray(decoded_tree(x, dtype), dtype)
