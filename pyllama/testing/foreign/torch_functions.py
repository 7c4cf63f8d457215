"""Functions of tensors, and torch.autograd.Function, as functions of NumPy arrays.

A tensor shares the memory of its array, so that whoever calls f sees what torch's code does to inputs and to dy.
"""
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.testing.foreign.adapting import Adapted, form, leaves, named, rebuilt


def adapted(func: Callable, inputs: list) -> Adapted:
    """See Adapted.  A class stands for its apply."""
    call = func.apply if isinstance(func, type) else func                   # type: ignore[attr-defined]
    given = [x for _, x in leaves(inputs)]
    names = named(func.forward if isinstance(func, type) else func,         # type: ignore[attr-defined]
                  [None, *inputs] if takes_context(func) else inputs)[takes_context(func):]
    checked = [is_tensor(x) and x.is_floating_point() for x in given]
    if any(ok and x.requires_grad for ok, x in zip(checked, given, strict=True)):
        checked = [ok and x.requires_grad for ok, x in zip(checked, given, strict=True)]
    arrays = [ok or is_array(x) for ok, x in zip(checked, given, strict=True)]
    places = [place for place, is_input in enumerate(arrays) if is_input]
    notes: list[str] = []

    def arguments(tensors):
        every = dict(zip(places, tensors, strict=True))
        return rebuilt(inputs, iter([every.get(place, x) for place, x in enumerate(given)]))

    def f(*values):
        tensors = [tensor(x, given[place]) for x, place in zip(values, places, strict=True)]
        wanted = [x.requires_grad_() if checked[place] else x for x, place in zip(tensors, places, strict=True)]
        with sys.modules["torch"].enable_grad():
            result = call(*arguments(wanted))
        for x, t in zip(values, wanted, strict=True):
            show_changes(x, t)
        ys = outputs(result)

        def back(dy):
            dys = dy if isinstance(dy, tuple) else (dy,)
            grads = iter(gradients(ys, [x for x in wanted if x.requires_grad], [tensor(d) for d in dys]))
            return tuple(full(next(grads), x, name) if x.requires_grad else None
                         for x, name in zip(wanted, (names[place] for place in places), strict=True))

        def full(gradient, x, name):
            if gradient is not None:
                return array(gradient)
            note = f"torch has no gradient for {name}: it counts as zero"
            notes.extend([note] if note not in notes else [])
            return np.zeros(tuple(x.shape), array(x).dtype)

        return form([array(y) for y in ys], not isinstance(result, list | tuple | dict)), back

    def jvp(values, tangents):
        forward_ad = sys.modules["torch"].autograd.forward_ad
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(tensor(x, given[place]), tensor(v)) if checked[place] else tensor(x)
                     for x, v, place in zip(values, tangents, places, strict=True)]
            result = call(*arguments(duals))
            pairs = [forward_ad.unpack_dual(y) for y in outputs(result)]
            moved = [np.zeros(tuple(p.primal.shape)) if p.tangent is None else array(p.tangent) for p in pairs]
        return form(moved, not isinstance(result, list | tuple | dict))

    values = [array(given[place]) for place in places]
    return Adapted(f, values, [names[place] for place in places], jvp if works(jvp, values) else None, notes)


def takes_context(func: Callable) -> bool:
    """Is it a Function of the older form, forward(ctx, x)?  The newer one has setup_context, and forward(x)."""
    return isinstance(func, type) and not any("setup_context" in vars(base) for base in func.__mro__
                                              if not base.__module__.startswith("torch."))


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
    return list(sys.modules["torch"].autograd.grad([y for y, _ in pairs], inputs, [d for _, d in pairs],
                                                   retain_graph=True, create_graph=differentiable, allow_unused=True))


def gradient_of(func: Callable, count: int) -> Callable:
    """The backward pass of func as a function of tensors, so that it can be differentiated: (*inputs, *dy) -> dx, ...

    count   of the inputs, all of which are floating tensors
    """
    call = func.apply if isinstance(func, type) else func                   # type: ignore[attr-defined]

    def backward(*inputs_and_dy):
        inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in inputs_and_dy[:count]]
        grads = gradients(outputs(call(*inputs)), inputs, list(inputs_and_dy[count:]), differentiable=True)
        return tuple(0 * x if g is None else g for g, x in zip(grads, inputs, strict=True))

    return backward


def outputs(result: Any) -> list:
    """The floating tensors that a function returned."""
    return [y for _, y in leaves(result) if is_tensor(y) and (y.is_floating_point() or y.is_complex())]


def is_tensor(x: Any) -> bool:
    return hasattr(x, "is_floating_point")


def is_array(x: Any) -> bool:
    """Is it an array or tensor of integers?  Their gradient is None."""
    return is_tensor(x) and not x.is_floating_point() and not x.is_complex()


def tensor(x: Any, like: Any = None) -> Any:
    """An array as a tensor on its memory where torch can, in the layout and on the device of `like`."""
    torch = sys.modules["torch"]
    x = np.asarray(x)
    if like is not None and tuple(like.shape) == x.shape and has_gaps(like):
        t = torch.empty_strided(tuple(like.shape), tuple(like.stride()), dtype=on_memory(x).dtype)
        t.copy_(on_memory(x))
    else:
        t = on_memory(x)
    return t if like is None or like.device.type == "cpu" else t.to(like.device)


def has_gaps(t: Any) -> bool:
    """Is it a view with a layout of its own?  One whose entries share memory cannot be written to, entry by entry."""
    return not t.is_contiguous() and all(step > 0 or size == 1 for step, size in zip(t.stride(), t.shape, strict=True))


def on_memory(x: np.ndarray) -> Any:
    """A tensor of the same strides; on a copy if torch has no such tensor, or x is read-only."""
    torch = sys.modules["torch"]
    if x.dtype.name == "bfloat16":
        return on_memory(x.view(np.int16)).view(torch.bfloat16)
    if 0 in x.strides and x.size:                           # a broadcast dy is torch's expanded one
        once = x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.strides)]
        return torch.from_numpy(np.array(once)).expand(x.shape)
    shares = x.flags.writeable and x.flags.aligned and all(step >= 0 and step % x.itemsize == 0 for step in x.strides)
    return torch.from_numpy(x if shares else x.copy())


def array(t: Any) -> np.ndarray:
    """A tensor as an array, on its memory where it lies on the host."""
    t = t.detach()
    if str(t.layout) != "torch.strided":
        t = t.to_dense()
    t = t.resolve_conj().resolve_neg().cpu()
    if str(t.dtype) == "torch.bfloat16":
        import ml_dtypes

        return t.view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16)
    return t.numpy()


def show_changes(x: Any, t: Any) -> None:
    """Do to x what the function did to the tensor, where this is a copy."""
    if isinstance(x, np.ndarray) and x.flags.writeable and not np.shares_memory(x, new := array(t)) and x.size:
        x[...] = new
