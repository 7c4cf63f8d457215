"""The angles of rotary position embeddings: frequencies, their scaling, tables of cosines and sines.

The formulas are in ops/rope.py.  The op's reference, its kernels and the models' configurations use these functions.
"""
import math
from functools import lru_cache

import numpy as np

from pyllama.errors import UserError

NEEDED = {"default": (), "linear": ("factor",), "ntk": ("factor",),
          "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}


def items(scaling):
    """A scaling as the items of a dict: its rope_type, then the numbers that this type needs.

    scaling  a dict with Hugging Face's keys, or None, which means "default"

    Raises UserError if the type is unknown or a number is missing.

    >>> from pyllama.rotary import items
    >>> items({"type": "linear", "factor": 2.0})
    (('rope_type', 'linear'), ('factor', 2.0))
    """
    scaling = scaling or {"rope_type": "default"}
    if not isinstance(scaling, dict):
        raise UserError(f"rope scaling is {scaling!r}; it must be an object with a rope_type, or null")
    kind = scaling.get("rope_type", scaling.get("type"))
    if not isinstance(kind, str) or kind not in NEEDED:
        raise UserError(f"rope scaling {kind!r} is not supported; use default, linear, ntk or llama3")
    if missing := [name for name in NEEDED[kind] if name not in scaling]:
        raise UserError(f"rope scaling {kind!r} lacks {missing[0]}; it needs {', '.join(NEEDED[kind])}")
    for name in NEEDED[kind]:
        if type(scaling[name]) not in (int, float) or not 0 < scaling[name] < 1e15:
            raise UserError(f"rope scaling has {name} = {scaling[name]!r}; it must be a positive number")
    return ("rope_type", kind), *((name, scaling[name]) for name in NEEDED[kind])


def frequencies(P, base, scaling):
    """The frequencies θ [P], in radians per position: float64, on the host.

    P        the number of pairs, half the width of a head
    scaling  as for items()

    >>> from pyllama.rotary import frequencies
    >>> frequencies(2, 100.0, None).round(4)
    array([1. , 0.1])
    """
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


def compute(T, P, base, start, scaling, dtype):
    """tables() without the cache; scaling is what items() returns."""
    angle = np.arange(start, start + T)[:, None] * frequencies(P, base, dict(scaling))
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


cached = lru_cache(maxsize=8)(compute)


def tables(T, P, base, start, scaling, dtype):
    """cos, sin [T P] of the angles (start + t) θ_k in radians, in this dtype, on the host.

    scaling  as for items()

    The tables are cached, because every layer of every step uses the same ones, and therefore read-only.

    >>> import numpy as np
    >>> from pyllama.rotary import tables
    >>> cos, sin = tables(T=3, P=1, base=10000.0, start=0, scaling=None, dtype=np.dtype("float64"))
    >>> cos.ravel().round(4)
    array([ 1.    ,  0.5403, -0.4161])
    """
    return cached(T, P, base, start, items(scaling), dtype)
