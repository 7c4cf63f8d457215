"""Bugs planted in copies of other libraries' functions; the diagnosis must name each that has a keyword.

Most happened elsewhere; the case's name ends with where.
"""
import autograd.numpy as anp
import jax
import mygrad as mg
import numba
import numpy as np
import torch
from autograd.extend import defvjp, primitive
from mygrad.operation_base import Operation

from bench.checkers import third_party_autograd, third_party_mygrad
from bench.checkers.third_party_case import WRONG, Case, between, normal
from bench.checkers.third_party_jax import arrays, rms_norm_bwd, rms_norm_fwd
from bench.checkers.third_party_numba import softmax, squared_distances, squared_distances_backward
from bench.checkers.third_party_torch import LABELS, TURN, requiring, t, tensors
from bench.checkers.third_party_torch_losses import FusedLinearCrossEntropy, KLDivergence
from bench.checkers.third_party_torch_pointwise import GELU, LayerNorm, RMSNorm, SwiGLU
from bench.checkers.third_party_torch_sequences import Attention, Embedding, Linear, RoPE, half_turned

# --- torch ------------------------------------------------------------------------------------------------------------

class WeightOutsideTheMean(RMSNorm):
    @staticmethod
    def backward(ctx, dy):
        x, w, r = ctx.saved_tensors
        dx = w * r * (dy - x * r * r * (dy * x).mean(-1, keepdim=True))
        return dx, (dy * x * r).reshape(-1, x.shape[-1]).sum(0), None


class NoMean(LayerNorm):
    @staticmethod
    def backward(ctx, dy):
        normal, w, r = ctx.saved_tensors
        g = dy * w
        dx = r * (g - normal * (g * normal).mean(-1, keepdim=True))
        axes = tuple(range(dy.dim() - 1))
        return dx, (dy * normal).sum(axes), dy.sum(axes), None


class Exchanged(SwiGLU):
    @staticmethod
    def backward(ctx, dy):
        return SwiGLU.backward(ctx, dy)[::-1]


class DividedByRows(KLDivergence):
    @staticmethod
    def backward(ctx, dy):
        dp, dq = KLDivergence.backward(ctx, dy)
        return dp / len(dp), dq


class IgnoresDy(FusedLinearCrossEntropy):
    @staticmethod
    def backward(ctx, dy):
        dx, dw = ctx.saved_tensors
        return dx, dw, None


class TurnsTheSameWay(RoPE):
    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return dy * cos + half_turned(dy) * sin, None, None


class Assigns(Embedding):
    @staticmethod
    def backward(ctx, dy):
        ids, = ctx.saved_tensors
        d = dy.new_zeros(ctx.rows, dy.shape[-1])
        d[ids.flatten()] = dy.reshape(-1, dy.shape[-1])
        return d, None


class SumsColumns(Linear):
    @staticmethod
    def backward(ctx, dy):
        dx, dw, _ = Linear.backward(ctx, dy)
        return dx, dw, dy.sum(-1)


class NoScale(Attention):
    @staticmethod
    def backward(ctx, dy):
        dq, dk, dv = Attention.backward(ctx, dy)
        return dq, dk / ctx.scale, dv


class ReadsDyAsContiguous(Linear):
    @staticmethod
    def backward(ctx, dy):
        steps = [int(np.prod(dy.shape[axis + 1:])) for axis in range(dy.dim())]
        return Linear.backward(ctx, dy.as_strided(dy.shape, steps))


class WritesIntoDy(SwiGLU):
    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        s = torch.sigmoid(gate)
        dup = dy * gate * s
        return dy.mul_(up * s * (1 + gate * (1 - s))), dup


class WritesIntoX(LayerNorm):
    @staticmethod
    def forward(ctx, x, w, b, eps):
        x -= x.mean(-1, keepdim=True)
        return LayerNorm.forward(ctx, x, w, b, eps)


class InFloat16(GELU):
    @staticmethod
    def backward(ctx, dy):
        return GELU.backward(ctx, dy).half().to(dy.dtype)


class TanhGradient(GELU):
    @staticmethod
    def backward(ctx, dy):
        x, = ctx.saved_tensors
        th = torch.tanh(0.7978845608028654 * (x + 0.044715 * x ** 3))
        du = 0.7978845608028654 * (1 + 3 * 0.044715 * x ** 2)
        return dy * (0.5 * (1 + th) + 0.5 * x * (1 - th ** 2) * du)


class UsesUpWhatItSaved(SwiGLU):
    @staticmethod
    def backward(ctx, dy):
        ctx.calls = getattr(ctx, "calls", 0) + 1
        dgate, dup = SwiGLU.backward(ctx, dy)
        return dgate * ctx.calls, dup


