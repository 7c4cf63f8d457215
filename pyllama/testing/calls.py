"""The forms in which a function and its gradients are given, brought to one: outputs, back = f(*leaves).

Leaves are the arrays of all inputs, end to end; outputs are a tuple of arrays; back(dys) returns a gradient for each
leaf.  All that a user can get wrong about the form is refused here, in one sentence.
"""
import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pyllama.errors import counted
from pyllama.testing import trees
from pyllama.testing.named import kind
from pyllama.testing.trees import is_float

FOREIGN = {"torch", "jax", "jaxlib", "numba", "_ctypes"}
BACKS = {
    "closure": "y, back, where back(dy) returns a gradient for each input; or give backward=",
    "saved": "y, saved, where saved is the tuple of what backward needs",
}


class OutOfTime(BaseException):
    """The deadline has passed.  A BaseException: `except Exception`, around a user's function, must not catch it."""


def name_of(func: Callable) -> str:
    """The function's name, for the report."""
    inner = getattr(func, "func", func)                                     # of a functools.partial
    name = getattr(inner, "__name__", "") or getattr(inner, "name", "")
    owner = getattr(inner, "__self__", None)
    if isinstance(owner, type):                                             # apply of a torch.autograd.Function
        return f"{owner.__name__}.{name}"
    return "f" if name in ("", "<lambda>") else str(name)


def described(result: Any) -> str:
    """The kind of a result, in a few words."""
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {len(result)}"
    if isinstance(result, np.ndarray):
        return "an array"
    return "None" if result is None else kind(result)


def as_list(inputs: Any) -> list:
    """The inputs of a call as a list; one array alone is one input."""
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


