"""The points at which a function is checked: the inputs as given, and others where mistakes hide less.

An input of ones hides a factor w that is missing, one of zeros hides whatever it is multiplied with, and so does dy.
(OpenMDAO's POEM 28 gives 0 and 1 as the values that hide the most.)  A kernel that reads dy as contiguous is right
until dy is a view.
"""
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pyllama.testing import layouts
from pyllama.testing.trees import is_float

GIVEN = "as given"


class Point(NamedTuple):
    """Inputs, and how dy lies in memory.

    name        what the report calls it
    leaves      the inputs
    of_dy       dy as a view of this kind; None: as it is drawn
    of_inputs   the inputs as views of this kind
    base        the name of the point with the same values, whose outputs must be the same; "" if there is none
    """
    name: str
    leaves: list
    of_dy: Callable | None = None
    of_inputs: Callable | None = None
    base: str = ""

    def arranged(self, leaves: list) -> list:
        """Leaves, in the layout of this point's inputs."""
        return [self.of_inputs(x) if self.of_inputs and x is not None else x for x in leaves]


# --- layouts ----------------------------------------------------------------------------------------------------------

def constant(x: np.ndarray) -> np.ndarray:
    """The first number of x everywhere, by strides of 0: what the back of a sum hands on.  Read-only."""
    return np.broadcast_to(x.ravel()[0] if x.size else x, x.shape)


DY_LAYOUTS = {"strided dy": layouts.strided, "Fortran dy": layouts.in_columns, "negative dy": layouts.negative,
              "broadcast dy": constant, "read-only dy": layouts.read_only}
INPUT_LAYOUTS = {"strided inputs": layouts.strided, "Fortran inputs": layouts.in_columns,
                 "negative inputs": layouts.negative, "read-only inputs": layouts.read_only}


def has_axes(arrays: Iterable) -> bool:
    return any(x is not None and x.ndim and x.size > 1 for x in arrays)


def layout_points(leaves: list, outputs: tuple) -> Iterator[Point]:
    """The same values in memory of other layouts."""
    if has_axes(outputs):
        for name, layout in DY_LAYOUTS.items():
            yield Point(name, leaves, of_dy=layout, base=GIVEN)
    if has_axes(leaves):
        for name, layout in INPUT_LAYOUTS.items():
            yield Point(name, leaves, of_inputs=layout, base=GIVEN)


# --- values -----------------------------------------------------------------------------------------------------------

def is_constant(x: np.ndarray | None) -> bool:
    return is_float(x) and x.size > 1 and bool((x == x.flat[0]).all())          # type: ignore[union-attr]


def away(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers like those of x, of the same sign, inside [0, 1] or above 1 if all of them are; none is 0 or 1."""
    finite = x[np.isfinite(x)]
    size = np.abs(finite).mean() if finite.any() else 1.0
    zeros = size * rng.uniform(0.2, 0.8, x.shape)
    if finite.min(initial=0) < 0 < finite.max(initial=0) or not finite.any():
        zeros = zeros * rng.choice([-1.0, 1.0], x.shape)
    elif finite.any() and finite.max() <= 0:
        zeros = -zeros
    above = finite.size and finite.min() >= 1 < finite.max()
    factor = rng.uniform(1.05, 1.3, x.shape) if above else rng.uniform(0.7, 0.95, x.shape)
    return np.asarray(np.where(x == 0, zeros, x * factor)).astype(x.dtype)


def random_weight(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of the sign and the size of a constant array; standard normal in place of zeros."""
    value = float(x.flat[0])
    return np.asarray(value * rng.uniform(0.4, 1.6, x.shape) if value else rng.standard_normal(x.shape)).astype(x.dtype)


def value_points(leaves: list, rng: np.random.Generator) -> Iterator[Point]:
    """Other values of the inputs."""
    if any(map(is_constant, leaves)):
        yield Point("random w", [random_weight(x, rng) if is_constant(x) else x for x in leaves])
    yield Point("away from 0 and 1", [away(x, rng) if is_float(x) else x for x in leaves])
    ids = [x is not None and not is_float(x) and x.size > 1 for x in leaves]
    if any(ids):
        yield Point("repeated ids", [repeated(x, rng) if whole else x for x, whole in zip(leaves, ids, strict=True)])


def repeated(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ids drawn from these, the first of them twice at least."""
    drawn = rng.choice(ids.ravel(), ids.size)
    drawn[-1] = drawn[0]
    return drawn.reshape(ids.shape)
