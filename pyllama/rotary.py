"""The angles of rotary embeddings, the scaling of their frequencies, and tables of their cosines and sines.

The formulas stand in ops/rope.py.  The op's reference, its kernels and the models' configurations use these functions.
"""
import math
from functools import lru_cache

import numpy as np

from pyllama.errors import UserError

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
        _, low, high, O = (scaling[name] for name in NEEDED[kind])              # noqa: E741 -- as in ops/rope.py
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
