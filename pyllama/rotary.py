"""The angles of rotary position embeddings: frequencies, their scaling, tables of cosines and sines.

The formulas are in ops/rope.py.  The op's reference, its kernels and the models' configurations use these functions.
"""
import math
from functools import lru_cache

import numpy as np

from pyllama.errors import UserError, shown

NEEDED = {"default": (), "linear": ("factor",), "ntk": ("factor",),
          "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
          "yarn": ("factor", "original_max_position_embeddings")}


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
        raise UserError(f"rope scaling {kind!r} is not supported; use default, linear, ntk, llama3 or yarn")
    if missing := [name for name in NEEDED[kind] if name not in scaling]:
        raise UserError(f"rope scaling {kind!r} lacks {missing[0]}; it needs {', '.join(NEEDED[kind])}")
    for name in NEEDED[kind]:
        if type(scaling[name]) not in (int, float) or not 0 < scaling[name] < 1e15:
            raise UserError(f"rope scaling has {name} = {shown(scaling[name])}; it must be a positive number")
    values = {name: scaling[name] for name in NEEDED[kind]}
    if kind == "yarn":
        values |= yarn_options(scaling)
    return ("rope_type", kind), *values.items()


def yarn_options(scaling):
    """beta_fast, beta_slow, attention_factor and truncate of yarn, or their defaults, as in transformers.

    Raises UserError if one of them is not a number, or negative.
    """
    def at(m):
        return 0.1 * m * math.log(max(scaling["factor"], 1)) + 1

    for name in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
        value = scaling.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < 1e15):
            raise UserError(f"rope scaling has {name} = {shown(value)}; it must be a number that is at least 0")
    m, all_m = scaling.get("mscale"), scaling.get("mscale_all_dim")
    default = at(m) / at(all_m) if m and all_m else at(1)
    given = scaling.get("attention_factor")
    return {"beta_fast": scaling.get("beta_fast") or 32.0, "beta_slow": scaling.get("beta_slow") or 1.0,
            "attention_factor": default if given is None else given, "truncate": bool(scaling.get("truncate", True))}


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
    if kind == "yarn":
        keep = kept_by_yarn(P, base, scaling)
        theta = theta * (keep + (1 - keep) / scaling["factor"])
    return theta


def kept_by_yarn(P, base, scaling):
    """The share [P] of each frequency that yarn keeps; the rest is divided by factor.  See ops/rope.py."""
    def pair(turns):
        return P * math.log(scaling["original_max_position_embeddings"] / (2 * math.pi * turns)) / math.log(base)

    first, last = pair(scaling["beta_fast"]), pair(scaling["beta_slow"])
    if scaling["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * P - 1)
    return 1 - np.clip((np.arange(P) - first) / (last - first or 0.001), 0, 1)


def compute(T, P, base, start, scaling, dtype):
    """tables() without the cache; scaling is what items() returns."""
    angle = np.arange(start, start + T)[:, None] * frequencies(P, base, dict(scaling))
    length = dict(scaling).get("attention_factor", 1.0)
    cos, sin = ((length * turn(angle)).astype(dtype) for turn in (np.cos, np.sin))
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
