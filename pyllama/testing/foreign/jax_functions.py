"""Functions of JAX arrays as functions of NumPy arrays.

Each call runs with x64 enabled, whatever the setting of the process: float64 would otherwise become float32.
"""
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.testing.foreign.adapting import Adapted, form, leaves, named, rebuilt


def adapted(func: Callable, inputs: list) -> Adapted:
    """See Adapted."""
    jax = sys.modules["jax"]
    given = [x for _, x in leaves(inputs)]
    names = named(func, inputs)
    places = [place for place, x in enumerate(given) if kind(x) in "fiub"]
    floating = [place for place in places if kind(given[place]) == "f"]

    def of_floats(values):
        """func as a function of its floating arrays alone; the others are constants."""
        every = {place: jax.numpy.array(x) for place, x in zip(places, values, strict=True)}

        def function(*floats):
            full = every | dict(zip(floating, floats, strict=True))
            return outputs(func(*rebuilt(inputs, iter([full.get(place, x) for place, x in enumerate(given)]))))

        return function, [every[place] for place in floating]

    def f(*values):
        with x64(jax):
            function, floats = of_floats(values)
            if any(np.iscomplexobj(x) for x in values):             # for a complex step; JAX's rules may refuse it
                ys, pull = function(*floats), None
            else:
                ys, pull = jax.vjp(function, *floats)

        def back(dy):
            dys = dy if isinstance(dy, tuple) else (dy,)
            with x64(jax):
                grads = pull(tuple(jax.numpy.array(d) for d in dys))
                found = dict(zip(floating, (np.array(g) for g in grads), strict=True))
            return tuple(found.get(place) for place in places)

        return form([np.array(y) for y in ys], True), back

    def jvp(values, tangents):
        with x64(jax):
            function, floats = of_floats(values)
            moves = [jax.numpy.array(v) for v, place in zip(tangents, places, strict=True) if place in floating]
            _, moved = jax.jvp(function, tuple(floats), tuple(moves))
            return form([np.array(m) for m in moved], True)

    arrays = [np.array(given[place]) for place in places]
    return Adapted(f, arrays, [names[place] for place in places], jvp if works(jvp, arrays) else None, [])


def works(jvp: Callable, values: list[np.ndarray]) -> bool:
    """Does forward mode pass through this function?  It does not through a custom_vjp."""
    try:
        jvp(values, [np.ones_like(x) for x in values])
    except Exception:
        return False
    return True


def gradient_of(func: Callable, count: int) -> Callable:
    """The backward pass of func as a function of JAX arrays: (*inputs, *dy) -> dx, ...

    count   of the inputs, all of which are floating arrays
    """
    def backward(*inputs_and_dy):
        _, pull = sys.modules["jax"].vjp(lambda *x: outputs(func(*x)), *inputs_and_dy[:count])
        return pull(tuple(inputs_and_dy[count:]))

    return backward


def outputs(result: Any) -> tuple:
    """The floating arrays that a function returned."""
    return tuple(y for _, y in leaves(result) if kind(y) in "fc")


def kind(x: Any) -> str:
    """f, i, u, b or c for an array of floats (bfloat16 too), integers, ...; ? for a constant."""
    if not hasattr(x, "dtype"):
        return "?"
    name = str(x.dtype)
    return "f" if name == "bfloat16" else getattr(x.dtype, "kind", "?")


def x64(jax: Any) -> Any:
    """A context in which float64 stays float64."""
    return (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64(True)
