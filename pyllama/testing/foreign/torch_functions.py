"""Functions of tensors, and torch.autograd.Function, as functions of NumPy arrays.

A tensor shares the memory of its array, so that whoever calls f sees what torch's code does to inputs and to dy.
"""
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing.foreign.adapting import Adapted, form, in_precision_of, named, require_some
from pyllama.testing.foreign.tensors import array, has_integers, is_tensor, show_changes, tensor
from pyllama.testing.trees import leaves, rebuild


class Arguments(NamedTuple):
    """The arguments of a call: which leaves are tensors, and which of these are differentiated.

    Those are the floating ones; if one of them requires a gradient, only those that do.
    """
    inputs: list
    given: list
    places: list[int]
    checked: list[bool]

    def with_tensors(self, tensors: list) -> list:
        """The inputs with these tensors in the places of theirs."""
        of_place = dict(zip(self.places, tensors, strict=True))
        return rebuild(self.inputs, iter([of_place.get(place, x) for place, x in enumerate(self.given)]))


def arguments(inputs: list) -> Arguments:
    given = [x for _, x in leaves(inputs)]
    floating = [is_tensor(x) and x.is_floating_point() for x in given]
    asked = [ok and x.requires_grad for ok, x in zip(floating, given, strict=True)]
    checked = asked if any(asked) else floating
    places = [place for place, x in enumerate(given) if checked[place] or has_integers(x)]
    return Arguments(inputs, given, places, [checked[place] for place in places])


def adapted(func: Callable, inputs: list) -> Adapted:
    """See Adapted.  A class stands for its apply."""
    call = callable_of(func)
    known = arguments(inputs)
    likes = [known.given[place] for place in known.places]
    names = [all_names(func, inputs)[place] for place in known.places]
    notes: list[str] = []

    def f(*values):
        tensors = [tensor(x, like) for x, like in zip(values, likes, strict=True)]
        tensors = [t.requires_grad_() if ok else t for t, ok in zip(tensors, known.checked, strict=True)]
        with sys.modules["torch"].enable_grad():
            result = call(*known.with_tensors(tensors))
        for x, t in zip(values, tensors, strict=True):
            show_changes(x, t)
        ys = require_some(func, outputs(result))

        def back(dy):
            dys = [tensor(in_precision_of(array(y), d))
                   for y, d in zip(ys, dy if isinstance(dy, tuple) else (dy,), strict=True)]
            grads = iter(gradients(ys, [t for t, ok in zip(tensors, known.checked, strict=True) if ok], dys))
            return tuple(full(next(grads), t, name) if ok else None
                         for t, ok, name in zip(tensors, known.checked, names, strict=True))

        return form([array(y) for y in ys], is_tensor(result)), back

    def full(gradient, t, name):
        if gradient is not None:
            return array(gradient)
        note = f"torch has no gradient for {name}: it counts as zero"
        notes.extend([note] if note not in notes else [])
        return np.zeros_like(array(t))

    def jvp(values, tangents):
        forward_ad = sys.modules["torch"].autograd.forward_ad
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(tensor(x, like).requires_grad_(), tensor(in_precision_of(x, v)))
                     if ok else tensor(x)
                     for x, v, like, ok in zip(values, tangents, likes, known.checked, strict=True)]
            result = call(*known.with_tensors(duals))
            pairs = [forward_ad.unpack_dual(y) for y in outputs(result)]
            moved = [np.zeros_like(array(p.primal)) if p.tangent is None else array(p.tangent) for p in pairs]
        return form(moved, is_tensor(result))

    values = [array(like) for like in likes]
    return Adapted(f, values, names, jvp if works(jvp, values) else None, notes)


def callable_of(func: Any) -> Callable:
    return func.apply if isinstance(func, type) else func                   # type: ignore[attr-defined]


def all_names(func: Any, inputs: list) -> list[str]:
    """The names of all leaves; those of a class are the parameters of its forward, but for the context."""
    if not isinstance(func, type):
        return named(func, inputs)
    skip = [None] if takes_context(func) else []
    return named(func.forward, [*skip, *inputs])[len(skip):]                # type: ignore[attr-defined]


def takes_context(func: type) -> bool:
    """Is it a Function of the older form, forward(ctx, x)?  The newer one has setup_context, and forward(x)."""
    return not any("setup_context" in vars(base) for base in func.__mro__ if not base.__module__.startswith("torch."))


def works(jvp: Callable, values: list[np.ndarray]) -> bool:
    """Does forward mode pass through this function?  Many Functions have no jvp."""
    copies = [np.array(x) for x in values]
    try:
        jvp(copies, [np.ones_like(x) for x in values])
    except Exception:
        return False
    return True


def gradients(ys: list, inputs: list, dys: list, differentiable: bool = False) -> list:
    """The gradient of <ys, dys> with respect to each input; None where torch has none."""
    pairs = [(y, d) for y, d in zip(ys, dys, strict=True) if y.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    grad = sys.modules["torch"].autograd.grad
    try:
        return list(grad([y for y, _ in pairs], inputs, [d for _, d in pairs], retain_graph=True,
                         create_graph=differentiable, allow_unused=True))
    except RuntimeError as error:
        if "returned an in" not in str(error):          # "... invalid gradient", "... incorrect number of gradients"
            raise
        raise ValueError(f"{error}; let backward return one of each input's shape, None for other arguments") from None


def outputs(result: Any) -> list:
    """The floating tensors that a function returned."""
    return [y for _, y in leaves(result) if is_tensor(y) and not has_integers(y)]


# --- second derivatives -----------------------------------------------------------------------------------------------

def differentiable(func: Callable, inputs: list) -> tuple[Callable, list, list[str]]:
    """(func as a function of its differentiated tensors that returns a tuple of tensors, those, their names)."""
    known = arguments(inputs)
    names = all_names(func, inputs)
    places = [place for place, ok in zip(known.places, known.checked, strict=True) if ok]
    every = {place: known.given[place] for place in known.places}

    def function(*tensors):
        return tuple(outputs(callable_of(func)(*known.with_tensors(
            [*(every | dict(zip(places, tensors, strict=True))).values()]))))

    return function, [every[place] for place in places], [names[place] for place in places]


def gradient_of(function: Callable, count: int) -> Callable:
    """The backward pass of a function of `count` tensors as a function of tensors: (*inputs, *dys) -> dx, ..."""
    def backward(*inputs_and_dys):
        inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in inputs_and_dys[:count]]
        grads = gradients(list(function(*inputs)), inputs, list(inputs_and_dys[count:]), differentiable=True)
        return tuple(0 * x if g is None else g for g, x in zip(grads, inputs, strict=True))

    return backward


def from_numpy(x: np.ndarray) -> Any:
    return tensor(x)


def to_numpy(x: Any) -> np.ndarray:
    return array(x)
