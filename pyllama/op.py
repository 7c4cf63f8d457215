"""An op: a differentiable function with a hand-written backward pass, on every backend.

    y, back = op(*inputs, **options)        # run forward, save what backward needs
    dx, dw, ... = back(dy)                  # one gradient per input passed; None for an integer input
    (s, y), back = op(...);  back((ds, dy)) # several outputs are a tuple, and so are their gradients

dy is ∂loss/∂y, with the shape and precision of y.  back may hold y and the inputs: do not write to them before it has
run.  Equal gradients, such as those of two summands, may be the same array.  Layers, blocks, models and losses have
this form, too.  Their backward pass is the chain rule: it calls the parts' backs in reverse order.

An op's module has the derivation (its docstring), two plain functions and one line that registers the op:

    forward(*inputs, **options) -> y, saved          backward(dy, *saved, **options) -> gradients
    rms_norm = op("x[... D], w[D] -> y[... D]", forward, backward, eps=between(1e-8, 0.1))

The line declares the shapes (see shapes.py) and the options.  Tests draw the value of an option from name=[...] or
from the interval name=between(low, high).

The two functions are the reference.  They are pure; holomorphic, because a complex step then differentiates them
exactly; and written with NumPy's functions and methods alone, because they run on CuPy's arrays, too.  A backend's
kernels, looked up by name, run instead if they support the inputs:

    NAME(*inputs, **options) -> y, saved             or NotImplemented, to decline: then the reference runs both passes
    NAME_backward(dy, *saved, **options) -> gradients
    NAME_backward_into(dy, *saved, into={i: array}, **options)
                                                     optional: may add the gradient of input i to into[i] (the same
                                                     shape and precision, any strides) and then return into[i]
"""
import contextlib
import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from pyllama import backend, params, shapes

OPS: dict[str, "Op"] = {}                           # name -> Op: what is tested, benchmarked and documented
_watcher: ContextVar[Callable | None] = ContextVar("watcher of op calls", default=None)


class between(NamedTuple):
    """The interval from which tests draw an option: integers if both ends are integers."""
    low: float
    high: float


class Op:
    """A registered op, called as op(*inputs, **options); see the module.

    Raises TypeError or ValueError if the inputs, or the gradient passed to back, do not fit the declared shapes.
    """

    def __init__(self, line, forward, backward, **options):
        self.name = forward.__module__.rpartition(".")[2]
        self.name_backward, self.name_into = f"{self.name}_backward", f"{self.name}_backward_into"     # of kernels
        self.shapes, self.forward, self.backward, self.options = line, forward, backward, options
        self.__doc__ = inspect.getdoc(inspect.getmodule(forward))
        self.inputs, self.outputs = map(shapes.arrays, line.split("->"))
        self.check = functools.lru_cache(4096)(functools.partial(shapes.check, self))   # once a signature
        OPS[self.name] = self

    def __call__(self, *inputs, **options):
        if watcher := _watcher.get():
            return watcher(self, inputs, options)
        self.check(shapes.signature(inputs))
        kernels = backend.kernels_for(inputs)
        result = getattr(kernels, self.name, self.forward)(*inputs, **options)
        if result is NotImplemented:
            kernels, result = None, self.forward(*inputs, **options)
        y, saved = result
        backward = getattr(kernels, self.name_backward, self.backward)
        if places := params.places(inputs):
            into = getattr(kernels, self.name_into, None)
            backward = functools.partial(into, into=places) if into else backward
        signature, count = shapes.signature(self.each(y)), len(inputs)  # back holds no array but those in saved

        def back(dy):
            if isinstance(dy, np.floating):                 # a NumPy scalar would turn float32 gradients into float64
                dy = float(dy)
            for output, d, (shape, dtype) in zip(self.outputs, self.each(dy), signature, strict=True):
                shapes.check_dy(self, output, d, shape, dtype)
            grads = backward(dy, *saved, **options)[:count]
            return params.gather(places, grads) if places else grads

        return y, back

    def each(self, y):
        """y or dy as a tuple: one array for each output.  Raises TypeError if their number is wrong."""
        ys = y if len(self.outputs) > 1 else (y,)
        if len(ys) != len(self.outputs):
            raise TypeError(f"{self.name} returns{self.shapes.partition('->')[2]}: pass one gradient for each, "
                            f"not {len(ys)}")
        return ys

    def backends(self):
        """The names of the backends with this op: the reference, and the compiled modules that have a kernel."""
        return ["numpy", *(name for name in backend.available() if hasattr(getattr(backend, name, None), self.name))]


@contextlib.contextmanager
def watching(watch):
    """Replace every op call within this context by watch(op, call, inputs, options), which returns (y, back).

    call(*inputs, **options) runs the op, through the watcher of the surrounding context if there is one.  A watcher may
    change inputs and results and wrap back: diagnosis, timing, tracing and tests use it.  It applies to this thread and
    to those that run in a copy of its context, such as the shards of a training step.

        def count(op, call, inputs, options):
            calls[op.name] += 1
            return call(*inputs, **options)
    """
    outer = _watcher.get()

    def watcher(op, inputs, options):
        def call(*inputs, **options):
            token = _watcher.set(outer)
            try:
                return op(*inputs, **options)
            finally:
                _watcher.reset(token)

        return watch(op, call, inputs, options)

    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


op = Op
