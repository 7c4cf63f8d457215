"""A stranger's function, called as an op is: y, back = adapter(*inputs, **options).

The function takes the op's inputs by position, in the op's order, and those of the op's options that it has a
parameter for, by keyword.  It returns

    y, back                     back(dy) -> gradients
    y                           with backward(dy, *inputs, **options) -> gradients, or without gradients
    y, saved                    with backward(dy, *saved, **options) -> gradients

There may be one gradient for each input (None for integers), or one for each floating input.  A function of torch's or
JAX's arrays returns y alone: the library has its gradients, also those of a torch.autograd.Function or a custom_vjp.
"""
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyllama.errors import counted
from pyllama.op import Op
from pyllama.testing.trees import is_float

NO_DEFAULT = inspect.Parameter.empty
KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class WrongResult(Exception):
    """What the function returned is not a result of the op, whatever its numbers are; a sentence."""


class Adapter:
    """Calls a function as the op is called.

    function    see the module
    backward    its backward pass, if function returns y, or y and saved
    saved       function returns y, saved, and backward takes these instead of the inputs
    rename      {the op's name of an option or an optional input: the function's}
    arrays      "torch" or "jax", for a function of their arrays
    fix         {option: value}, for the op and, if it has the parameter, for the function

    Raises TypeError or ValueError, with cause and cure, if the function cannot be called with the op's inputs.
    """

    def __init__(self, function: Callable, op: Op, backward: Callable | None = None, *, saved: bool = False,
                 rename: Mapping[str, str] | None = None, fix: Mapping[str, Any] | None = None,
                 arrays: str = "numpy"):
        self.function, self.op, self.backward, self.saved = function, op, backward, saved
        self.rename, self.fixed = dict(rename or {}), dict(fix or {})
        self.name = getattr(function, "__name__", type(function).__name__)
        if saved and backward is None:
            raise ValueError("saved is for a backward pass that takes what the forward pass saved; give backward, too")
        if arrays != "numpy" and backward is not None:
            raise ValueError(f"{arrays} has the gradients of a function of its arrays; leave backward out")
        self.arrays, self.library = arrays, None if arrays == "numpy" else library(arrays)
        for given, known, what in ((self.fixed, op.options, "option"),
                                   (self.rename, {*op.options, *op.optional}, "option or optional input")):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"{op.name} has no {what} {unknown[0]!r}; it has {', '.join(known) or 'none'}")
        self.parameters = parameters(function)
        self.keyword = self.keyword_of_inputs()
        self.inputs = [x for x in op.inputs if x.name in self.keyword]
        self.options = [name for name in op.options if self.takes(name, self.parameters)]
        self.returns_back: bool | None = None               # not known before the first call
        self.require_callable()

    def keyword_of_inputs(self) -> dict[str, str]:
        """{input that is passed: the keyword it is passed by, "" by position}."""
        required = [x.name for x in self.op.inputs if not x.optional]
        by_position = dict.fromkeys(required, "")
        if self.parameters is None:
            return by_position
        every = self.parameters.values()
        slots = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        several = any(p.kind is p.VAR_POSITIONAL for p in every)
        if len(slots) < len(required) and not several:
            raise TypeError(f"{self.name} takes {counted(len(slots), 'argument')} by position, but {self.op.name} "
                            f"passes {', '.join(required)}; let it take these")
        keyword, slots = by_position, slots[len(required):]
        for name in (x.name for x in self.op.inputs if x.optional):
            ours = self.rename.get(name, name)
            if self.has(ours, self.parameters):
                keyword[name] = ours
            elif several:
                keyword[name] = ""
            elif slots and self.is_free(slots[0]):
                keyword[name] = slots[0].name
            slots = [p for p in slots if p.name != keyword.get(name)]
        return keyword

    def is_free(self, parameter):
        """May the parameter be that of an optional input, which has another name in the op?"""
        names = {self.rename.get(name, name) for name in (*self.op.options, *self.op.optional)}
        return parameter.default in (None, NO_DEFAULT) and parameter.name not in names

    def has(self, name, parameters):
        """Can an argument of this name be passed by keyword?"""
        return name in parameters and parameters[name].kind in KEYWORD

    def takes(self, option, parameters):
        """Can the option be passed by keyword?"""
        name, several = self.rename.get(option, option), inspect.Parameter.VAR_KEYWORD
        return parameters is not None and (self.has(name, parameters)
                                           or any(p.kind is several for p in parameters.values()))

    def require_callable(self):
        """Raise ValueError if the function needs an argument that it does not get, or an option it does not take."""
        names = {self.rename.get(name, name) for name in self.options} | {*self.keyword.values()}
        positional = sum(not x.optional for x in self.op.inputs)
        others = list((self.parameters or {}).values())[positional:]
        missing = [p.name for p in others if p.default is NO_DEFAULT and p.name not in names
                   and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if missing:
            raise ValueError(f"{self.name} needs {missing[0]}, which {self.op.name} does not pass; give it a default "
                             f"value, or say which option it is with rename")
        defaults = self.defaults()
        lacking = [name for name in self.op.options
                   if name not in self.options and name not in defaults and name not in self.fixed]
        if lacking:
            raise ValueError(f"{self.name} has no parameter {lacking[0]!r}, which {self.op.name} needs; add it, or "
                             f"give its value with fix")

    def defaults(self) -> dict[str, Any]:
        """The values that the op's options have if they are not passed."""
        return {name: p.default for name, p in inspect.signature(self.op.forward).parameters.items()
                if name in self.op.options and p.default is not NO_DEFAULT} | self.fixed

    def not_passed(self) -> list[str]:
        """A sentence for each option and optional input that the function has no parameter for."""
        defaults = self.defaults()
        left_out = [f"{x.name}: {self.name} has no parameter for it, so it is left out" for x in self.op.inputs
                    if x not in self.inputs]
        return left_out + [f"{name}: {self.name} has no parameter of this name, so {self.op.name} uses "
                           f"{defaults[name]!r}" for name in self.op.options if name not in self.options]

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Any, Callable | None]:
        """(y, back); back is None if the function gives no gradients.  Raises WrongResult, and what it raises."""
        if self.library is not None:
            return self.through_library(inputs, options)
        result = self.called(inputs, options)
        if self.backward is None:
            self.returns_back = isinstance(result, tuple | list) and len(result) == 2 and callable(result[1])
            if self.returns_back:
                y, back = result
                return y, lambda dy: self.gradients(back(dy), inputs)
            return result, None
        kept = inputs
        if self.saved:
            if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], tuple | list)):
                raise WrongResult(f"{self.name} does not return y, saved, where saved is a tuple; return that, or "
                                  f"leave saved out")
            result, kept = result
        backward = self.backward
        others = self.keywords(parameters(backward), options)
        return result, lambda dy: self.gradients(backward(dy, *kept, **others), inputs)

    def through_library(self, inputs, options):
        """(y, back) of a function of the library's arrays."""
        given = [x for x in inputs if x is not None]

        def of_given(*arrays):
            rest = iter(arrays)
            return self.called([None if x is None else next(rest) for x in inputs], options)

        wrap = getattr(self.library, "tensor", np.asarray)              # JAX's adapter takes arrays of NumPy
        y, back = self.library.adapted(of_given, [wrap(x) for x in given]).f(*given)

        def full(dy):
            grads = iter(back(dy))
            return [None if x is None else next(grads) for x in inputs]

        return y, full

    def called(self, inputs, options):
        """What the function returns."""
        named = self.keywords(self.parameters, options)
        by_position = []
        for declared, x in zip(self.inputs, inputs, strict=False):
            if keyword := self.keyword[declared.name]:
                named[keyword] = x
            else:
                by_position.append(x)
        return self.function(*by_position, **named)

    def as_called(self, given: list[str], dy: str, options: Mapping[str, Any]) -> tuple[str, str]:
        """(a statement that calls the function f with the inputs of these names, the gradients of dy or "")."""
        names = [x.name for x in self.inputs]
        passed = [f"{self.keyword[name]}={name}" if self.keyword[name] else name if name in given else "None"
                  for name in names if name in given or not self.keyword[name]]
        call = f"f({', '.join(passed + assigned(self.keywords(self.parameters, options)))})"
        if self.library is not None:                        # then f is this adapter
            inputs = [name if name in given else "None" for name in names]
            options = {name: options[name] for name in self.options}
            return f"y, back = f({', '.join(inputs + assigned(options))})", f"back({dy})"
        if self.backward is None:
            return (f"y, back = {call}", f"back({dy})") if self.returns_back else (f"y = {call}", "")
        kept = ["*saved"] if self.saved else [name if name in given else "None" for name in names]
        others = assigned(self.keywords(parameters(self.backward), options))
        return f"y{', saved' * self.saved} = {call}", f"backward({', '.join([dy, *kept, *others])})"

    def keywords(self, taken, options):
        """The options by the function's names, those that it takes."""
        return {self.rename.get(name, name): value for name, value in options.items() if self.takes(name, taken)}

    def gradients(self, grads, inputs) -> list:
        """One gradient for each input, None for integers and for inputs that are left out.  Raises WrongResult."""
        floating = [x is not None and is_float(x) for x in inputs]
        if not isinstance(grads, tuple | list):
            grads = (grads,)
        if len(grads) == sum(floating) != len(inputs):
            given = iter(grads)
            return [next(given) if floats else None for floats in floating]
        if len(grads) < len(inputs) or any(g is not None for g in grads[len(inputs):]):
            raise WrongResult(f"the backward pass of {self.name} returns {counted(len(grads), 'gradient')} for "
                              f"{counted(len(inputs), 'input')}; return one for each, None for integers")
        for declared, g, floats in zip(self.inputs, grads, floating, strict=False):
            if floats and g is None:
                raise WrongResult(f"the backward pass of {self.name} returns no gradient of {declared.name}")
        return [g if floats else None for g, floats in zip(grads, floating, strict=False)]

    def outputs(self, y) -> list[np.ndarray]:
        """The outputs as arrays.  Raises WrongResult unless there are as many as the op has."""
        ys = y if isinstance(y, tuple | list) and len(self.op.outputs) > 1 else (y,)
        if len(ys) != len(self.op.outputs):
            raise WrongResult(f"{self.name} returns {counted(len(ys), 'output')}; {self.op.name} has "
                              f"{', '.join(str(y) for y in self.op.outputs)}")
        return [np.asarray(a) for a in ys]


def library(name: str) -> Any:
    """The module that calls functions of this library's arrays.  Raises ValueError if it is not installed."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported: {error}; install it, or leave arrays out") from None
    return importlib.import_module(f"pyllama.testing.foreign.{name}_functions")


def assigned(options: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in options.items()]


def parameters(function) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a function by name; None if Python does not know them, as of a function of C.

    An op is called by position: then inputs that are None have a gradient, too.
    """
    try:
        return inspect.signature(function, follow_wrapped=not isinstance(function, Op)).parameters
    except (TypeError, ValueError):
        return None
