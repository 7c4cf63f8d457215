"""A worker of bench/ops.py: PyTorch's versions of our ops.     python -m bench.ops_torch THREADS"""
import sys

import torch
from torch.nn import functional as F

from bench.passes import serve_passes


def attention(q, k, v, causal):
    """q [B G R T K], k and v [B G S K] -> [B G*R T K]"""
    return F.scaled_dot_product_attention(q.flatten(1, 2), k, v, is_causal=causal, enable_gqa=True)


def rope(x):
    """Rotary embeddings; computes its tables at every call, as ours does."""
    T, P = x.shape[-2], x.shape[-1] // 2
    angle = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(P) / P))
    (a, b), cos, sin = x.chunk(2, -1), angle.cos(), angle.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


FORWARD = {
    "attention": attention,
    "cross_entropy": F.cross_entropy,
    "dropout": lambda x, rate: F.dropout(x, rate),
    "embedding": F.embedding,
    "gelu": F.gelu,
    "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    "linear": F.linear,
    "linear_cross_entropy": lambda x, w, t: F.cross_entropy(F.linear(x, w), t),
    "relu": F.relu,
    "rms_norm": lambda x, w: F.rms_norm(x, w.shape, w),
    "rope": rope,
    "softmax": lambda x: F.softmax(x, -1),
    "swiglu": lambda g, u: F.silu(g) * u,
}


def op_of(name):
    """The function, with autograd's backward pass, in the form of pyllama/op.py; None if PyTorch lacks it."""
    def op(*xs, **options):
        y = FORWARD[name](*xs, **options)
        return y, lambda dy: torch.autograd.grad(y, [x for x in xs if x.requires_grad], dy.view_as(y))

    return op if name in FORWARD else None


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve_passes(op_of, lambda array: torch.from_numpy(array).requires_grad_(array.dtype.kind == "f"))
