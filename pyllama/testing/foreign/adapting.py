"""What the adapters share: what an adapted function is, and the names of its inputs."""
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pyllama.testing.trees import leaves


class Adapted(NamedTuple):
    """A function of another library as a function of NumPy arrays.

    f         y, back = f(*inputs); the arrays may have any precision, and may be complex
    inputs    the arrays that f takes: one for each leaf that is an array, floating or of integers
    names     of the inputs, such as "x" or "params at weight"
    jvp       jvp(inputs, tangents) is the tangent of y; None if the library cannot tell
    notes     what the reader of a report should know; filled while f and back run
    """
    f: Callable
    inputs: list[np.ndarray]
    names: list[str]
    jvp: Callable | None
    notes: list[str]


def named(func: Callable, inputs: list) -> list[str]:
    """The name of each leaf of the inputs: that of func's parameter, or "input 0", and the path within it."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        known = [p.name for p in inspect.signature(func).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        known = []
    outer = [known[i] if i < len(known) else f"input {i}" for i in range(len(inputs))]
    return [f"{name} at {path}" if path else name
            for name, tree in zip(outer, inputs, strict=True) for path, _ in leaves(tree)]


def form(outputs: list, single: bool) -> Any:
    """One output alone, several as a tuple."""
    return outputs[0] if single and len(outputs) == 1 else tuple(outputs)


def in_precision_of(x: Any, v: Any) -> np.ndarray:
    """v, which is a tangent of x or the gradient of x, in the precision of x, which libraries insist on."""
    return np.asarray(v, np.asarray(x).dtype)


def require_some(func: Any, outputs: list) -> list:
    """The outputs.  Raises TypeError if there are none."""
    if not outputs:
        raise TypeError(f"{getattr(func, '__name__', 'the function')} returned no floating array, so there is no "
                        f"gradient to check; return at least one")
    return outputs
