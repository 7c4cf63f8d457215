"""Functions of JAX arrays as functions of NumPy arrays.

A call with float64 runs with x64 enabled, whatever the setting of the process: float64 would otherwise become float32.
A call with float32 runs as the process does: x64 would make float64 of numbers that the function makes itself.
"""
import contextlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing.foreign.adapting import Adapted, form, in_precision_of, named, require_some
from pyllama.testing.trees import leaves, rebuild

FORWARD_RULE = 1e3                      # roundings by which a forward rule may differ from the function


class Arguments(NamedTuple):
    """The arguments of a call: which leaves are arrays, and which of these are floating."""
    inputs: list
    given: list
    places: list[int]
    floating: list[int]

    def with_arrays(self, arrays: dict) -> list:
        """The inputs with these arrays, by place, in the place of their leaves."""
        return rebuild(self.inputs, iter([arrays.get(place, x) for place, x in enumerate(self.given)]))


def arguments(inputs: list) -> Arguments:
    given = [x for _, x in leaves(inputs)]
    places = [place for place, x in enumerate(given) if kind(x) in "fiub"]
    return Arguments(inputs, given, places, [place for place in places if kind(given[place]) == "f"])


def adapted(func: Callable, inputs: list) -> Adapted:
    """See Adapted."""
    jax = sys.modules["jax"]
    known = arguments(inputs)
    names = named(func, inputs)

    def of_floats(values):
        """func as a function of its floating arrays alone, and these."""
        every = {place: jax.numpy.array(x) for place, x in zip(known.places, values, strict=True)}

        def function(*floats):
            return outputs(func(*known.with_arrays(every | dict(zip(known.floating, floats, strict=True)))))

        return function, [every[place] for place in known.floating]

    def f(*values):
        with x64(jax, values):
            function, floats = of_floats(values)
            ys = require_some(func, [np.array(y) for y in function(*floats)])

        def back(dy):
            dys = dy if isinstance(dy, tuple) else (dy,)
            with x64(jax, values):
                again, pull = jax.vjp(function, *floats)
                require_same(ys, again)
                grads = pull(tuple(jax.numpy.array(in_precision_of(y, d)) for y, d in zip(ys, dys, strict=True)))
                of_place = {place: np.array(g) for place, g in zip(known.floating, grads, strict=True)}
            return tuple(of_place.get(place) for place in known.places)

        return form(ys, True), back

    def jvp(values, tangents):
        with x64(jax, values):
            function, floats = of_floats(values)
            moves = [jax.numpy.array(in_precision_of(x, v))
                     for x, v, place in zip(values, tangents, known.places, strict=True) if place in known.floating]
            _, moved = jax.jvp(function, tuple(floats), tuple(moves))
            return form([np.array(m) for m in moved], True)

    arrays = [np.array(known.given[place]) for place in known.places]
    return Adapted(f, arrays, [names[place] for place in known.places], jvp if works(jvp, arrays) else None, [])


def require_same(ys: list, again: tuple) -> None:
    """Raise ValueError if the forward rule of a custom_vjp returns another y than the function."""
    for y, other in zip(ys, again, strict=True):
        size = np.abs(y[np.isfinite(y)]).max(initial=0)
        off = np.abs(y - np.asarray(other))
        if (off > FORWARD_RULE * np.finfo(y.dtype).eps * size).any():
            raise ValueError(f"the forward rule of the custom_vjp returns another y than the function, by "
                             f"{off.max():.1e}; let both compute the same")


def works(jvp: Callable, values: list[np.ndarray]) -> bool:
    """Does forward mode pass through this function?  It does not through a custom_vjp."""
    try:
        jvp(values, [np.ones_like(x) for x in values])
    except Exception:
        return False
    return True


def differentiable(func: Callable, inputs: list) -> tuple[Callable, list, list[str]]:
    """(func as a function of its floating arrays that returns a tuple of these, those arrays, their names)."""
    known = arguments(inputs)
    names = named(func, inputs)

    def function(*floats):
        return outputs(func(*known.with_arrays(dict(zip(known.floating, floats, strict=True)))))

    return function, [known.given[place] for place in known.floating], [names[place] for place in known.floating]


def gradient_of(function: Callable, count: int) -> Callable:
    """The backward pass of a function of `count` arrays as a function of JAX arrays: (*inputs, *dys) -> dx, ..."""
    def backward(*inputs_and_dys):
        _, pull = sys.modules["jax"].vjp(function, *inputs_and_dys[:count])
        return pull(tuple(inputs_and_dys[count:]))

    return backward


def tangent_of(function: Callable, count: int) -> Callable:
    """Forward mode of a function of `count` arrays as a function of JAX arrays: (*inputs, *tangents) -> tangent of y"""
    def forward(*inputs_and_tangents):
        return sys.modules["jax"].jvp(function, inputs_and_tangents[:count], inputs_and_tangents[count:])[1]

    return forward


def from_numpy(x: np.ndarray) -> Any:
    return sys.modules["jax"].numpy.array(x)


def to_numpy(x: Any) -> np.ndarray:
    return np.array(x)


def outputs(result: Any) -> tuple:
    """The floating arrays that a function returned."""
    return tuple(y for _, y in leaves(result) if kind(y) in "fc")


def kind(x: Any) -> str:
    """f, i, u, b or c for an array of floats (bfloat16 too), integers, ...; ? for a constant."""
    if not hasattr(x, "dtype"):
        return "?"
    return "f" if str(x.dtype) == "bfloat16" else getattr(x.dtype, "kind", "?")


def x64(jax: Any, values: tuple) -> Any:
    """A context in which float64 stays float64, if there is any."""
    if not any(np.asarray(x).dtype in (np.float64, np.complex128) for x in values):
        return contextlib.nullcontext()
    return (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64(True)
