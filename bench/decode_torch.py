"""A worker of bench/decode.py: a LLaMA in PyTorch with a cache of keys and values.

    python -m bench.decode_torch SIZE THREADS DTYPE [compile]

The weights are random: the time of a token does not depend on them.
"""
import torch
from torch.nn import functional as F

from bench.decode_loop import main
from bench.decode_sizes import SIZES

ROOM = 1024


class Engine:
    def __init__(self, size, threads, dtype, *compiled):
        torch.set_num_threads(int(threads))
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        self.size, dtype = SIZES[size], getattr(torch, dtype)
        D, L, H, G, hidden, V, tied = self.size
        K = D // H
        samples = {}

        def matrix(*shape):                     # copies: every weight has memory of its own
            if shape not in samples:
                samples[shape] = (0.02 * torch.randn(shape)).to(dtype)
            return samples[shape].clone()

        self.layers = [{"qkv": matrix((H + 2 * G) * K, D), "o": matrix(D, D), "gate_up": matrix(2 * hidden, D),
                        "down": matrix(D, hidden)} for _ in range(L)]
        self.embedding = matrix(V, D)
        self.head = self.embedding if tied else matrix(V, D)
        self.one = torch.ones(D, dtype=dtype)
        angle = torch.outer(torch.arange(ROOM), 10000.0 ** (-torch.arange(0, K, 2) / K)).repeat(1, 2)
        self.cos, self.sin = angle.cos().to(dtype), angle.sin().to(dtype)
        self.caches = [torch.zeros(2, 1, G, ROOM, K, dtype=dtype) for _ in range(L)]
        self.step = torch.compile(self.forward, dynamic=True) if compiled else self.forward
        self.notes = torch.__version__

    def heads(self, x, cos, sin):
        """The heads [1 H T K] of x [T HK]; rotated, if there are cosines."""
        x = x.unflatten(-1, (-1, self.size.D // self.size.H)).transpose(0, 1)[None]
        if cos is None:
            return x
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def forward(self, ids, start):
        """The most likely token after ids [T] at the positions from start on."""
        D, _, H, G, *_ = self.size
        end, width = start + ids.numel(), D // H
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = self.embedding[ids]
        for w, cache in zip(self.layers, self.caches, strict=True):
            q, k, v = F.linear(self.norm(x), w["qkv"]).split((D, G * width, G * width), -1)
            cache[0, :, :, start:end], cache[1, :, :, start:end] = self.heads(k, cos, sin), self.heads(v, None, None)
            y = F.scaled_dot_product_attention(self.heads(q, cos, sin), cache[0, :, :, :end], cache[1, :, :, :end],
                                               is_causal=ids.numel() > 1, enable_gqa=G != H)
            x = x + F.linear(y[0].transpose(0, 1).flatten(1), w["o"])
            gate, up = F.linear(self.norm(x), w["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w["down"])
        return F.linear(self.norm(x[-1:]), self.head).argmax(-1)

    def norm(self, x):
        return F.rms_norm(x, (self.size.D,), self.one, 1e-5)

    def generate(self, prompt, count, on_token):
        ids, start = torch.tensor(prompt), 0
        for _ in range(count):
            token = (self.step if ids.numel() == 1 else self.forward)(ids, start)
            on_token(token.item())
            ids, start = token, start + ids.numel()


if __name__ == "__main__":
    main(Engine)
