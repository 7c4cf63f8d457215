"""Compare one call of somebody else's function with the reference."""
import contextlib
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pyllama.testing.passes import eps_of, reordered
from pyllama.testing.problems import packed
from pyllama.testing.trees import copies, is_float
from pyllama.testing.verify.adapter import Adapter, WrongResult
from pyllama.testing.verify.counterexample import Call
from pyllama.testing.verify.result import Mistake
from pyllama.testing.verify.tolerance import scaled_tolerances, tolerances

REFUSALS = (TypeError, ValueError, NotImplementedError, BufferError)
MORE, CLOSE = 8, 1e3                                # places at which a tolerance is measured that is exceeded by little
OVERWRITTEN = "gradients of an earlier call"
Found = tuple[Mistake | None, float]                # what is wrong; the largest error in tolerances, NaN if not judged


class Judge:
    """Says what is wrong with a call, property by property."""

    def __init__(self, adapter: Adapter):
        self.adapter, self.op = adapter, adapter.op
        self.input_names = [x.name for x in adapter.inputs]
        self.output_names = [y.name for y in adapter.op.outputs]

    def gives_gradients(self, call: Call) -> bool:
        """Does the function return a back, or has it a backward pass?  True if it fails, too."""
        with quiet(), contextlib.suppress(Exception):
            return self.adapter(*call.inputs, **call.options)[1] is not None
        return True

    def values(self, call: Call) -> Found:
        return self.compared(call, gradients=False)

    def gradients(self, call: Call) -> Found:
        return self.compared(call, values=False)

    def both(self, call: Call) -> Found:
        return self.compared(call)

    def precision(self, call: Call) -> Found:
        """Both, and the dtypes of the results."""
        return self.compared(call, dtypes=True)

    def scales(self, call: Call) -> Found:
        """Both, at inputs of any scale."""
        return self.compared(call, derived=scaled_tolerances)

    def layouts(self, call: Call) -> Found:
        """Both; if an option is wrong in an ordinary layout, too, the layout is judged without it."""
        found, usual = self.both(call), call.options | call.defaults
        plain = replace(call, layouts=("C",) * len(call.layouts))
        if found[0] and usual != call.options and self.both(plain)[0]:
            return self.both(replace(call, options=usual))
        return found

    def compared(self, call: Call, values: bool = True, gradients: bool = True, dtypes: bool = False,
                 derived: Callable = tolerances) -> Found:
        """The first result that is wrong.  Where one is off by little, its tolerance is measured at more places."""
        mistake, error = self.compared_at(1, call, values, gradients, dtypes, derived)
        close = mistake is not None and error < CLOSE
        return self.compared_at(MORE, call, values, gradients, dtypes, derived) if close else (mistake, error)

    def compared_at(self, places: int, call: Call, values: bool, gradients: bool, dtypes: bool,
                    derived: Callable) -> Found:
        wanted = self.reference(call, places, derived)
        if wanted is None:
            return None, np.nan
        share, count = 0.0, len(self.op.outputs)
        for step, looked in ((self.outputs, values), (self.grads, gradients)):
            try:
                with quiet():
                    results = step(call)
            except WrongResult as error:
                return Mistake("result", str(error)), np.inf
            except Exception as error:
                return Mistake("exception", self.raised(error), isinstance(error, REFUSALS)), np.inf
            expected = wanted[:count] if step == self.outputs else wanted[count:]
            for (name, result), (value, bound) in zip(results if looked else (), expected, strict=False):
                mistake, gap = self.off(name, result, value, bound, call.dtype if dtypes else None)
                if mistake:
                    return mistake, gap
                share = max(share, gap)
            if not gradients:
                break
        return None, share

    def raised(self, error: Exception) -> str:
        return f"{self.adapter.name} raised {type(error).__name__}: {error}".rstrip(": ")

    def reference(self, call: Call, places: int, derived: Callable) -> list | None:
        """[(value, bound), ...] of the outputs, then of the gradients; None if the op is not defined there."""
        with quiet(), contextlib.suppress(Exception):
            by_name = {name: x for name, x, _ in call.named()}
            inputs: Any = [by_name.get(x.name) for x in self.op.inputs]
            while inputs[-1] is None:
                inputs.pop()
            wanted = derived(self.op, inputs, call.options, packed(call.arrays[-call.outputs:]), places)
            return wanted if all(bound < np.inf and not np.isnan(a).any() for a, bound in wanted) else None
        return None

    def outputs(self, call: Call) -> list[tuple[str, Any]]:
        y, _ = self.adapter(*call.inputs, **call.options)
        return list(zip(self.output_names, self.adapter.outputs(y), strict=True))

    def grads(self, call: Call) -> list[tuple[str, Any]]:
        """The gradients of the floating inputs by name; empty if the function gives none."""
        _, back = self.adapter(*call.inputs, **call.options)
        grads = back(packed(call.dys)) if back else []
        return [(f"d{declared.name}", np.asarray(g)) for declared, x, g
                in zip(self.adapter.inputs, call.arrays, grads, strict=False) if x is not None and is_float(x)]

    def off(self, name: str, result: np.ndarray, value: np.ndarray, bound: float, dtype) -> Found:
        """Is a result further from the reference than the bound, or of another shape or dtype?"""
        if result.dtype.kind not in "iu" and not is_float(result):
            return Mistake(name, f"{name} is {result.dtype}; return a floating array"), np.inf
        if result.shape != value.shape:
            return Mistake(name, f"{name} has the shape {result.shape}, {self.op.name} has {value.shape}"), np.inf
        if dtype is not None and result.shape and result.dtype != dtype:
            return Mistake(f"dtype of {name}", f"{name} is {result.dtype} for inputs of {dtype}"), np.inf
        with quiet():
            error = np.where(result == value, 0.0, np.abs(np.subtract(result, value, dtype=float)))
        wrong = ~(error <= bound)
        if wrong.any():
            index = np.unravel_index(np.where(np.isnan(error), np.inf, error).argmax(), error.shape)
            place = f"{name}[{', '.join(map(str, index))}]" if index else name
            got, want = float(result[index]) + 0.0, float(value[index]) + 0.0        # no -0
            return Mistake(name, f"{place} is {got:.9g}, {self.op.name} has {want:.9g}: |difference| "
                                 f"{float(error[index]):.3g} > {bound:.3g}"), float(error[index] / bound)
        return None, float(error.max(initial=0.0) / bound) if bound else 0.0

    def aliasing(self, call: Call) -> Found:
        """Changed inputs, shared memory, shared state."""
        try:
            with quiet():
                return self.aliased(call), 0.0
        except Exception as error:                  # another property says whether that is wrong
            return Mistake("exception", self.raised(error), True), 0.0

    def aliased(self, call: Call) -> Mistake | None:
        inputs, dys = call.inputs, call.dys
        y, back = self.adapter(*inputs, **call.options)
        ys = self.adapter.outputs(y)
        kept = copies(ys)
        if mistake := self.forward_touches(call, inputs, ys):
            return mistake
        if back is None:
            return self.another_call_changes(call, ys, kept)
        first = gradients_of(back, dys)
        grads = copies(first)
        return (self.backward_changes(call, inputs, dys, ys, kept) or self.another_call_changes(call, ys, kept)
                or self.another_back_changes(call, back, first, grads)
                or self.gradients_touch(inputs, grads, gradients_of(back, dys)))

    def forward_touches(self, call: Call, inputs: list, ys: list) -> Mistake | None:
        """Does the forward pass change its inputs, or do its outputs share memory?"""
        name = self.adapter.name
        if changed := difference(self.input_names, call.inputs, inputs):
            return Mistake("inputs", f"{name} changes its input {changed}; work on a copy")
        for output, a in zip(self.output_names, ys, strict=True):
            if shared := self.sharing(a, inputs):
                return Mistake("memory", f"the output {output} of {name} shares memory with its input {shared}; "
                                         f"return a copy")
        if len(ys) > 1 and any(np.shares_memory(a, b) for a, b in itertools.pairwise(ys)):
            return Mistake("memory", f"two outputs of {name} share memory; return a copy")
        return None

    def backward_changes(self, call: Call, inputs: list, dys: list, ys: list, kept: list) -> Mistake | None:
        """Has the backward pass changed dy, an input or an output?"""
        dy_names = [f"d{name}" for name in self.output_names]
        for what, names, before, after in (("", dy_names, call.dys, dys),
                                           ("the input ", self.input_names, call.inputs, inputs),
                                           ("the output ", self.output_names, kept, ys)):
            if changed := difference(names, before, after):
                return Mistake("inputs", f"the backward pass of {self.adapter.name} changes {what}{changed}; work on "
                                         f"a copy")
        return None

    def another_call_changes(self, call: Call, ys: list, kept: list) -> Mistake | None:
        """Does a call with other inputs change the outputs of this one?"""
        others = [x if x is None or not is_float(x) else 1 - x for x in call.inputs]
        self.adapter(*others, **call.options)
        if changed := difference(self.output_names, kept, ys):
            return Mistake("state", f"another call of {self.adapter.name} changes the output {changed} of this one; "
                                    f"return an array of its own")
        return None

    def another_back_changes(self, call: Call, back: Callable, grads: list, kept: list) -> Mistake | None:
        """Does a second call of back, with another dy, change the gradients of the first?"""
        gradients_of(back, [np.asarray(2 * dy) for dy in call.dys])
        names = [f"d{name}" for name, x in zip(self.input_names, call.inputs, strict=True)
                 if x is not None and is_float(x)]
        if changed := difference(names, kept, grads):
            return Mistake(OVERWRITTEN, f"another call of the backward pass of {self.adapter.name} changes {changed} "
                                        f"of this one; return an array of its own")
        return None

    def gradients_touch(self, inputs: list, before: list, after: list) -> Mistake | None:
        """Are the gradients others after another call, or do they share memory with the inputs?"""
        name = self.adapter.name
        for old, new in zip(before, after, strict=True):
            rounding = reordered(eps_of(old.dtype)) * np.abs(old).max(initial=0)
            if not (np.abs(old - new) <= rounding).all():
                return Mistake("state", f"a gradient of {name} is another one after the function was called with other "
                                        f"inputs; keep what backward needs with the call")
        for g in after:
            if shared := self.sharing(g, inputs):
                return Mistake("memory", f"a gradient of {name} shares memory with its input {shared}; return a copy")
        return None

    def sharing(self, a: np.ndarray, inputs: list) -> str:
        """The name of the input that the array shares memory with; "" if there is none."""
        return next((name for name, x in zip(self.input_names, inputs, strict=True)
                     if x is not None and np.shares_memory(a, x)), "")


def gradients_of(back: Callable, dys: list) -> list[np.ndarray]:
    """The gradients of a call of back as arrays, without those that are None."""
    return [np.asarray(g) for g in back(packed(dys)) if g is not None]


def difference(names, before, after) -> str:
    """The name of the first array that has changed in one bit; "" if none has."""
    return next((name for name, old, new in zip(names, before, after, strict=True)
                 if old is not None and old.tobytes() != new.tobytes()), "")


@contextlib.contextmanager
def quiet():
    """No warnings of the functions that are compared: their numbers are judged."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
