"""An op: a differentiable function with a hand-written backward pass, on every backend.

    y, back = op(*inputs, **options)        # run forward, save what backward needs
    dx, dw, ... = back(dy)                  # one gradient per input passed; None for an integer input
    (s, y), back = op(...);  back((ds, dy)) # several outputs are a tuple, and so are their gradients
    y, back = op(x, w, b=b)                 # optional inputs have names, too; one left out is None, as is its gradient

The floating inputs have one precision.  If it is bfloat16, all is computed in float32, and each result rounded once;
then inputs may be float32, too, but the first: see low.py.

dy is ∂loss/∂y, with the shape and precision of y.  back may hold y and the inputs: do not write to them before it has
run.  Equal gradients, such as those of two summands, may be the same array.  Layers, blocks, models and losses have
this form, too.  Their backward pass is the chain rule: it calls the parts' backs in reverse order.

An op's module has the derivation (its docstring), two plain functions and one line that registers the op:

    forward(*inputs, **options) -> y, saved          backward(dy, *saved, **options) -> gradients
    rms_norm = op("x[... D], w[D] -> y[... D]", forward, backward, weights=("w",), eps=between(1e-8, 0.1))

The line declares the shapes (see shapes.py), the weights and the options.  A weight's gradient is a sum over many rows,
so it stays float32 in bfloat16; that of another input has the precision of the input.  Tests draw the value of an
option from name=[...] or from the interval name=between(low, high).

The two functions are the reference.  They are pure; holomorphic, because a complex step then differentiates them
exactly; and written with NumPy's functions and methods alone, because they run on CuPy's arrays, too.

An op of the package pyllama.ops has the name of its module.  A backend's kernels of that name run instead of the
reference if they support the inputs:

    NAME(*inputs, **options) -> y, saved             or NotImplemented, to decline: then the reference runs both passes
    NAME_backward(dy, *saved, **options) -> gradients
    NAME_backward_into(dy, *saved, into={i: array}, **options)
                                                     optional: may add the gradient of input i to into[i] (the same
                                                     shape and precision, any strides) and then return into[i]

Some weights are frozen: params.adding() knows them.  The line of an op may say how it saves work and memory then:

    saved_for={"w": 0}      saved[0] serves the gradient of w alone.  If w is frozen, it is not kept: backward gets None
                            and may return None for the gradient of w.
    ahead="w"               forward computes the gradient of w.  It has an option into={i: array} to add the gradient to
                            the array instead, or into={i: None} not to compute it.

An op that is registered elsewhere is named after its forward function, module.function, and its functions always run.
"""
import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from pyllama import backend, params, shapes
from pyllama.errors import UserError
from pyllama.low import Rounded

PACKAGE = "pyllama.ops."                            # the modules whose ops may have kernels
OPS: dict[str, "Op"] = {}                           # name -> Op: what is tested, benchmarked and documented
_watcher: ContextVar[Callable | None] = ContextVar("watcher of op calls", default=None)


class between(NamedTuple):
    """The interval from which tests draw an option: integers if both ends are integers.

    >>> from pyllama.op import between
    >>> between(1e-6, 0.1).high
    0.1
    """
    low: float
    high: float


