"""Error bounds for an op's results: how far may they be from the reference in float64?"""
import numpy as np

from pyllama import backend
from pyllama.shapes import is_bfloat16
from pyllama.testing.problems import named, packed
from pyllama.testing.trees import in_float64, is_float

F32 = np.finfo("float32")
TIMES = 16                          # enough for another order of summation and an exponential with 2 ulp
HALF_A_UNIT = 2.0 ** -8             # the largest relative error of a number that is rounded to bfloat16
HALF_OF_THE_LEAST = 2.0 ** -134     # and the largest error of one that is rounded to a denormal of bfloat16
PRODUCTS = -1                       # in place of a saved array: the factors of the products
DRAWS = 4
ALIKE = 4                           # enough if a few groups of factors, each rounded alike, work against the draws


def results(op, inputs, options, dy):
    """The outputs and the gradients in one list, without the None of integer inputs."""
    y, back = op(*inputs, **options)
    return [a for a in (*op.each(y), *back(dy)) if a is not None]


def tolerances(op, inputs, options, dy):
    """[(value, bound), ...]: the float64 reference of each of results(), and the largest error allowed.

    With float64 inputs the bound is 1e-10 times the largest number of the result, or 1e-10 if that is less than 1.
    With float32 and bfloat16 inputs it is measured: see in_float32() and in_bfloat16().
    """
    precision = next(x.dtype for x in inputs if is_float(x))
    if is_bfloat16(precision):
        return in_bfloat16(op, inputs, options, dy)
    if precision == np.float32:
        return in_float32(op, inputs, options, dy)
    with backend.use("numpy"):
        exact = [np.asarray(a) for a in results(op, inputs, options, dy)]
    return [(a, 1e-10 * max(1, np.abs(a).max(initial=0))) for a in exact]


def in_float32(op, inputs, options, dy):
    """tolerances() for float32 inputs.

    How much precision float32 loses depends on the condition of the problem, so the loss is measured.  It is the
    largest of

    - the float32 error of the reference itself, at four neighbors of the inputs;
    - the change of the gradients when the arrays that forward saved are rounded, which backward cannot undo;
    - one unit in the last place of the largest number of the result (of eps, where numbers near 1 cancel).

    The bound is TIMES this loss.
    """
    with backend.use("numpy"):
        exactly, wide = in_float64(inputs), packed(in_float64(op.each(dy)))
        exact = [np.asarray(a) for a in results(op, exactly, options, wide)]
        loss = [F32.eps * max(np.abs(a).max(initial=0), F32.eps) for a in exact]
        rng = np.random.default_rng(0)
        outputs, saved = len(op.outputs), op.forward(*exactly, **options)[1]
        for _ in range(4):
            near = [x * (1 + F32.eps * rng.integers(-4, 5, x.shape)).astype("float32") if is_float(x) else x
                    for x in inputs]
            truth = results(op, in_float64(near), options, wide)
            loss = [max(most, np.abs(a - b).max(initial=0))
                    for most, a, b in zip(loss, results(op, near, options, dy), truth, strict=True)]
            rounded = [a * (1 + F32.eps * rng.choice([-1, 1], a.shape)) if is_computed(a, exactly) else a
                       for a in saved]
            grads = [g for g in op.backward(wide, *rounded, **options)[:len(inputs)] if g is not None]
            loss[outputs:] = [max(most, np.abs(a - b).max(initial=0))
                              for most, a, b in zip(loss[outputs:], grads, exact[outputs:], strict=True)]
    return [(a, TIMES * most) for a, most in zip(exact, loss, strict=True)]


def is_computed(a, inputs):
    """Is a, which forward saved, a floating array that forward computed, not one of its inputs?"""
    return isinstance(a, np.ndarray) and is_float(a) and not any(a is x for x in inputs)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------

def in_bfloat16(op, inputs, options, dy):
    """tolerances() for inputs in bfloat16, or some of them; see pyllama/low.py.

    The bound is the sum of three:

    - that of float32 for the same numbers;
    - ALIKE times the changes of the results when the factors of matrix products, or one of the saved arrays of an
      output's shape, are rounded to bfloat16 in one direction or the other;
    - for a result in bfloat16, half a unit in its last place, number by number.
    """
    single = in_float32(op, in_float64(inputs, np.float32), options, packed(in_float64(op.each(dy), np.float32)))
    exact = [a for a, _ in single]
    bounds = [bound for _, bound in single]
    for place in (PRODUCTS, *like_outputs(op, inputs, options)):
        drawn = [nudged_results(op, inputs, options, dy, place, seed) for seed in range(DRAWS)]
        for i, draws in enumerate(zip(*drawn, strict=True)):
            bounds[i] += ALIKE * max(np.abs(a - exact[i]).max(initial=0) for a in draws)
    return [(a, rounded(a, bound) if is_bfloat16(dtype) else bound)
            for a, bound, dtype in zip(exact, bounds, precisions(op, inputs), strict=True)]


def rounded(exact, bound):
    """The bound after one more rounding."""
    return bound + HALF_A_UNIT * (np.abs(exact) + bound) + HALF_OF_THE_LEAST


def precisions(op, inputs):
    """The dtype of each of results() of a call in bfloat16."""
    low = named("bfloat16")
    outputs = [low if y.axes else np.dtype(np.float32) for y in op.outputs]
    return outputs + [np.dtype(np.float32) if declared.weight else x.dtype
                      for declared, x in zip(op.inputs, inputs, strict=False) if is_float(x)]


def like_outputs(op, inputs, options):
    """The places of the saved arrays that are computed and have an output's shape."""
    exactly = in_float64(inputs)
    y, saved = op.forward(*exactly, **options)
    shapes = {np.shape(a) for a in op.each(y)}
    return [i for i, a in enumerate(saved) if is_computed(a, exactly) and a.shape in shapes]


def nudged_results(op, inputs, options, dy, place, seed):
    """results() of the float64 reference with nudged() factors of PRODUCTS, or a saved array, the one at `place`."""
    class Array(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *operands, out=None, **keywords):
            if out:
                keywords["out"] = tuple(map(np.asarray, out))
            operands = [np.asarray(a) if isinstance(a, Array) else a for a in operands]
            if ufunc is np.matmul and place == PRODUCTS:
                operands = [nudged(a, seed) for a in operands]
            result = getattr(ufunc, method)(*operands, **keywords)
            return result.view(Array) if isinstance(result, np.ndarray) else result

    exactly = [x.view(Array) if is_float(x) else x for x in in_float64(inputs)]
    y, saved = op.forward(*exactly, **options)
    saved = [nudged(a, seed) if i == place else a for i, a in enumerate(saved)]
    dys = [np.asarray(d).view(Array) for d in in_float64(op.each(dy))]      # for its products with what where() gave
    grads = op.backward(packed(dys), *saved, **options)[:len(inputs)]
    return [np.asarray(a) for a in (*op.each(y), *grads) if a is not None]


def nudged(x, seed):
    """Numbers that are not in bfloat16, each changed by half a unit, up or down: equal ones are changed alike."""
    bits = x.astype(np.float32).view(np.uint32) * np.uint32(2654435761) ^ np.uint32(0x9E3779B9 * (seed + 1) % 2 ** 32)
    sign = 1 - 2.0 * (bits * np.uint32(2246822519) >> 31)
    return np.where(x == x.astype(named("bfloat16")), x, x * (1 + HALF_A_UNIT * sign))
