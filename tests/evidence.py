"""What gradcheck knows of a wrong gradient, for the tests of its diagnosis."""
import numpy as np

from pyllama import backend
from pyllama.testing.diagnosis import Evidence, diagnose

STEP = 1e-30
EXACT = 1e-11                                           # of the largest entry, as a complex step has it


def derivative(f, inputs, which, dy):
    """<dy, ∂y/∂x> for each entry of input `which`, by complex steps."""
    x = inputs[which]
    dx = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = [np.array(a, complex) if a.dtype.kind == "f" and i == which else a for i, a in enumerate(inputs)]
        moved[which][index] += 1j * STEP
        dx[index] = np.sum(dy * np.imag(f(*moved)[0])) / STEP
    return dx


def evidence(f, names, inputs, which, wrong, dy=None, outcomes=None):
    """What gradcheck knows if wrong(dy) is the gradient of input number `which`."""
    inputs = [np.asarray(x) for x in inputs]
    with backend.use("numpy"):
        y = np.asarray(f(*inputs)[0])
        dy = np.random.default_rng(5).standard_normal(y.shape) if dy is None else dy
        floats = [i for i, x in enumerate(inputs) if x.dtype.kind == "f"]
        measured = {i: derivative(f, inputs, i, dy) for i in floats}
    tolerance = np.full(inputs[which].shape, EXACT * np.abs(measured[which]).max(initial=1e-3))
    return Evidence(names[which], "y", dict(zip(names, inputs, strict=True)), inputs[which], y, dy, wrong(dy),
                    measured[which], tolerance, wrong, {names[i]: measured[i] for i in floats if i != which},
                    outcomes or {}, slope=lambda dy: derivative(f, inputs, which, dy))


def said(*arguments, **fields):
    """The beginnings of the sentences, up to the colon."""
    return [sentence.partition(":")[0].rstrip(".") for sentence in diagnose(evidence(*arguments, **fields))]
