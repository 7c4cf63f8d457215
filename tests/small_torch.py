"""The part of torch's surface that the adapter touches, over NumPy: tensors, Function, autograd.grad, forward mode."""
import contextlib
import sys
import types

import numpy as np


class Tensor:
    layout, dtype_prefix = "torch.strided", "torch."

    def __init__(self, data, node=None, requires_grad=False):
        self.data, self.node, self.requires_grad = np.asarray(data), node, requires_grad or node is not None
        self.tangent = None
        self.device = types.SimpleNamespace(type="cpu")

    @property
    def shape(self):
        return self.data.shape

    @property
    def dtype(self):
        return f"torch.{self.data.dtype}"

    def stride(self):
        return [step // self.data.itemsize for step in self.data.strides]

    def is_contiguous(self):
        return self.data.flags.c_contiguous

    def is_floating_point(self):
        return self.data.dtype.kind == "f"

    def is_complex(self):
        return self.data.dtype.kind == "c"

    def requires_grad_(self):
        self.requires_grad = True
        return self

    def detach(self):
        return Tensor(self.data)

    def resolve_conj(self):
        return self

    resolve_neg = cpu = resolve_conj

    def numpy(self):
        return self.data

    def expand(self, shape):
        return Tensor(np.broadcast_to(self.data, shape))

    def copy_(self, other):
        self.data[...] = other.data

    def __mul__(self, other):
        return Multiply.apply(self, other)


class Context:
    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors


class Function:
    @classmethod
    def apply(cls, *inputs):
        ctx = Context()
        result = cls.forward(ctx, *inputs)
        several = isinstance(result, tuple)
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        if any(x.tangent is not None for x in tensors):
            tangent = cls.jvp(ctx, *[x.tangent for x in tensors])
        ys = [Tensor(y.data) for y in (result if several else (result,))]
        for place, y in enumerate(ys):
            if any(x.requires_grad for x in tensors):
                y.node, y.requires_grad = (cls, ctx, inputs, len(ys), place), True
            if any(x.tangent is not None for x in tensors):
                y.tangent = tangent
        return tuple(ys) if several else ys[0]


class Multiply(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return Tensor(x.data * w.data)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return Tensor(dy.data * w.data), Tensor(dy.data * x.data)

    @staticmethod
    def jvp(ctx, vx, vw):
        x, w = ctx.saved_tensors
        return Tensor(vx.data * w.data + x.data * vw.data)


Function.__module__ = Tensor.__module__ = Multiply.__module__ = "torch"


def grad(ys, inputs, dys, retain_graph, create_graph, allow_unused):
    """One Function deep, which is all that the tests need."""
    found = {id(x): None for x in inputs}
    for y, dy in zip(ys, dys, strict=True):
        if y.node is None:
            found[id(y)] = dy
            continue
        cls, ctx, arguments, count, place = y.node
        each = [dy if i == place else Tensor(np.zeros_like(y.data)) for i in range(count)]
        grads = cls.backward(ctx, *each)
        for x, dx in zip(arguments, grads if isinstance(grads, tuple) else (grads,), strict=True):
            if id(x) in found and dx is not None:
                known = found[id(x)]
                found[id(x)] = dx if known is None else Tensor(known.data + dx.data)
    return tuple(found[id(x)] for x in inputs)


def make_dual(x, tangent):
    dual = Tensor(x.data)
    dual.tangent = tangent
    return dual


def empty_strided(shape, stride, dtype):
    kind = np.dtype(dtype.removeprefix("torch."))
    room = np.zeros(sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1, kind)
    return Tensor(np.lib.stride_tricks.as_strided(room, shape, [step * kind.itemsize for step in stride]))


def module():
    """A stand-in for sys.modules["torch"]."""
    torch = types.ModuleType("torch")
    torch.from_numpy = lambda x: Tensor(x)
    torch.empty_strided = empty_strided
    torch.enable_grad = contextlib.nullcontext
    torch.autograd = types.SimpleNamespace(
        Function=Function, grad=grad, forward_ad=types.SimpleNamespace(
            dual_level=contextlib.nullcontext, make_dual=make_dual,
            unpack_dual=lambda y: types.SimpleNamespace(primal=y, tangent=y.tangent)))
    return torch


def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", module())
