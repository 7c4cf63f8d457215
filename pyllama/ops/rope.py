"""Rotary position embedding (Su et al., 2021, equation 34): position t turns pair k by the angle t θ_k.

            θ_k = base^(-k/P),   k = 0 .. P-1                    P = K/2 pairs in a head of width K
   layout   the pairs are (x_k, x_{k+P}), Hugging Face's halves, or interleaved (x_2k, x_2k+1), Meta's
   scaling  stretches the context; a dict with Hugging Face's keys, "rope_type" one of
            linear   θ_k / factor                               (Chen et al., 2023)
            ntk      base · factor^(P/(P-1)): fast pairs stay, the slowest is divided by factor  (bloc97, 2023)
            llama3   by the wavelength λ = 2π/θ_k against the first context length O: λ < O/high_freq_factor stays,
                     λ > O/low_freq_factor is divided by factor, linear in O/λ between         (Llama 3.1)

Forward     (a', b') = (a cos - b sin,  a sin + b cos)           at the angle (start + t) θ_k

Backward    A rotation is orthogonal: its transpose is the rotation by the opposite angle,

            (da, db) = (da' cos + db' sin,  -da' sin + db' cos)

Saved       cos, sin [T P], made in float64 whatever the precision of x: t θ_k grows large, its error must not.
"""
import math
from functools import lru_cache

import numpy as np

from pyllama.errors import UserError
from pyllama.op import between, op

NEEDED = {"default": (), "linear": ("factor",), "ntk": ("factor",),
          "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}


def items(scaling):
    """The kind of a scaling and the numbers it needs, as the items of a dict."""
    scaling = scaling or {"rope_type": "default"}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in NEEDED:
        raise UserError(f"rope scaling {kind!r} is not supported; use default, linear, ntk or llama3")
    if missing := [name for name in NEEDED[kind] if name not in scaling]:
        raise UserError(f"rope scaling {kind!r} lacks {missing[0]}; it needs {', '.join(NEEDED[kind])}")
    return ("rope_type", kind), *((name, scaling[name]) for name in NEEDED[kind])


def frequencies(P, base, scaling):
    """θ [P], float64, on the host."""
    scaling = dict(items(scaling))
    kind = scaling["rope_type"]
    if kind == "ntk":
        base *= scaling["factor"] ** (P / max(P - 1, 1))
    theta = base ** (-np.arange(P) / P)
    if kind == "linear":
        theta = theta / scaling["factor"]
    if kind == "llama3":
        _, low, high, O = (scaling[name] for name in NEEDED[kind])              # noqa: E741 -- as in the docstring
        keep = np.clip((O * theta / (2 * math.pi) - low) / (high - low), 0, 1)
        theta = theta * (keep + (1 - keep) / scaling["factor"])
    return theta


def make(T, P, base, start, scaling, dtype):
    angle = np.arange(start, start + T)[:, None] * frequencies(P, base, dict(scaling))
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


kept = lru_cache(maxsize=8)(make)


def tables(T, P, base, start, scaling, dtype):
    """cos, sin [T P] on the host, read-only: every layer of every step asks for the same ones, and they are kept."""
    return kept(T, P, base, start, items(scaling), dtype)


def rotate(x, cos, sin, interleaved):
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def forward(x, *, base=10000.0, start=0, interleaved=False, scaling=None):
    T, K = x.shape[-2:]
    cos, sin = (np.asarray(table, like=x) for table in tables(T, K // 2, base, start, scaling, x.real.dtype))
    return rotate(x, cos, sin, interleaved), (cos, sin)


def backward(dy, cos, sin, *, base=10000.0, start=0, interleaved=False, scaling=None):
    return (rotate(dy, cos, -sin, interleaved),)


rope = op("x[... T 2*P] -> y[... T 2*P]", forward, backward, base=between(2.0, 1e6), start=between(0, 99),
          interleaved=[False, True], scaling=[None, {"rope_type": "linear", "factor": 3.0},
                                              {"rope_type": "ntk", "factor": 4.0},
                                              {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}])
