"""Decision rules, written from their published definitions: each says whether it finds a case wrong.

The packages are old, or their rule is the body of a test: chainer 7, dezero, numpy-ml's tests, minitorch, llm.c.
"""
import numpy as np


def alarms(case, arrays, references, atol, rtol=0.0):
    """Is an entry, or a shape, off?"""
    return any(np.shape(a) != np.shape(b) or not np.allclose(a, b, rtol=rtol, atol=atol)
               for a, b in zip(arrays, references, strict=True))


def moved(floats, place, index, step):
    floats = [x.copy() for x in floats]
    floats[place][index] += step
    return floats


def differences(case, floats, dy, step):
    """The gradients by central differences, entry by entry."""
    grads = []
    for place, x in enumerate(floats):
        d = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            above, below = (case.y(*moved(floats, place, index, sign * step)) for sign in (1, -1))
            d[index] = np.sum((above - below) * dy) / (2 * step)
        grads.append(d)
    return grads


def chainer(case, rng, dtype=None):
    """check_backward: one unit vector of all inputs, eps 1e-3, atol 1e-5, rtol 1e-4; dtype: of the forward passes."""
    floats = case.floats
    dy = rng.uniform(-1, 1, case.y(*floats).shape).astype(floats[0].dtype)
    grads = case.gradients(dy.copy())
    directions = [rng.standard_normal(x.shape) for x in floats]
    length = np.sqrt(sum(np.sum(v * v) for v in directions))
    directions = [v / length for v in directions]
    above, below = (case.y(*[(x + sign * 1e-3 * v).astype(dtype or x.dtype)
                             for x, v in zip(floats, directions, strict=True)]).astype(float) for sign in (1, -1))
    numeric = np.sum((above - below) * dy) / 2e-3
    if any(d.shape != v.shape for d, v in zip(grads, directions, strict=True)):
        return True
    claimed = sum(np.sum(d * v) for d, v in zip(grads, directions, strict=True))
    return not np.allclose(claimed, numeric, atol=1e-5, rtol=1e-4)


def dezero(case, rng, atol=1e-5, rtol=1e-4, step=1e-4):
    """gradient_check: dy of ones, every entry, step 1e-4, atol 1e-5, rtol 1e-4, in float64."""
    floats = [x.astype(float) for x in case.floats]
    y, back = case.run(*floats)
    dy = np.ones_like(y)
    return alarms(case, back(dy.copy()), differences(case, floats, dy, step), atol, rtol)


def numpy_ml(case, rng, decimals=3):
    """Its tests: dy of ones, against the right gradients, to 3 decimals."""
    dy, grads = case.known[0]
    return alarms(case, case.gradients(dy.copy()), grads, 1.5 * 10.0 ** -decimals)


def minitorch(case, rng, times=1):
    """grad_check: dy of ones, one random entry of each input, step 1e-6, atol and rtol 1e-2."""
    floats = case.floats
    y = case.y(*floats)
    grads = case.gradients(np.ones_like(y))
    for _ in range(times):
        for place, x in enumerate(floats):
            index = tuple(int(rng.integers(n)) for n in x.shape)
            above, below = (case.y(*moved(floats, place, index, sign * 1e-6)) for sign in (1, -1))
            numeric = (above.sum() - below.sum()) / 2e-6
            if np.shape(grads[place]) != x.shape or not np.allclose(grads[place][index], numeric, atol=1e-2, rtol=1e-2):
                return True
    return False


def llm_c(case, rng, atol=2e-2):
    """test_gpt2.c: against the right gradients, absolute 2e-2, with the dy of a mean loss over 256 tokens."""
    dy, grads = case.known[1]
    return alarms(case, case.gradients(dy.copy()), grads, atol)
