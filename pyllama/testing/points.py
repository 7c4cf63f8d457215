"""The points at which a function is checked: the inputs as given, and others where mistakes hide less.

An input of ones hides a factor w that is missing, one of zeros hides whatever it is multiplied with, and so does dy.
(OpenMDAO's POEM 28 gives 0 and 1 as the values that hide the most.)  A kernel that reads dy as contiguous is right
until dy is a view.
"""
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pyllama.testing.trees import is_float

GIVEN = "as given"


class Point(NamedTuple):
    """Inputs, and how dy lies in memory.

    name        what the report calls it
    leaves      the inputs
    layout      dy as a view of this kind; None: as it was drawn
    same        the values are those as given, so that the results must be the same, too
    """
    name: str
    leaves: list
    layout: Callable | None = None
    same: bool = False


# --- layouts: views with the values of x ------------------------------------------------------------------------------

def strided(x: np.ndarray) -> np.ndarray:
    """Every second number of a larger array along each axis; the others are NaN."""
    room = np.full(tuple(2 * n + 1 for n in x.shape), np.nan if is_float(x) else 0).astype(x.dtype)
    view = room[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def fortran(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def broadcast(x: np.ndarray) -> np.ndarray:
    """The first number of x everywhere, by strides of 0: what the back of a sum hands on.  Read-only."""
    return np.broadcast_to(x.ravel()[0] if x.size else x, x.shape)


DY_LAYOUTS = {"strided dy": strided, "Fortran dy": fortran, "broadcast dy": broadcast, "read-only dy": read_only}
INPUT_LAYOUTS = {"strided inputs": strided, "Fortran inputs": fortran, "read-only inputs": read_only}


def laid_out(layout: Callable, x: np.ndarray | None) -> np.ndarray | None:
    return layout(x) if x is not None and x.ndim else x


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


def layout_points(leaves: list) -> Iterator[Point]:
    """The same values in memory of other layouts."""
    for name, layout in DY_LAYOUTS.items():
        yield Point(name, leaves, layout, True)
    for name, layout in INPUT_LAYOUTS.items():
        yield Point(name, [laid_out(layout, x) for x in leaves], None, True)
