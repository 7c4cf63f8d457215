"""How far may another kernel's results be from the reference, whatever its order of summation?

The loss of precision depends on the condition of the problem, so accuracy.py measures it on the reference in float32.
NumPy adds in pairs there: the error of a sum of n terms grows like √log n.  Added one after the other they lose more,
√n on average (Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 2.8 and 4.2).  So

    bound in float32 = TIMES · loss · √n
    bound in float64 = TIMES · loss · √n · ε₆₄ / ε₃₂                                because a loss is proportional to ε

where n is the number of entries of the largest array: no sum of an op has more terms.

The bound in float16 and bfloat16 does not grow with n, because such kernels can add in float32, and round few numbers
besides their results.  precision.py measures the effect of rounding the inputs on each result:

    bound in float16, bfloat16 = ROUNDINGS · (the change by a rounding of the inputs + ε of numbers that may cancel)
                                 + bound in float32
"""
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama import backend
from pyllama.op import Op
from pyllama.testing.accuracy import F32, TIMES, in_float32, results
from pyllama.testing.methods.precision import bounds, finfo
from pyllama.testing.passes import eps_of
from pyllama.testing.problems import packed
from pyllama.testing.trees import in_float64, is_float

ROUNDINGS = 4                                       # √16: of 16 roundings to float16 or bfloat16, if independent
NEIGHBORS = 4                                       # of the inputs, at which the loss is measured
F64 = np.finfo("float64")


def tolerances(op: Op, inputs: list, options: dict, dy: Any, places: int = 1) -> list[tuple[np.ndarray, float]]:
    """[(value, bound), ...]: the float64 reference of each output, then of each gradient, and the largest error.

    inputs, dy      in one precision; None for an input left out
    places          at which the loss is measured: at a few, the sum of two numbers may happen to be exact each time
    """
    if eps_of(dtype_of(inputs)) > F32.eps:
        return half_tolerances(tolerances, op, inputs, options, dy, places)
    dys, rng = op.each(dy), np.random.default_rng(1)
    low = [in_float32(op, narrowed(inputs if place == 0 else beside(inputs, rng)), options, packed(narrowed(dys)))
           for place in range(places)]
    bounds = np.max([[bound for _, bound in measured] for measured in low], axis=0)
    with backend.use("numpy"), np.errstate(all="ignore"):
        exact = results(op, in_float64(inputs), options, packed(in_float64(dys)))
    return [(np.asarray(a), float(bound) * factor(inputs, dys)) for a, bound in zip(exact, bounds, strict=True)]


def scaled_tolerances(op: Op, inputs: list, options: dict, dy: Any, places: int = 1) -> list[tuple[np.ndarray, float]]:
    """tolerances() for inputs of any scale, where a kernel may also err as if it had rounded its inputs.

    An intermediate such as x - max x is as imprecise as x is large, whatever the size of the result.

    Raises OverflowError where the reference is not finite, or not in float32: then no loss can be measured.
    """
    if eps_of(dtype_of(inputs)) > F32.eps:
        return half_tolerances(scaled_tolerances, op, inputs, options, dy, places)
    dys, rng = op.each(dy), np.random.default_rng(2)
    low = narrowed(inputs)
    with backend.use("numpy"), np.errstate(all="ignore"):
        rounded = results(op, low, options, packed(narrowed(dys)))
        truth, *near = (results(op, in_float64(x), options, packed(in_float64(dys)))
                        for x in (low, *(beside(low, rng) for _ in range(NEIGHBORS))))
        moved = [max(apart(a, b) for b in others) for a, *others in zip(truth, *near, strict=True)]
    wanted = tolerances(op, inputs, options, dy, places)
    if not all(np.isfinite(a).all() for a in (*rounded, *truth, *(a for a, _ in wanted))):
        raise OverflowError(f"{op.name} is not finite at these inputs")
    return [(a, bound + TIMES * most * factor(inputs, dys)) for (a, bound), most in zip(wanted, moved, strict=True)]


def half_tolerances(in_single: Callable, op: Op, inputs: list, options: dict, dy: Any,
                    places: int) -> list[tuple[np.ndarray, float]]:
    """The tolerances for inputs in float16 or bfloat16; sums may be off by what in_single() allows in float32.

    Raises OverflowError where a result is not finite in the precision of the inputs.
    """
    def run(arrays, dys):
        y, back = op(*arrays, **options)
        return op.each(y), back(packed(dys))

    info = finfo(dtype_of(inputs))
    with backend.use("numpy"), np.errstate(all="ignore"):
        found = bounds(run, inputs, op.each(dy), float(info.eps), chain=ROUNDINGS)
    if not all((np.abs(one.exact) <= float(info.max)).all() for one in found):
        raise OverflowError(f"{op.name} is not finite in {dtype_of(inputs)} at these inputs")
    single = in_single(op, narrowed(inputs), options, packed(narrowed(op.each(dy))), places)
    return [(one.exact, max(largest(one.explained), one.cancelled) + most + float(info.smallest_subnormal))
            for one, (_, most) in zip(found, single, strict=True)]


def saved_tolerances(op: Op, inputs: list, options: dict) -> list[float]:
    """The bound of each array that forward saves, derived in the same way."""
    rng = np.random.default_rng(0)
    with backend.use("numpy"):
        exact = op.forward(*in_float64(inputs), **options)[1]
        loss = [float(F32.eps) * max(largest(a), float(F32.eps)) for a in exact]
        for _ in range(NEIGHBORS):
            near = beside(narrowed(inputs), rng)
            rounded, truth = (op.forward(*arrays, **options)[1] for arrays in (near, in_float64(near)))
            loss = [max(most, apart(a, b)) for most, a, b in zip(loss, rounded, truth, strict=True)]
    return [TIMES * most * factor(inputs, ()) for most in loss]


def factor(inputs, dys) -> float:
    """√n, and the ratio of the precisions if the inputs are in float64."""
    arrays = [x for x in (*inputs, *dys) if x is not None]
    wide = dtype_of(arrays) == np.float64
    terms = max([1, *(int(x.size) for x in arrays)])
    return float(terms ** 0.5 * (F64.eps / F32.eps if wide else 1.0))


def dtype_of(arrays) -> np.dtype:
    """Of the floating arrays."""
    return next(x.dtype for x in arrays if x is not None and is_float(x))


def beside(inputs: list, rng: np.random.Generator) -> list:
    """Neighbors of the inputs in float32, whose results are rounded in other places."""
    return [(x * (1 + F32.eps * rng.integers(-4, 5, x.shape))).astype("float32") if is_float(x) else x for x in inputs]


def narrowed(arrays) -> list:
    return [x.astype("float32") if is_float(x) else x for x in arrays]


def largest(a: Any) -> float:
    """The largest finite number of an array; 0 if there is none."""
    a = np.asarray(0.0 if a is None else a, float)
    return float(np.abs(np.where(np.isfinite(a), a, 0.0)).max(initial=0))


def apart(a: Any, b: Any) -> float:
    """The largest difference of two arrays; equal infinities differ by 0."""
    if a is None:
        return 0.0
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.abs(np.subtract(a, b, where=a != b, out=np.zeros(a.shape))).max(initial=0))
