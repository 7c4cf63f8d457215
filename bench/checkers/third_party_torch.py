"""torch.autograd.Functions in the style of training code, each with a backward pass by hand."""
import numpy as np
import torch
from torch.autograd import Function

from bench.checkers import third_party_torch_losses as losses
from bench.checkers import third_party_torch_pointwise as pointwise
from bench.checkers import third_party_torch_sequences as sequences
from bench.checkers.third_party_case import Case, between, normal

# --- gradients that are not derivatives, on purpose -------------------------------------------------------------------

class QuantizedLinear(Function):
    """x times w rounded to eighths; the gradient goes straight through the rounding."""
    @staticmethod
    def forward(ctx, x, w):
        rounded = torch.round(8 * w) / 8
        ctx.save_for_backward(x, rounded)
        return x @ rounded.T

    @staticmethod
    def backward(ctx, dy):
        x, rounded = ctx.saved_tensors
        return dy @ rounded, dy.T @ x


class SignSTE(Function):
    """BinaryNet's: the sign, with the gradient of hardtanh."""
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, dy):
        return dy * (ctx.saved_tensors[0].abs() <= 1)


class GradientReversal(Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return -dy


# --- the list ---------------------------------------------------------------------------------------------------------

def t(array):
    return torch.from_numpy(np.array(array))


def tensors(*shapes):
    return [t(normal(*shape, seed=number)) for number, shape in enumerate(shapes)]


LABELS, IGNORED = t([1, 3, 0]), t([1, -100, 0])
ANGLES = t(between(0, 6, 4, 3))
TURN = [torch.cat((f(ANGLES), f(ANGLES)), -1) for f in (torch.cos, torch.sin)]
STRAIGHT_THROUGH = "straight through a step, on purpose: not the derivative, which is 0"

FUNCTIONS = [
    (pointwise.RMSNorm, [*tensors((2, 3, 4), (4,)), 1e-5]),
    (pointwise.LayerNorm, [*tensors((2, 3, 4), (4,), (4,)), 1e-5]),
    (pointwise.GroupNorm, [*tensors((2, 4, 3), (4,)), 2]),
    (pointwise.L2Normalize, tensors((3, 4))),
    (pointwise.SwiGLU, tensors((3, 4), (3, 4))),
    (pointwise.GeGLU, tensors((3, 4), (3, 4))),
    (pointwise.GELU, tensors((3, 4))),
    (pointwise.SquaredReLU, tensors((3, 4))),
    (pointwise.Softplus, tensors((3, 4))),
    (pointwise.Sigmoid, tensors((3, 4))),
    (pointwise.Clamp, [*tensors((3, 4)), -0.5, 0.5]),
    (losses.Softmax, tensors((3, 4))),
    (losses.LogSumExp, tensors((3, 4))),
    (losses.CrossEntropy, [*tensors((3, 4)), IGNORED, -100]),
    (losses.FusedLinearCrossEntropy, [*tensors((3, 5), (4, 5)), LABELS]),
    (losses.KLDivergence, tensors((3, 4), (3, 4))),
    (losses.Huber, [*tensors((3, 4), (3, 4)), 0.7]),
    (sequences.RoPE, [*tensors((2, 4, 6)), *TURN]),
    (sequences.InterleavedRoPE, [*tensors((2, 4, 6)), ANGLES.cos(), ANGLES.sin()]),
    (sequences.Attention, tensors((2, 4, 3), (2, 4, 3), (2, 4, 3))),
    (sequences.GroupedAttention, tensors((1, 2, 3, 4, 5), (1, 2, 6, 5), (1, 2, 6, 5))),
    (sequences.Embedding, [*tensors((5, 3)), t([[4, 0, 4], [1, 1, 1]])]),
    (sequences.ScatterAdd, [*tensors((4, 3)), t([2, 0, 2, 5]), 6]),
    (sequences.Linear, tensors((2, 3, 4), (5, 4), (5,))),
    (sequences.Dropout, [*tensors((3, 4)), t(between(0, 1, 3, 4) > 0.3), 0.3]),
    (sequences.CausalConv, tensors((2, 3, 6), (3, 4))),
    (sequences.Scan, tensors((5, 3), (5, 3))),
]
ON_PURPOSE = [
    (QuantizedLinear, tensors((3, 4), (2, 4)), STRAIGHT_THROUGH),
    (SignSTE, tensors((3, 4)), STRAIGHT_THROUGH),
    (GradientReversal, tensors((3, 4)), "reverses the gradient, on purpose"),
]


def cases():
    for function, inputs in FUNCTIONS:
        yield Case(function.__name__, function, requiring(function, inputs))
    yield Case("RMSNorm in float32", pointwise.RMSNorm, [x.float() for x in tensors((2, 3, 4), (4,))] + [1e-5])
    yield Case("SwiGLU of strided tensors", pointwise.SwiGLU, list(normal_halves()))
    yield Case("Attention of transposed tensors", sequences.Attention, [x.mT for x in tensors(*3 * [(2, 3, 4)])])
    for function, inputs, why in ON_PURPOSE:
        yield Case(function.__name__, function, inputs, why)


def requiring(function, inputs):
    """The inputs that have a gradient; RoPE's tables and masks have none."""
    if function in {sequences.RoPE, sequences.InterleavedRoPE}:
        return [inputs[0].requires_grad_(), *inputs[1:]]
    return inputs


def normal_halves():
    """Gate and up, as views of one tensor."""
    return t(normal(3, 8)).chunk(2, -1)
