"""What is known about a wrong gradient, and when it supports a hypothesis.

A hypothesis predicts what back would return if it had a certain mistake.  It is stated only if the prediction agrees
with what back returned, entry by entry, and is clearly apart from the right gradient.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pyllama.erf import erf

SLACK = 4                                           # tolerances, because both sides of a comparison may be off
ROUNDING = 1e-10                                    # of a prediction, relative to its size
PICKED = 4096                                       # entries at most, where many products are tried
CLEAR = 10                                          # how many slacks a prediction is away from the right gradient


@dataclass
class Evidence:
    """The gradient of one output with respect to one input, claimed and measured, with the call it belongs to.

    input, output   their names
    inputs          all leaves by name
    x, y, dy        of this pair
    claimed         dx as back returned it, of x's shape
    measured        the derivative of each entry, NaN where it was not measured
    tolerance       of each entry
    gradient        gradient(dy) is what back returns for another dy
    others          the measured gradients of the other floating inputs
    outcomes        for each point that was tried ("as given", "strided dy", ...): is the gradient wrong there?
    kink            at which entries does the function have a kink?  None: unknown, or nowhere
    deadline        by time.monotonic(), after which gradient is not called; None: there is no limit
    slope           slope(dy) is the measured gradient for another dy; None: it cannot be measured
    """
    input: str
    output: str
    inputs: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray
    dy: np.ndarray
    claimed: np.ndarray
    measured: np.ndarray
    tolerance: np.ndarray
    gradient: Callable[[np.ndarray], np.ndarray]
    others: dict[str, np.ndarray] = field(default_factory=dict)
    outcomes: dict[str, bool] = field(default_factory=dict)
    kink: np.ndarray | None = None
    deadline: float | None = None
    slope: Callable[[np.ndarray], np.ndarray] | None = None

    @cached_property
    def known(self) -> np.ndarray:
        """Which entries were measured."""
        return np.isfinite(self.measured)

    @cached_property
    def bad(self) -> np.ndarray:
        """Which entries are wrong."""
        return self.known & ~(np.abs(self.claimed - self.measured) <= self.tolerance)

    @cached_property
    def good(self) -> np.ndarray:
        """Which entries are right and not 0: a zero may be right by accident, as at a masked key."""
        return self.known & ~self.bad & (np.abs(self.measured) > self.tolerance)

    @cached_property
    def noise(self) -> float:
        """How far a measured entry may be off."""
        return SLACK * float(np.max(self.tolerance[self.known], initial=0))

    @cached_property
    def size(self) -> float:
        """The largest measured entry."""
        return largest(self.measured[self.known])

    @cached_property
    def candidates(self) -> dict[str, np.ndarray]:
        """The arrays that may be a factor or a term of the gradient, by name; each broadcasts to x's shape."""
        floats = {name: a for name, a in self.inputs.items() if a.dtype.kind == "f"}
        y = "the output" if self.output in floats else self.output
        arrays = {self.input: self.x, **floats, y: self.y, "dy": self.dy}
        fitting = {name: np.asarray(a, float) for name, a in arrays.items() if broadcasts(a, self.x)}
        if y in fitting:
            fitting |= {f"(1 - {y})": 1 - fitting[y], f"(1 - {y}²)": 1 - fitting[y] ** 2}
        return fitting

    @cached_property
    def picked(self) -> np.ndarray:
        """The places of the entries at which products are compared: all that were measured, or PICKED of them."""
        places = np.flatnonzero(self.known)
        return places[::math.ceil(len(places) / PICKED) or 1]

    def pick(self, a: np.ndarray) -> np.ndarray:
        """The picked entries of an array that broadcasts to x's shape, in a row."""
        return np.broadcast_to(a, self.x.shape).reshape(-1)[self.picked]

    @cached_property
    def few(self) -> "Evidence":
        """The same for the picked entries alone."""
        return replace(self, claimed=self.pick(self.claimed), measured=self.pick(self.measured),
                       tolerance=self.pick(self.tolerance))

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """What products are made of, at the picked entries: the candidates, and functions that gates have."""
        values = {name: self.pick(a) for name, a in self.candidates.items() if not a.ndim or np.ptp(a)}
        values |= {f"{name}²": values[name] ** 2 for name in (self.input, self.output) if name in values}
        for name, whole in {self.input: self.x, **self.inputs}.items():
            if whole.dtype.kind == "f" and whole.shape == self.x.shape and (not whole.ndim or np.ptp(whole)):
                x = self.pick(whole).astype(float)
                sigma, phi = 1 / (1 + np.exp(-x)), np.exp(-x * x / 2) / (2 * np.pi) ** 0.5
                values |= {f"σ({name})": sigma, f"(1 - σ({name}))": 1 - sigma, f"exp({name})": np.exp(x),
                           f"φ({name})": phi, f"Φ({name})": (1 + erf(x / 2 ** 0.5)) / 2, f"(1 - {name}²)": 1 - x * x}
                values |= {f"tanh({name})": np.tanh(x)} if not self.is_output(np.tanh(x)) else {}
        return values

    def is_output(self, picked: np.ndarray) -> bool:
        """Is this y, which has a name already?"""
        return self.y.shape == self.x.shape and np.allclose(picked, self.pick(self.y), 1e-9, 0)

    def explains(self, prediction: np.ndarray, gain: float = 1.0) -> bool:
        """Does claimed agree with the prediction, which differs from the right gradient?

        gain    by how much the prediction enlarges an error of measured
        """
        compared = self.known & np.isfinite(prediction)
        wanted, claimed = prediction[compared], self.claimed[compared]
        slack = self.noise * max(gain, 1.0) + ROUNDING * largest(wanted)
        apart = largest(wanted - self.measured[compared])
        enough = 2 * compared.sum() > self.known.sum()
        return bool(enough and largest(claimed - wanted) <= slack and apart > CLEAR * slack)

    def at(self, mask: np.ndarray) -> "Evidence":
        """The same, as if only the entries of the mask had been measured."""
        return replace(self, measured=np.where(mask, self.measured, np.nan))


def largest(a) -> float:
    """The largest absolute value; infinite if one is NaN, 0 if there is none."""
    most = float(np.max(np.abs(a), initial=0))
    return most if most == most else float("inf")


def broadcasts(a, x) -> bool:
    """Does a, which is not empty, broadcast to the shape of x?"""
    try:
        return a.size > 0 and np.broadcast_shapes(a.shape, x.shape) == x.shape
    except ValueError:
        return False


def entries(count: int) -> str:
    """How many, in words."""
    return "at the entry compared" if count == 1 else f"at all {count} entries compared"
