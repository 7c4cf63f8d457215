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

The two functions are the reference: pure, holomorphic (so that a complex step differentiates them exactly), and
written in NumPy's functions and methods alone, so that they run on CuPy's arrays too.  A backend may offer `name`
and `name_backward` with the same arguments, results and `saved`; they run where the inputs allow it.  Such a `name`
may decline inputs by `return NotImplemented`, as Python's operators do: then the reference runs, in both passes.

Shapes     x[... D] is any leading axes and then D;  a[2*K] is two Ks side by side;  ids[B T]<V is integers below V;
           b[E]? may be left out (optional inputs come last);  -> s[... D], y[... D] are two outputs.
Options    name=[...] lists the values that tests draw, name=between(low, high) the interval.
Axes       B batch, T query time, S key time, D model, E output, H query heads, G key/value heads,
           R = H/G query heads per key/value head, K head width, P = K/2 rotary pairs, F hidden, V vocabulary,
           L layers, N rows.
"""
import functools
import inspect
import math
import re
from typing import NamedTuple

import numpy as np

from pyllama import backend, params

OPS: dict[str, "Op"] = {}                           # name -> Op: all that is tested, benchmarked and documented


class between(NamedTuple):
    """The interval an option is drawn from: whole numbers if both ends are whole."""
    low: float
    high: float


class Array(NamedTuple):
    """One input or output of a shape line."""
    name: str
    axes: tuple[str, ...]                           # ("...", "2*K")
    below: str                                      # the bound of an integer input: an axis, a number, or ""
    optional: bool


class Op:
    def __init__(self, shapes, forward, backward, **options):
        self.name = forward.__module__.rpartition(".")[2]
        self.shapes, self.forward, self.backward, self.options = shapes, forward, backward, options
        self.__doc__ = inspect.getdoc(inspect.getmodule(forward))
        self.inputs, self.outputs = map(arrays, shapes.split("->"))
        self._fitting = set()                       # the shapes and dtypes that passed check(): it runs once for each
        OPS[self.name] = self

    def __call__(self, *inputs, **options):
        signature = tuple((x.shape, x.dtype) for x in inputs)
        if signature not in self._fitting:
            self.check(inputs)
            if len(self._fitting) == 4096:          # a text that grows brings a new shape with every token
                self._fitting.clear()
            self._fitting.add(signature)
        kernels = backend.of(inputs)
        result = getattr(kernels, self.name, self.forward)(*inputs, **options)
        if result is NotImplemented:
            kernels, result = None, self.forward(*inputs, **options)
        y, saved = result
        made, count = [(a.shape, a.dtype) for a in self.each(y)], len(inputs)       # back keeps no array but saved
        backward = getattr(kernels, f"{self.name}_backward", self.backward)
        if places := params.places(inputs):
            into = getattr(kernels, f"{self.name}_backward_into", None)
            backward = functools.partial(into, into=places) if into else backward

        def back(dy):
            for (name, *_), d, (shape, dtype) in zip(self.outputs, self.each(dy), made, strict=True):
                if np.shape(d) != shape:
                    raise ValueError(f"{self.name}: d{name} has shape {np.shape(d)}, {name} has {shape}")
                if shape and d.dtype != dtype and d.real.dtype != dtype.type(0).real.dtype:
                    raise TypeError(f"{self.name}: d{name} is {d.dtype} but {name} is {dtype}; convert one")
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

    def check(self, inputs):
        """Raise TypeError or ValueError in one sentence unless the inputs fit the shape line."""
        required = sum(not wanted.optional for wanted in self.inputs)
        if not required <= len(inputs) <= len(self.inputs):
            raise TypeError(f"{self.name} takes {self.shapes.split('->')[0].strip()}; got {len(inputs)} inputs")
        sizes = {}
        precision = None
        for wanted, x in zip(self.inputs, inputs, strict=False):
            if (x.dtype.kind in "iub") != bool(wanted.below):
                raise TypeError(f"{self.name}: {wanted.name} must be {'integer' if wanted.below else 'floating'}, "
                                f"not {x.dtype}")
            if not wanted.below:
                precision = precision or (wanted.name, x.real.dtype)
                if x.real.dtype != precision[1]:
                    raise TypeError(f"{self.name}: {wanted.name} is {x.dtype} but {precision[0]} is {precision[1]}; "
                                    f"convert one, mixed precision is not promoted")
            if not fits(wanted.axes, x.shape, sizes):
                raise ValueError(f"{self.name}: {wanted.name} has shape {x.shape}, which does not fit "
                                 f"{wanted.name}[{' '.join(wanted.axes)}]" + (f" with {sizes}" if sizes else ""))


def arrays(side):
    """The inputs, or the outputs, of a shape line."""
    return [Array(name, tuple(axes.split()), below, bool(optional))
            for name, axes, below, optional in re.findall(r"(\w+)\[(.*?)\](?:<(\w+))?(\?)?", side)]


def fits(axes, shape, sizes):
    """Does the shape match these axes?  The sizes of axes met for the first time are added to `sizes`."""
    if "..." in axes:
        i, many = axes.index("..."), len(shape) - len(axes) + 1
        if many < 0 or sizes.setdefault("...", shape[i:i + many]) != shape[i:i + many]:
            return False
        axes, shape = axes[:i] + axes[i + 1:], shape[:i] + shape[i + many:]
    if len(axes) != len(shape):
        return False
    for axis, n in zip(axes, shape, strict=True):
        factors = [int(f) if f.isdigit() else sizes.get(f, f) for f in axis.split("*")]
        known, unknown = math.prod(f for f in factors if isinstance(f, int)), [f for f in factors if isinstance(f, str)]
        if unknown and (n % known == 0 if known else n == 0):
            sizes[unknown[0]] = n // known if known else 0
        elif unknown or n != known:
            return False
    return True


op = Op
