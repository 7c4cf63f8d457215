"""A worker of bench/train.py: the same model in PyTorch.      python -m bench.train_torch SIZE THREADS [compile] [bf16]

Written for speed: fused attention, norm, cross-entropy and AdamW; rotary tables are computed once.  With bf16, products
and attention are in bfloat16 (autocast); weights, their gradients, the optimizer and the loss stay in float32.
"""
import ctypes
import itertools
import math
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.rotation import peak_rss, serve
from bench.sizes import RULE, SIZES, weight


def projections(**shapes):
    return nn.ModuleDict({f"{name}_proj": nn.Linear(*shape, bias=False) for name, shape in shapes.items()})


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        D, F = size.D, size.F
        self.heads = (size.H, D // size.H)
        self.input_layernorm = nn.RMSNorm(D, eps=1e-5)
        self.self_attn = projections(q=(D, D), k=(D, D), v=(D, D), o=(D, D))
        self.post_attention_layernorm = nn.RMSNorm(D, eps=1e-5)
        self.mlp = projections(gate=(D, F), up=(D, F), down=(F, D))

    def forward(self, x, cos, sin):
        def heads(name):                        # [B H T K]
            return self.self_attn[name](n).unflatten(-1, self.heads).transpose(1, 2)

        def turn(x):
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

        n = self.input_layernorm(x)
        y = F.scaled_dot_product_attention(turn(heads("q_proj")), turn(heads("k_proj")), heads("v_proj"),
                                           is_causal=True)
        x = x + self.self_attn["o_proj"](y.transpose(1, 2).flatten(2))
        n = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](n)) * self.mlp["up_proj"](n))


class Llama(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.embed_tokens = nn.Embedding(size.V, size.D)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.L))
        self.norm = nn.RMSNorm(size.D, eps=1e-5)
        P = size.D // size.H // 2
        angle = torch.outer(torch.arange(size.T), 10000.0 ** (-torch.arange(P, dtype=torch.float64) / P))
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, ids, labels):
        x = self.embed_tokens(ids)
        # In float32 they would make q and k float32 again.
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        cos, sin = self.cos.to(dtype), self.sin.to(dtype)
        for block in self.layers:
            x = block(x, cos, sin)
        return F.cross_entropy(F.linear(self.norm(x), self.embed_tokens.weight).flatten(0, 1), labels.flatten())


def main(size, threads, *ways):
    torch.set_num_threads(int(threads))
    model = Llama(SIZES[size])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(weight(f"model.{name}", p.shape)))
    matrices, gains = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": RULE["weight_decay"]}, {"params": gains, "weight_decay": 0.0}],
        lr=RULE["learning_rate"], betas=(RULE["beta1"], RULE["beta2"]), eps=RULE["adam_epsilon"], fused=True)
    run = torch.compile(model) if "compile" in ways else model
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="bf16" in ways)
    batches = None

    def step(ids, exactly):
        with autocast:
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        exact = math.hypot(*(torch.linalg.vector_norm(p.grad, dtype=torch.float64)
                             for p in model.parameters())) if exactly else None
        norm = nn.utils.clip_grad_norm_(model.parameters(), RULE["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach()), exact or float(norm)

    def answer(steps, ids=None):
        """Train for some steps.

        ids     the batches to repeat from now on.  With them, norms are summed in float64: the norms for clipping are
                summed in float32, which makes them 0.1 % too small at size M.
        """
        nonlocal batches
        batches = itertools.cycle(torch.from_numpy(np.array(ids))) if ids else batches
        seconds, losses, norms = [], [], []
        if not ids:
            step(next(batches), exactly=False)              # not timed: takes the memory that the last turn gave back
        for _ in range(steps):
            begin = time.perf_counter()
            loss, norm = step(next(batches), exactly=ids is not None)
            seconds.append(time.perf_counter() - begin)
            losses.append(loss)
            norms.append(norm)
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)                # all that wait for their turn would not fit into memory
        return {"seconds": seconds, "losses": losses, "norms": norms, "peak_rss": peak_rss()}

    serve(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
