"""An op is a differentiable function with a hand-written backward pass, on every backend.

    y, back = op(*inputs, **options)        # run forward, keep what backward needs
    dx, dw, ... = back(dy)                  # one gradient per input given; None for an integer input
    (s, y), back = op(...);  back((ds, dy)) # several outputs are a tuple, and so are their gradients

dy is ∂loss/∂y, of the shape and precision of y.  back may keep y and the inputs: they must not be written to before
it has run.  Equal gradients, such as those of two summands, may be one array.  Layers, blocks, models and losses
have this same form, so that a composed backward is the chain rule spelled out: call the pieces' backs in reverse order.

An op's module holds its derivation (the docstring), two plain functions and one line that registers it:

    forward(*inputs, **options) -> y, saved          backward(dy, *saved, **options) -> gradients
    rms_norm = op("x[... D], w[D] -> y[... D]", forward, backward, eps=between(1e-8, 0.1))

The line says the shapes (see shapes.py) and the options: name=[...] lists the values that tests draw, and
name=between(low, high) the interval.

The two functions are the reference: pure, holomorphic (so that a complex step differentiates them exactly), and
written in NumPy's functions and methods alone, so that they run on CuPy's arrays too.  Where the inputs allow it, the
kernels of a backend run instead, found by name:

    NAME(*inputs, **options) -> y, saved             or NotImplemented, to decline: then the reference runs both passes
    NAME_backward(dy, *saved, **options) -> gradients
    NAME_backward_into(dy, *saved, into={i: array}, **options)
                                                     optional: may add the gradient of input i to into[i] (of its shape
                                                     and precision, any strides), and then returns into[i] in its place
"""
import contextlib
import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from pyllama import backend, params, shapes

OPS: dict[str, "Op"] = {}                           # name -> Op: all that is tested, benchmarked and documented
_watcher: ContextVar[Callable | None] = ContextVar("what op calls go through", default=None)


class between(NamedTuple):
    """The interval an option is drawn from: whole numbers if both ends are whole."""
    low: float
    high: float


class Op:
    def __init__(self, line, forward, backward, **options):
        self.name = forward.__module__.rpartition(".")[2]
        self.shapes, self.forward, self.backward, self.options = line, forward, backward, options
        self.__doc__ = inspect.getdoc(inspect.getmodule(forward))
        self.inputs, self.outputs = map(shapes.arrays, line.split("->"))
        self.check = functools.lru_cache(4096)(functools.partial(shapes.check, self))   # a signature once
        OPS[self.name] = self

    def __call__(self, *inputs, **options):
        if watcher := _watcher.get():
            return watcher(self, inputs, options)
        self.check(shapes.signature(inputs))
        kernels = backend.of(inputs)
        result = getattr(kernels, self.name, self.forward)(*inputs, **options)
        if result is NotImplemented:
            kernels, result = None, self.forward(*inputs, **options)
        y, saved = result
        backward = getattr(kernels, f"{self.name}_backward", self.backward)
        if places := params.places(inputs):
            into = getattr(kernels, f"{self.name}_backward_into", None)
            backward = functools.partial(into, into=places) if into else backward
        made, count = shapes.signature(self.each(y)), len(inputs)       # back keeps no array but those in saved

        def back(dy):
            if isinstance(dy, np.floating):                 # a NumPy number would turn float32 gradients into float64
                dy = float(dy)
            for output, d, (shape, dtype) in zip(self.outputs, self.each(dy), made, strict=True):
                shapes.check_dy(self, output, d, shape, dtype)
            grads = backward(dy, *saved, **options)[:count]
            return params.gather(places, grads) if places else grads

        return y, back

    def each(self, y):
        """y, or dy, as a tuple: one array for each output."""
        ys = y if len(self.outputs) > 1 else (y,)
        if len(ys) != len(self.outputs):
            raise TypeError(f"{self.name} gives{self.shapes.partition('->')[2]}: it takes one gradient for each, "
                            f"not {len(ys)}")
        return ys

    def backends(self):
        """Where it runs: the reference, and the compiled modules that offer it."""
        return ["numpy", *(name for name in backend.available() if hasattr(getattr(backend, name, None), self.name))]


@contextlib.contextmanager
def watching(watch):
    """Within this context every op call is watch(op, call, inputs, options), which returns (y, back).

    call(*inputs, **options) runs the op, through the watcher of the surrounding context if there is one.  For whoever
    diagnoses, times, traces or tests: a watcher may change inputs and results and wrap back.  It holds for this thread,
    and for those that run in a copy of its context, such as the shards of a training step.

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
