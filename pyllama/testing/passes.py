"""Run both passes once, and collect the mistakes that are not wrong numbers: a Fault for each."""
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pyllama.testing.calls import Function
from pyllama.testing.report import Fault
from pyllama.testing.trees import copies, is_float

REORDERED = 1e3                             # roundings by which two calls may differ: another order of sums
RANDOM = 1e-3                               # a larger relative difference between two calls is not rounding


def each(y: Any) -> tuple:
    """An output, or several, as a tuple."""
    return y if isinstance(y, tuple) else (y,)


def flat(y: Any) -> np.ndarray:
    """All outputs end to end: [M]."""
    return np.concatenate([np.ravel(np.asarray(a)) for a in each(y)])


class Faults(dict):
    """The faults met so far: one of each kind and place."""

    def add(self, kind: str, sentence: str, place: str = "") -> None:
        self.setdefault((kind, place), Fault(kind, sentence))

    def of(self, place: str) -> bool:
        return any(place == where for _, where in self)


def restored(before: list, arrays: Iterable) -> bool:
    """Has an array changed in one bit?  If so, it gets its old numbers back."""
    changed = [(old, x) for old, x in zip(before, arrays, strict=True)
               if old is not None and old.tobytes() != np.asarray(x).tobytes()]
    for old, x in changed:
        x[...] = old
    return bool(changed)


def eps_of(dtype: Any) -> float:
    """The spacing of the numbers of this precision at 1."""
    return 2.0 ** -7 if np.dtype(dtype).name == "bfloat16" else float(np.finfo(dtype).eps)


def noted(f: Callable, call: str, argument: Any) -> Any:
    """f(argument); an exception says which call raised it."""
    try:
        return f(argument)
    except Exception as error:
        error.add_note(f"Raised in {call}.")
        raise


def forward(function: Function, leaves: list, faults: Faults) -> tuple[tuple, Callable]:
    """(outputs, back).  Raises TypeError for another form, ValueError if an output is NaN."""
    function.require_time()
    before = copies(leaves)
    try:
        outputs, back = noted(function, f"the call {function.name}(...)", leaves)
    except RuntimeWarning:                                  # under -W error; of NaN there is more to say
        with warnings.catch_warnings(action="ignore"):
            require_numbers(function, function(copies(before))[0])
        raise
    kept = copies(outputs)                                  # an output may be an input that func has changed
    if restored(before, leaves):
        outputs = tuple(kept)
        faults.add("input mutated", f"{function.name} changes its inputs in place; let it work on a copy")
    require_numbers(function, outputs)
    return outputs, back


def require_numbers(function: Function, outputs: tuple) -> None:
    """Raise ValueError if an output is NaN."""
    if any(is_float(a) and np.isnan(a).any() for a in outputs):
        raise ValueError(f"{function.name} returned NaN; check it at inputs where it is defined")


def gradients(function: Function, back: Callable, dys: tuple, outputs: tuple, leaves: list, precisions: frozenset,
              faults: Faults, again: bool = False) -> list:
    """A gradient for each leaf; None for integers, and where there is none that could be compared.

    precisions  the dtypes that the floating inputs had before they were converted: a gradient may have one of them
    again       call back a second time, which must give the same

    Raises TypeError if back returns another number of gradients.
    """
    before = copies(dys), copies(outputs), copies(leaves)
    returned = noted(back, f"the call back(dy) of {function.name}", dys)
    of_y = {a.dtype for a in outputs if is_float(a)}
    allowed = precisions | (of_y if len(of_y) == 1 else set())
    grads = [fitting(name, x, dx, allowed, faults)
             for name, x, dx in zip(function.names, leaves, returned, strict=True)]
    for old, arrays, kind, what in zip(before, (dys, outputs, leaves), ("dy mutated", "y mutated", "input mutated"),
                                       ("dy", "y", "the inputs"), strict=True):
        if restored(old, arrays):
            faults.add(kind, f"back changes {what} in place; let it work on a copy")
    if again:
        for name, first, second in zip(function.names, grads, back(dys), strict=True):
            if first is not None and differ(first, second):
                faults.add("back runs once", f"the second call of back gives another gradient of {name} than the "
                                             f"first; let back change nothing that it uses", name)
        for old, arrays in zip(before, (dys, outputs, leaves), strict=True):
            restored(old, arrays)
    return grads


def require_same_again(function: Function, leaves: list, outputs: tuple, tolerance: float, faults: Faults) -> None:
    """A fault if a second call gives other outputs by more than the tolerance, ValueError if they are random."""
    again = function(copies(leaves))[0]
    if len(again) != len(outputs) or any(a.shape != b.shape for a, b in zip(outputs, again, strict=False)):
        raise ValueError(f"{function.name} returns outputs of other shapes when it is called again; let them depend on "
                         f"its inputs alone")
    for a, b in zip(outputs, again, strict=True):
        gap = np.max(np.abs(np.subtract(a, b, where=a != b, out=np.zeros(a.shape))), initial=0)
        if gap > RANDOM * np.max(np.abs(a), initial=0, where=np.isfinite(a)):
            raise ValueError(f"{function.name} is random: two calls with the same inputs differ by {gap:.2g}; seed its "
                             f"generator inside it, or give the random numbers as an input")
        if not gap <= tolerance:
            faults.add("not deterministic", f"two calls of {function.name} with the same inputs differ by {gap:.2g}; "
                                            f"if its order of sums varies, allow that: nondet_tol={gap:.1g}")


def differ(first: np.ndarray, second: Any, eps: float = 0.0) -> bool:
    """Do two results of the same call differ by more than another order of sums explains, in this precision?"""
    if np.shape(second) != first.shape:
        return True
    with np.errstate(invalid="ignore"):
        rounding = reordered(max(eps, eps_of(first.dtype) if is_float(first) else 0)) * np.abs(first).max(initial=0)
        return bool(np.isfinite(first).all() and not (np.abs(first - second) <= rounding).all())


def reordered(eps: float) -> float:
    """How far two orders of a sum may be apart, relative to the largest entry.

    In float16 and bfloat16, 1,000 roundings would excuse everything.  If they are independent, they add up to √1,000.
    """
    return eps * (REORDERED if eps <= eps_of(np.float32) else REORDERED ** 0.5)


def fitting(name: str, x: Any, dx: Any, allowed: frozenset, faults: Faults) -> np.ndarray | None:
    """A copy of dx as a real array of x's shape; None, and a fault, if it is something else."""
    if not is_float(x):
        return None
    if dx is None:
        faults.add("no gradient", f"back returned no gradient for {name}, which is floating; return an array of its "
                                  f"shape", name)
        return None
    if np.shape(dx) != x.shape:
        summed = f"; sum it over the axes along which {name} was broadcast" if np.ndim(dx) > x.ndim else ""
        faults.add("wrong shape", f"the gradient of {name} has shape {np.shape(dx)}, the input has {x.shape}{summed}",
                   name)
        return None
    number, dx = isinstance(dx, int | float), np.array(dx)
    if not number and dx.dtype not in allowed | {x.dtype}:
        faults.add("wrong dtype", f"the gradient of {name} is {dx.dtype}, but the input is {x.dtype}; return that "
                                  f"precision", name)
    if dx.dtype.kind not in "fiubc" and not is_float(dx):
        return None
    dx = dx.real if dx.dtype.kind == "c" else dx
    return dx if is_float(dx) and not number else dx.astype(x.dtype)
