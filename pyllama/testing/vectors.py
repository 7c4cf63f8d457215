"""Golden vectors: calls of an op with all that it computes, for tests in any language; see docs/vectors.md.

    >>> from pyllama.ops import rms_norm
    >>> from pyllama.testing.vectors import golden
    >>> tensors, cases = golden(rms_norm, "float32", count=3, seed=0)
    >>> cases[0]["inputs"], cases[0]["gradients"]["w"]["tensor"]
    ({'x': '0/input/x', 'w': '0/input/w'}, '0/gradient/w')
    >>> tensors["0/input/x"].dtype, tensors["0/output/y"].dtype
    (dtype('float32'), dtype('float64'))

Inputs have the dtype of the file.  What an op computes from them is the reference's result in float64, so a file for
float32 has what a float32 kernel should come close to, and not the rounding errors of another one.
"""
import zlib
from typing import Any

import numpy as np

from pyllama import backend
from pyllama.op import Op
from pyllama.testing.problems import packed
from pyllama.testing.trees import in_float64, is_float
from pyllama.testing.verify.adapter import Adapter
from pyllama.testing.verify.calls import RandomCalls
from pyllama.testing.verify.counterexample import Call
from pyllama.testing.verify.tolerance import saved_tolerances, tolerances

KINDS = ("small", "options", "empty", "groups", "sizes")        # of cases, in turn: see calls.py
Entry = dict[str, Any]


def golden(op: Op, dtype: str = "float64", count: int = 10, seed: int = 0) -> tuple[dict[str, np.ndarray], list[Entry]]:
    """The tensors of some cases by name, and the entry of each case for an index.

    op          a registered op; its reference computes, whatever its kernels say
    dtype       of the floating inputs and of the dy, "float64" or "float32"
    count       how many cases
    seed        of the cases: the same seed gives the same numbers, whichever other ops are asked for

    Names are CASE/input/x, CASE/dy/y, CASE/output/y, CASE/gradient/x, CASE/saved/2, CASE/option/eps and
    CASE/tolerance/output/y: see docs/vectors.md.

    Raises ValueError unless dtype is one of the two.
    """
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float64' or 'float32'")
    rng = np.random.default_rng([seed, zlib.crc32(f"{op.name} {dtype}".encode())])
    calls = RandomCalls(Adapter(op.forward, op), dtype, dtype, rng)
    kinds = [kind for kind in KINDS if getattr(calls, kind)(0) is not None]
    tensors: dict[str, np.ndarray] = {}
    cases = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        entry, arrays = case(op, getattr(calls, kind)(number), number)
        cases.append({"case": number, "kind": kind} | entry)
        tensors |= arrays
    return tensors, cases


def case(op: Op, call: Call, number: int) -> tuple[Entry, dict[str, np.ndarray]]:
    """(the entry of a case, its tensors by name)"""
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, a: Any) -> str:
        full = f"{number}/{name}"
        tensors[full] = np.array(a)                         # a copy: results may be the same array
        return full

    def result(name: str, a: np.ndarray, tolerance: float) -> Entry:
        put(f"tolerance/{name}", np.float64(tolerance))
        return {"tensor": put(name, a), "tolerance": float(tolerance)}

    arrays = list(call.arrays)
    inputs, dys = arrays[:-call.outputs], arrays[-call.outputs:]
    passed = [(x, a) for x, a in zip(op.inputs, inputs, strict=False) if a is not None]
    while inputs[-1] is None:
        inputs.pop()
    entry: Entry = {"options": call.options, "inputs": {x.name: put(f"input/{x.name}", a) for x, a in passed}}
    for name, value in call.options.items():
        if isinstance(value, int | float):
            put(f"option/{name}", np.float64(value))
    entry["dy"] = {y.name: put(f"dy/{y.name}", d) for y, d in zip(op.outputs, dys, strict=True)}
    bounds = tolerances(op, inputs, call.options, packed(dys))
    names = [f"output/{y.name}" for y in op.outputs] + [f"gradient/{x.name}" for x, a in passed if is_float(a)]
    results = {name: result(name, a, bound) for name, (a, bound) in zip(names, bounds, strict=True)}
    entry["outputs"] = {name.partition("/")[2]: r for name, r in results.items() if name.startswith("output")}
    entry["gradients"] = {name.partition("/")[2]: r for name, r in results.items() if name.startswith("gradient")}
    entry["saved"] = saved_of(op, inputs, call.options, number, result)
    return entry, tensors


def saved_of(op: Op, inputs: list, options: dict, number: int, result) -> list[Entry | None]:
    """What the forward pass saves, in order: another tensor's name for inputs and outputs, None for None."""
    with backend.use("numpy"):
        wide = in_float64(inputs)
        y, saved = op.forward(*wide, **options)
        known = [*zip(wide, (f"input/{x.name}" for x in op.inputs), strict=False),
                 *zip(op.each(y), (f"output/{x.name}" for x in op.outputs), strict=True)]
        bounds = saved_tolerances(op, inputs, options)
    entries: list[Entry | None] = []
    for i, a in enumerate(saved):
        name = next((name for other, name in known if other is a), None)
        entries.append(None if a is None else {"tensor": f"{number}/{name}"} if name else
                       result(f"saved/{i}", np.asarray(a), bounds[i]))
    return entries