class Function:
    """A user's function and its gradients, called with a list of leaves.

    name        of the function
    names       of the leaves: "x", "p at weight"
    leaves      the leaves as given, copied: arrays; None for an input that is None
    form        "closure", "saved" or "plain": what `func` returns
    original    what the reader of a report calls: the function before it was adapted
    foreign     were its arrays of another library, and converted?
    keywords    of gradcheck that belong to the function
    deadline    by time.monotonic(), after which require_time() raises OutOfTime; None: there is no limit
    """

    def __init__(self, func: Callable, inputs: Any, backward: Callable | None = None, saved: bool = False,
                 jvp: Callable | None = None, names: Any = None):
        self.func, self.backward, self.jvp = func, backward, jvp
        if saved and backward is None:
            raise ValueError("saved=True belongs to backward=, which is not given; give the function that takes saved")
        self.name, self.original, self.foreign = name_of(func), func, False
        keywords = {"backward": backward, "saved": saved, "jvp": jvp}
        self.keywords = {keyword: value for keyword, value in keywords.items() if value}
        self.inputs = as_list(inputs)
        self.form = "closure" if backward is None else "saved" if saved else "plain"
        self.fills = backward is not None and "out" in parameters(backward)
        self.heads = input_names(func, len(self.inputs), names)
        pairs = [(head, path, leaf) for head, tree in zip(self.heads, self.inputs, strict=True)
                 for path, leaf in trees.leaves(tree)]
        self.names = [f"{head} at {path}" if path else head for head, path, _ in pairs]
        if twice := {name for name in self.names if self.names.count(name) > 1}:
            raise ValueError(f"two inputs have the name {min(twice)!r}; give each another name or key")
        self.originals = [leaf for _, _, leaf in pairs]
        self.leaves = [checked(name, leaf) for name, leaf in zip(self.names, self.originals, strict=True)]
        self.flat = len(self.originals) == len(self.inputs) and not any(path for _, path, _ in pairs)
        self.output_names = [y.name for y in getattr(func, "outputs", ()) if hasattr(y, "name")]       # of an Op
        self.notes: list[str] = []                      # filled while the function runs
        self.deadline: float | None = None
        self.callable: set[tuple] = set()               # the code of passes that take so many arguments

    def require_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime

    def arguments(self, leaves: list) -> list:
        """The inputs of func: trees like those given, with these leaves."""
        values = [trees.as_given(like, x) for like, x in zip(self.originals, leaves, strict=True)]
        if self.flat:
            return values
        branches = iter(values)
        return [trees.rebuild(tree, branches) for tree in self.inputs]

    def values(self, leaves: list) -> tuple:
        """The outputs alone, without a look at their form."""
        result = self.func(*self.arguments(leaves))
        y = result if self.form == "plain" else result[0]
        return tuple(map(np.asarray, y)) if isinstance(y, tuple) else (np.asarray(y),)

    def __call__(self, leaves: list) -> tuple[tuple, Callable]:
        """(outputs, back).  Raises TypeError unless func returns what its form needs."""
        arguments = self.arguments(leaves)
        result = self.func(*arguments)
        if self.form == "plain":
            y, rest = result, None
            if isinstance(y, tuple) and len(y) == 2 and callable(y[1]):
                raise TypeError(f"{self.name} returned y, back, but backward= is given, too; leave it out")
        else:
            if not (isinstance(result, tuple | list) and len(result) == 2) or not self.fits(result[1]):
                raise TypeError(f"{self.name} returned {described(result)}; return {BACKS[self.form]}")
            y, rest = result
        outputs = self.outputs(y)

        def back(dys):
            dy = self.packed(y, dys)
            if self.form == "closure":
                self.require_callable("back", rest, dy)
                return self.per_leaf(rest(dy))
            first = arguments if self.form == "plain" else rest
            if self.fills:
                return self.filled(dy, first, leaves)
            self.require_callable("backward", self.backward, dy, *first)
            return self.per_leaf(self.backward(dy, *first))

        return outputs, back

    def require_callable(self, name: str, func: Any, dy: Any, *others: Any) -> None:
        """As the function below, once for each code: closures are new in each call, and inspect is slow."""
        code = getattr(func, "__code__", None)
        if (code, len(others)) not in self.callable:
            require_callable(name, func, dy, *others)
        if code:
            self.callable.add((code, len(others)))

    def fits(self, rest: Any) -> bool:
        return callable(rest) if self.form == "closure" else isinstance(rest, tuple | list)

    def outputs(self, y: Any) -> tuple:
        """y as a tuple of arrays.  Raises TypeError for another form."""
        if isinstance(y, list | dict) or y is None:
            raise TypeError(f"{self.name} returned {described(y)} as y; return an array, such as np.asarray(y), or a "
                            f"tuple of arrays")
        for j, part in enumerate(y if isinstance(y, tuple) else ()):
            if isinstance(part, tuple | list | dict) or part is None:
                cure = "; if it is what backward needs, give saved=True (--saved)" * (self.form == "plain")
                raise TypeError(f"{self.name} returned {described(part)} as output {j}; return a tuple of arrays{cure}")
        outputs = tuple(map(np.asarray, y)) if isinstance(y, tuple) else (np.asarray(y),)
        for a in outputs:
            if a.dtype.kind == "c":
                raise TypeError(f"{self.name} returned {a.dtype}; return floating arrays: the real and the imaginary "
                                f"part are two outputs")
            if not is_float(a) and a.dtype.kind not in "iub":
                raise TypeError(f"{self.name} returned {a.dtype}; return floating arrays")
        if not any(map(is_float, outputs)):
            raise TypeError(f"{self.name} returned no floating array, so there is no gradient to check; return at "
                            f"least one")
        return outputs

    def packed(self, y: Any, dys: tuple) -> Any:
        """dys in the form of y: an array, a number, or a tuple of these."""
        if not isinstance(y, tuple):
            return trees.as_given(y, dys[0])
        parts = [trees.as_given(a, d) for a, d in zip(y, dys, strict=True)]
        return type(y)(*parts) if hasattr(y, "_fields") else tuple(parts)

    def per_leaf(self, grads: Any) -> list:
        """What back returned, as a gradient (or None) for each leaf.  Raises TypeError for another form."""
        if self.is_single(grads):
            grads = (grads,)
        if not isinstance(grads, tuple | list) or len(grads) != len(self.inputs):
            raise TypeError(f"back returned {described(grads)} for {counted(len(self.inputs), 'input')}; return a "
                            f"gradient for each, None for integers")
        per_leaf = []
        for head, tree, grad in zip(self.heads, self.inputs, grads, strict=True):
            if trees.branches(tree) is None:
                per_leaf.append(grad)
            elif grad is None or trees.branches(grad) is not None:
                below = dict(trees.leaves(grad))
                per_leaf += [below.get(path) for path, _ in trees.leaves(tree)]
            else:
                raise TypeError(f"back returned {described(grad)} as the gradient of {head}, which is "
                                f"{described(tree)}; return its gradients in the same form")
        return per_leaf

    def is_single(self, grads: Any) -> bool:
        """Is it the gradient of the only input itself, and not a tuple of one gradient?"""
        if len(self.inputs) > 1 or not isinstance(grads, tuple | list):
            return len(self.inputs) == 1
        of_one = len(grads) == 1 and trees.branches(grads[0]) is not None
        return isinstance(self.inputs[0], tuple | list) and not of_one

    def tangents(self, leaves: list, moves: list, outputs: tuple) -> tuple:
        """jvp's tangent of each output, when the leaves move so.  Raises TypeError for another form or shape."""
        result = self.jvp(*(self.arguments(trees.copies(arrays)) for arrays in (leaves, moves)))    # type: ignore[misc]
        parts = result if isinstance(result, tuple) else (result,)
        if len(parts) != len(outputs):
            raise TypeError(f"jvp returned {described(result)} for {counted(len(outputs), 'output')}; return a tangent "
                            f"for each")
        for j, (part, y) in enumerate(zip(parts, outputs, strict=True)):
            of = f"output {j}" if len(outputs) > 1 else "y"
            if part is None or isinstance(part, tuple | list | dict):
                raise TypeError(f"jvp returned {described(part)} as the tangent of {of}; return an array of its shape, "
                                f"{y.shape}")
            if np.shape(part) != y.shape:
                raise TypeError(f"jvp returned a tangent of shape {np.shape(part)} for {of}, which has {y.shape}; "
                                f"return one of the same shape")
        return tuple(map(np.asarray, parts))

    def filled(self, dy: Any, first: Any, leaves: list) -> list:
        """The gradients from a backward that fills arrays `out`, or adds to them."""
        blank = [np.zeros_like(x) if is_float(x) else None for x in leaves]
        values = iter(blank)
        out = tuple(trees.rebuild(tree, values) for tree in self.inputs)
        self.backward(dy, *first, out=out[0] if len(out) == 1 else out)      # type: ignore[misc]
        return blank


