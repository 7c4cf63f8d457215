"""The model that every implementation trains in bench/train.py: shapes, weights, text and update rule.

Needs only NumPy, so that PyTorch's environment can do without pyllama.
"""
import zlib
from typing import NamedTuple

import numpy as np

RULE = {"learning_rate": 5e-4, "beta1": 0.9, "beta2": 0.95, "adam_epsilon": 1e-8, "weight_decay": 0.1,
        "max_grad_norm": 1.0}                                   # under the names of pyllama.training.loop.Settings


class Size(NamedTuple):
    """A LLaMA with tied embeddings and its batch; the letters are those of pyllama/shapes.py."""
    D: int
    L: int
    H: int
    F: int
    V: int
    T: int
    B: int

    @property
    def tokens(self):
        """Tokens per step."""
        return self.B * self.T

    @property
    def flops(self):
        """Operations of a step's products.  A weight needs 6 per token (2 forward, 4 backward); causal attention, which
        fills half of the T x T scores, needs 6 T D per token and layer.  Recomputation does not count."""
        D, L, _, F, V, T, _ = self
        return 6 * self.tokens * (L * (4 * D * D + 3 * D * F) + D * V + L * T * D)


SIZES = {
    "T": Size(D=128, L=4, H=4, F=352, V=512, T=256, B=32),
    "Sp": Size(D=288, L=6, H=6, F=768, V=4096, T=256, B=16),
    "S": Size(D=288, L=6, H=6, F=768, V=32000, T=256, B=16),
    "M": Size(D=768, L=12, H=12, F=2048, V=32000, T=512, B=4),
    "tiny": Size(D=16, L=2, H=2, F=24, V=64, T=16, B=4),        # a smoke test
}


def weight(name, shape):
    """Ones for a vector (norm), else a matrix drawn from N(0, 0.02²), which depends on the name and shape alone."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return np.float32(0.02) * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def text(size):
    """Random tokens, enough for a few steps: the time of a step does not depend on their values."""
    return np.random.default_rng(0).integers(size.V, size=8 * size.tokens, dtype=np.uint16)