# --- the others -------------------------------------------------------------------------------------------------------

@numba.njit
def softmax_sums_columns(dy, x):
    y = softmax(x)
    return y * (dy - (y * dy).sum(0))


@numba.njit
def distances_one_sign(dz, x, y):
    dx, dy = squared_distances_backward(dz, x, y)
    return dx, -dy


@jax.custom_vjp
def jax_rms_norm(x, w):
    return rms_norm_fwd(x, w)[0]


jax_rms_norm.defvjp(rms_norm_fwd, lambda saved, dy: (rms_norm_bwd(saved, dy)[0], (dy * saved[0] * saved[2]).sum(-1)))


@primitive
def square_matmul(a, b):
    return anp.matmul(a, b)


defvjp(square_matmul, lambda y, a, b: lambda dy: anp.matmul(dy, b.T).T, lambda y, a, b: lambda dy: anp.matmul(a.T, dy))


class Cubed(Operation):
    """x³ whose gradient misses the 3."""
    def __call__(self, x):
        self.variables = (x,)
        return x.data ** 3

    def backward_var(self, grad, index, **kwargs):
        return grad * self.variables[index].data ** 2


class Stops(Operation):
    """sin x whose gradient is zero."""
    def __call__(self, x):
        self.variables = (x,)
        return np.sin(x.data)

    def backward_var(self, grad, index, **kwargs):
        return np.zeros_like(grad)


SQUARE = normal(3, 3), normal(3, 3, seed=1)
PLANTED = [
    ("RMSNorm: w outside the mean (a published notebook)", WeightOutsideTheMean, [*tensors((3, 4), (4,)), 1e-5],
     "missing term"),
    ("LayerNorm: a mean forgotten", NoMean, [*tensors((3, 4), (4,), (4,)), 1e-5], "missing term"),
    ("SwiGLU: gradients exchanged", Exchanged, tensors((3, 4), (3, 4)), "gradient of the wrong input"),
    ("KL: divided by the rows twice (easydistill PR 16)", DividedByRows, tensors((3, 4), (3, 4)),
     "constant factor 0.333"),
    ("cross-entropy: dy ignored", IgnoresDy, [*tensors((3, 5), (4, 5)), LABELS], "dy ignored"),
    ("RoPE: turned the same way", TurnsTheSameWay, requiring(RoPE, [*tensors((2, 4, 6)), *TURN]), "rotated"),
    ("embedding: assigned, not added", Assigns, [*tensors((5, 3)), t([4, 0, 4])], "lost duplicates"),
    ("attention: the scale forgotten", NoScale, tensors(*3 * [(2, 4, 3)]), "constant factor 1.732"),
    ("linear: dy read as contiguous (unsloth PR 10617)", ReadsDyAsContiguous, tensors((3, 4), (5, 4), (5,)),
     "dy read as contiguous"),
    ("linear: db summed over columns", SumsColumns, tensors((5, 4), (5, 4), (5,)), "summed over the wrong axis"),
    ("SwiGLU: writes into dy", WritesIntoDy, tensors((3, 4), (3, 4)), "changes dy in place"),
    ("LayerNorm: writes into x", WritesIntoX, [*tensors((3, 4), (4,), (4,)), 1e-5], "in place"),
    ("GELU: gradient in float16", InFloat16, tensors((3, 4)), "computed in float16"),
    ("GELU: erf forward, tanh backward", TanhGradient, tensors((3, 4)), "nearly right"),
    ("SwiGLU: another gradient each time", UsesUpWhatItSaved, tensors((3, 4), (3, 4)), "second call"),
    ("JAX rms_norm: dw summed over the wrong axis", jax_rms_norm, arrays(normal(4, 4), between(0.5, 2, 4)),
     "added at the wrong index"),
]


def cases():
    for name, function, inputs, keyword in PLANTED:
        yield Case(name, function, inputs, WRONG, keyword)
    yield Case("numba softmax: summed over columns", softmax, [normal(3, 3)], WRONG, "",
               {"backward": softmax_sums_columns})
    yield Case("numba distances: one sign for both", squared_distances, [normal(3, 4), normal(2, 4)], WRONG,
               "wrong sign", {"backward": distances_one_sign})
    yield Case("autograd matmul: transposed", third_party_autograd.with_back(square_matmul), [*SQUARE], WRONG,
               "transposed")
    for operation, keyword in ((Cubed, "constant factor 0.333"), (Stops, "all zeros")):
        def f(x, operation=operation):
            return mg.Tensor._op(operation, x)

        yield Case(f"mygrad {operation.__name__}", third_party_mygrad.with_back(f), [normal(3, 4)], WRONG, keyword)