def brought(func: Callable, inputs: Any, backward: Callable | None, saved: bool, jvp: Callable | None,
            names: Any) -> Function:
    """The function, whatever library its arrays belong to."""
    for keyword, value in {"func": func, "backward": backward, "jvp": jvp}.items():
        if not callable(value) and (value is not None or keyword == "func"):
            raise TypeError(f"{keyword} is {described(value)}; give a function")
    inputs = as_list(inputs)
    if not any(package in FOREIGN for x in [func, backward, *(leaf for _, leaf in trees.leaves(inputs))]
               for package in packages(x)):
        return Function(func, inputs, backward, saved, jvp, names)
    from pyllama.testing import foreign
    if adapted := foreign.adapted(func, inputs):
        refuse_backward(func, backward)
        function = Function(adapted.f, adapted.inputs, jvp=jvp or adapted.jvp, names=names or adapted.names)
        function.name, function.original, function.foreign = name_of(func), func, True
        function.notes = adapted.notes
        return function
    return Function(foreign.plain(func), inputs, foreign.plain(backward), saved, foreign.plain(jvp), names)


def refuse_backward(func: Callable, backward: Any) -> None:
    """Raise TypeError if a backward pass is given for a function of another library, which has its own."""
    if backward is not None:
        raise TypeError(f"a backward pass is given, but {name_of(func)} takes arrays of a library that has its own; "
                        f"leave it out, or give NumPy arrays")


def packages(x: Any) -> set[str]:
    """The top-level packages of x's class, of its bases and, if it is a class, of x and its bases."""
    classes = [*type(x).__mro__, *(x.__mro__ if isinstance(x, type) else ())]
    return {cls.__module__.partition(".")[0] for cls in classes}


def parameters(func: Callable) -> list[str]:
    try:
        return [*inspect.signature(func).parameters]
    except (TypeError, ValueError):                     # compiled functions may have none
        return []


def require_callable(name: str, func: Any, dy: Any, *others: Any) -> None:
    """Raise TypeError, with the form of the call, if the function cannot be called with these arguments."""
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):                     # compiled functions may have none
        return
    try:
        signature.bind(dy, *others)
    except TypeError as error:
        parts = ", ".join(f"d{j}" for j in range(len(dy))) if isinstance(dy, tuple) else ""
        form = f"dy is one tuple, as y is: {parts} = dy" if parts else "dy comes first"
        called = "(dy)" if not others else f"(dy, and {len(others)} more)"
        raise TypeError(f"{name} cannot be called as {name}{called}: {error}; {form}") from None


def input_names(func: Callable, count: int, names: Any) -> list[str]:
    """A name for each input: those given, else the parameters' of func, else "input 0", ..."""
    if names is not None:
        if isinstance(names, str) or len(names) != count:
            raise ValueError(f"names is {names!r} for {counted(count, 'input')}; "
                             f"give a list with one for each")
        return [str(name) for name in names]
    declared = getattr(func, "inputs", None)                                # of an Op
    if isinstance(declared, list) and len(declared) >= count:
        return [x.name for x in declared[:count]]
    try:
        kinds = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        kinds = ()                                      # type: ignore[assignment]
    named = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named[:count] if len(named) >= count else [f"input {i}" for i in range(count)]


def checked(name: str, leaf: Any) -> np.ndarray | None:
    """A copy of the leaf as an array, or None.  Raises TypeError for what has no derivative and is not a number."""
    if leaf is None:
        return None
    x = np.array(leaf)
    x = x.astype(x.dtype.newbyteorder("="), copy=False)                     # as gradients have
    if x.dtype.kind == "c":
        raise TypeError(f"{name} is {x.dtype}; give floating arrays: the real and the imaginary part are two inputs")
    if not is_float(x) and x.dtype.kind not in "iub":
        raise TypeError(f"{name} is {x.dtype}; give floating arrays, and bind anything else with functools.partial")
    return x