class Op:
    """A registered op, called as op(*inputs, **options); see the module.

    name     the name in OPS; None: the module's in pyllama.ops, elsewhere the module's and forward's, with a number if
             the module has another op of that name
    weights  the names of the inputs that are weights
    saved_for, ahead    what serves the gradient of a weight alone: see the module

    Raises ValueError for a line that is not a shape line or a weight that is not a floating input, UserError for a name
    that another module has taken.  A call raises TypeError or ValueError if the inputs, the gradient passed to back, or
    the results do not fit the line.
    """

    def __init__(self, line, forward, backward, *, name=None, weights=(), saved_for=None, ahead=None, **options):
        self.shapes, self.forward, self.backward, self.options = line, forward, backward, options
        inputs, self.outputs = shapes.parse(line)
        self.inputs, self.weights = shapes.with_weights(inputs, weights, line), weights
        self.optional = {x.name for x in self.inputs if x.optional}
        number = {x.name: i for i, x in enumerate(self.inputs)}
        self.saved_for = {number[weight]: i for weight, i in (saved_for or {}).items()}
        self.ahead = number.get(ahead)
        self.module, function = named(forward)
        self.rounded = Rounded(self)
        self.has_kernels = name is None and self.module.startswith(PACKAGE)
        self.name = name or (self.module.removeprefix(PACKAGE) if self.has_kernels else self.free(function))
        self.name_backward, self.name_into = f"{self.name}_backward", f"{self.name}_backward_into"     # of kernels
        self.__doc__ = inspect.getdoc(inspect.getmodule(forward))
        self.__wrapped__ = forward                          # its signature and source are the op's, for inspect
        self.check = functools.lru_cache(4096)(functools.partial(shapes.check, self))   # once a signature
        if self.name in OPS and OPS[self.name].module != self.module:
            raise UserError(f"the op {self.name!r} of {self.module} has the name of an op of {OPS[self.name].module}; "
                            f"give it another: op(..., name={f'{self.module}.{self.name}'!r})")
        OPS[self.name] = self

    def __repr__(self):
        return f"<op {self.name}: {self.shapes}>"

    def free(self, function):
        """module.function, or the first of -2, -3, ... behind it that is free or is this very op, registered again."""
        name = f"{self.module}.{function}"
        numbered = (f"{name}-{n}" if n > 1 else name for n in itertools.count(1))
        return next(name for name in numbered if name not in OPS or OPS[name].is_same(self))

    def is_same(self, other):
        """Do both have the same code, as in a cell of a notebook that runs again?"""
        return self.module == other.module and code(self) == code(other) and None not in code(self)

    def __call__(self, *inputs, **options):
        if options and not self.optional.isdisjoint(options):
            inputs = self.in_order(inputs, options)
        if watcher := _watcher.get():
            return watcher(self, inputs, options)
        precision = self.check(shapes.signature(inputs))
        places = params.places(inputs)
        ahead = self.added_ahead(places) if self.ahead in places else {}
        result, backward, into = self.run(inputs, {**options, "into": ahead} if ahead else options, precision)
        y, saved, signature = shapes.check_outputs(self, result)
        if frozen := [i for i, place in places.items() if place is params.NONE]:
            idle = {self.saved_for.get(i) for i in frozen}
            saved = [None if i in idle else a for i, a in enumerate(saved)]
        if places and into:
            wanted = {i: place for i, place in places.items() if i not in frozen} if frozen else places
            backward = functools.partial(into, into=wanted)
        count = len(inputs)                                 # back holds no array but those in saved and the places
        added = ahead and ahead[self.ahead] is not None
        saved, once = list(saved), params.may_add_ahead()

        def back(dy):
            if isinstance(dy, np.floating):                 # a NumPy scalar would turn float32 gradients into float64
                dy = float(dy)
            for output, d, (shape, dtype) in zip(self.outputs, self.each(dy), signature, strict=True):
                shapes.check_dy(self, output, d, shape, dtype)
            if added and dy != 1:
                raise ValueError(f"{self.name}: its forward pass has added a gradient, for dy = 1; not {dy}")
            grads = shapes.check_gradients(self, backward(dy, *saved, **options), count)
            if once:                                        # before the passes of other ops allocate their gradients
                saved.clear()
            return params.gather(places, grads) if places else grads

        return y, back

    def run(self, inputs, options, precision=shapes.ONE):
        """Run forward by a kernel or by the reference: what it returns, and the two backward passes that belong to it.

        The second one adds to places; it is None if there is none.    precision: what check() returned
        """
        kernels = backend.kernels_for(inputs) if self.has_kernels and precision != shapes.MIXED else None
        reference = self if precision == shapes.ONE else self.rounded
        result = getattr(kernels, self.name, reference.forward)(*inputs, **options)
        if result is NotImplemented:
            kernels, result = None, reference.forward(*inputs, **options)
        return result, getattr(kernels, self.name_backward, reference.backward), getattr(kernels, self.name_into, None)

    def added_ahead(self, places):
        """{i: the place to which forward adds the gradient of input i; None: it is not wanted}, or {}: do as usual."""
        place = places[self.ahead]
        if place is params.NONE:
            return {self.ahead: None}
        return {self.ahead: place} if params.may_add_ahead() else {}

    def in_order(self, inputs, options):
        """The inputs, then those that options gives by name, which are removed from there."""
        named = [options.pop(x.name, None) for x in self.inputs[len(inputs):]]
        last = max((i for i, x in enumerate(named) if x is not None), default=-1)
        return *inputs, *named[:last + 1]

    def each(self, y):
        """y or dy as a tuple: one array for each output.  Raises TypeError if their number is wrong."""
        ys = y if len(self.outputs) > 1 else (y,)
        if len(ys) != len(self.outputs):
            raise TypeError(f"{self.name} returns{self.shapes.partition('->')[2]}: pass one gradient for each, "
                            f"not {len(ys)}")
        return ys

    def backends(self):
        """The names of the backends with this op: the reference, and the compiled modules that have a kernel."""
        compiled = backend.available() if self.has_kernels else []
        return ["numpy", *(name for name in compiled if hasattr(getattr(backend, name, None), self.name))]


def named(forward):
    """(module, name) of a function, or of the class of another callable."""
    function = forward if hasattr(forward, "__qualname__") else type(forward)
    return function.__module__, function.__qualname__


def code(op):
    """The code of forward and of backward; None for one that other values are bound to, or that has no code."""
    return [getattr(f, "__code__", None) if not getattr(f, "__closure__", None) else None
            for f in (op.forward, op.backward)]


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
