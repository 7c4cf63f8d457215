"""The part of JAX's surface that the adapter touches: arrays that record how they were computed, vjp, jvp, x64.

The gradients are recorded, too, so that they can be differentiated again.
"""
import contextlib
import itertools
import sys
import types

import numpy as np

_numbers = itertools.count()
_second = 1.0                           # by which the derivative of cube's gradient is off


class Array:
    """A value, and for each array that it was computed from: that array, and its gradient as a function of dy."""

    def __init__(self, value, parents=()):
        self.value, self.parents, self.number = np.asarray(value), parents, next(_numbers)

    dtype = property(lambda self: self.value.dtype)
    shape = property(lambda self: self.value.shape)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype)

    def __add__(self, other):
        return Array(self.value + other.value, [(self, lambda d: d), (other, lambda d: d)])

    def __mul__(self, other):
        if not isinstance(other, Array):
            return Array(self.value * other, [(self, lambda d: d * other)])
        return Array(self.value * other.value, [(self, lambda d: d * other), (other, lambda d: d * self)])

    __rmul__ = __mul__

    def __getitem__(self, ids):
        return Array(self.value[np.asarray(ids)])


Array.__module__ = "jaxlib._jax"


def array(x):
    return x if isinstance(x, Array) else Array(np.array(x))


def cube(x):
    return Array(x.value ** 3, [(x, lambda d: cube_gradient(x, d))])


def cube_gradient(x, d):
    return Array(3 * x.value ** 2 * d.value, [(x, lambda e: e * d * x * (6 * _second)), (d, lambda e: e * x * x * 3)])


def pulled(ys, dys, roots):
    """The gradients of <ys, dys> with respect to the roots."""
    of = {}
    for y, d in zip(ys, dys, strict=True):
        of[y] = of[y] + d if y in of else d
    waiting, last = set(ys), {*roots}
    while waiting:
        node = max(waiting, key=lambda a: a.number)
        waiting.remove(node)
        for parent, rule in node.parents if node not in last else ():
            d = rule(of[node])
            of[parent] = of[parent] + d if parent in of else d
            waiting.add(parent)
    return tuple(of.get(root, Array(np.zeros(root.shape))) for root in roots)


class SmallJax(types.ModuleType):
    """jax, with a vjp and a jvp that demand x64."""

    def __init__(self):
        super().__init__("jax")
        self.numpy = types.SimpleNamespace(array=array)
        self.wide = False

    @contextlib.contextmanager
    def enable_x64(self, on):
        self.wide, before = on, self.wide
        yield
        self.wide = before

    def vjp(self, function, *inputs):
        assert self.wide
        roots = [Array(x.value, [(x, lambda d: d)]) for x in inputs]
        ys = function(*roots)
        return ys, lambda dys: pulled(ys, dys, roots)

    def jvp(self, function, inputs, tangents):
        """The gradient is linear in dy; its transpose is the Jacobian."""
        ys, pull = self.vjp(function, *inputs)
        dys = [Array(np.zeros(y.shape)) for y in ys]
        return ys, pulled(pull(dys), tangents, dys)


def installed(monkeypatch, second=1.0):
    monkeypatch.setitem(sys.modules, "jax", SmallJax())
    monkeypatch.setattr(sys.modules[__name__], "_second", second)
