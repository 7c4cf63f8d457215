"""Error bounds for an op's results: how far may they be from the reference in float64?"""
import numpy as np

from pyllama import backend
from pyllama.testing.problems import packed
from pyllama.testing.trees import in_float64, is_float

F32 = np.finfo("float32")
TIMES = 16                          # enough for another order of summation and an exponential with 2 ulp


def results(op, inputs, options, dy):
    """The outputs and the gradients in one list, without the None of integer inputs."""
    y, back = op(*inputs, **options)
    return [a for a in (*op.each(y), *back(dy)) if a is not None]


def tolerances(op, inputs, options, dy):
    """[(value, bound), ...]: the float64 reference of each of results(), and the largest error allowed.

    With float64 inputs the bound is 1e-10 times the largest number of the result, or 1e-10 if that is less than 1.
    With float32 inputs it is measured: see in_float32().
    """
    if next(x.dtype for x in inputs if is_float(x)) == np.float32:
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
