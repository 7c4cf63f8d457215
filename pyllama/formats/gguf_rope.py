"""The scaling of rotary frequencies in a GGUF file: keys for linear and yarn, a tensor of factors for llama3.

llama.cpp divides the frequency of pair k by factor k of the tensor rope_freqs.weight.  Of llama3's scaling it keeps
these factors alone; see ops/rope.py for the formula that they come from:

    1 / f_k = keep_k + (1 - keep_k) / factor        keep_k = clip((O θ_k / 2π - low) / (high - low), 0, 1)

So keep is linear in θ, from 0 where the factor is largest to 1 where there is none.  Two points of the line determine
O / (high - low) and low / (high - low), and any O gives the same frequencies.
"""
import math
from typing import Any

import numpy as np

from pyllama.errors import UserError
from pyllama.formats.gguf_metadata import Metadata
from pyllama.models.llama_config import LlamaConfig
from pyllama.rotary import frequencies, items

PREFIX = "llama.rope."
KNOWN = {"dimension_count", "freq_base", "scale_linear", "scaling.type", "scaling.factor",
         "scaling.original_context_length", "scaling.finetuned", "scaling.attn_factor", "scaling.yarn_beta_fast",
         "scaling.yarn_beta_slow"}
USUAL = 8192                                        # original_max_position_embeddings of LLaMA 3
ROUNDED = 1.2e-7                                    # of a factor, in float32
CLOSE = 2e-6                                        # of a factor: the error of the line through two rounded points


def read(metadata: Metadata, factors: np.ndarray | None, pairs: int, base: float) -> dict | None:
    """The scaling that a file describes, for LlamaConfig.rope_scaling.

    factors     [K/2], the tensor rope_freqs.weight; None: the file has none

    Raises UserError for a scaling that is not supported.
    """
    path = metadata.path
    if unknown := metadata.below(PREFIX).keys() - KNOWN:
        raise UserError(f"{path} has {PREFIX}{min(unknown)}, which is not supported; give another model")
    factor = metadata.number("llama.rope.scaling.factor", None) or metadata.number("llama.rope.scale_linear", None)
    kind = metadata.text("llama.rope.scaling.type", "linear" if factor else "none")
    if kind not in ("none", "linear", "yarn"):
        raise UserError(f"{path} scales rotary embeddings by {kind!r}, which is not supported; give another model")
    if metadata.number("llama.rope.scaling.attn_factor", 1.0) != 1:
        raise UserError(f"{path} has llama.rope.scaling.attn_factor, which is not supported; give another model")
    if factors is not None:
        if kind != "none" and factor not in (None, 1.0):
            raise UserError(f"{path} scales rotary embeddings in two ways, by {kind!r} and by factors; give another "
                            f"model")
        return llama3(factors, pairs, base, metadata)
    if kind == "none" or not factor or (kind == "linear" and factor == 1):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.whole(
            "llama.rope.scaling.original_context_length", metadata.whole("llama.context_length"))
        for name in ("beta_fast", "beta_slow"):
            if f"llama.rope.scaling.yarn_{name}" in metadata:
                scaling[name] = metadata.number(f"llama.rope.scaling.yarn_{name}")
    return scaling


def llama3(factors: np.ndarray, pairs: int, base: float, metadata: Metadata) -> dict | None:
    """The llama3 scaling with these factors.  Raises UserError if there is none."""
    wrong = UserError(f"{metadata.path} scales rotary embeddings by factors that are not those of llama3; give another "
                      f"model")
    if factors.shape != (pairs,) or not np.isfinite(factors).all() or factors.min() <= 0:
        raise wrong
    f, factor = factors.astype(float), float(str(factors.max()))
    if (f == 1).all():
        return None
    if factor <= 1:
        raise wrong
    theta = frequencies(pairs, base, None)
    original = metadata.whole("llama.rope.scaling.original_context_length", USUAL)
    with np.errstate(all="ignore"):                             # a base of 1, of which no line can be made
        slope, start = line(theta, (1 / f - 1 / factor) / (1 - 1 / factor), ROUNDED / f / (1 - 1 / factor))
        width = original / (2 * math.pi * slope)
    for digits in (4, 6, 17):                                   # the file has rounded numbers; try those that are short
        low, high = (float(f"{value:.{digits}g}") for value in (-start * width, (1 - start) * width))
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                   "original_max_position_embeddings": original}
        if 0 < low < high and np.allclose(theta / frequencies(pairs, base, scaling), f, rtol=CLOSE, atol=0):
            return scaling
    raise wrong


def line(theta: np.ndarray, keep: np.ndarray, noise: np.ndarray) -> tuple[float, float]:
    """(slope, value at 0) of a line through keep(θ) where it is between 0 and 1, and beyond both elsewhere.

    theta   [K/2], falling
    noise   [K/2], the error of keep
    """
    inner = np.flatnonzero((keep > noise) & (keep < 1 - noise))
    above, below = np.flatnonzero(keep >= 1 - noise), np.flatnonzero(keep <= noise)
    first = inner[0] if inner.size else above[-1] if above.size else below[0]
    last = inner[-1] if inner.size else below[0] if below.size else above[-1]
    if first != last:
        slope = (keep[first] - keep[last]) / (theta[first] - theta[last])
    else:
        before, behind = above[above < first][-1:], below[below > first][:1]
        slope = max([1 / theta[first], *((1 - keep[first]) / (theta[before] - theta[first])),
                     *(keep[first] / (theta[first] - theta[behind]))])
    return slope, keep[first] - slope * theta[first]


def written(c: LlamaConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """(metadata, the tensor rope_freqs.weight or None) of a configuration.

    Raises UserError for a scaling that llama.cpp does not compute.
    """
    scaling = dict(items(c.rope_scaling))
    kind, base = scaling["rope_type"], c.rope_theta
    pairs = c.head_width // 2
    if kind == "ntk":                                           # another base, and nothing else
        base *= scaling["factor"] ** (pairs / max(pairs - 1, 1))
    metadata: dict[str, Any] = {"llama.rope.dimension_count": np.uint32(c.head_width),
                                "llama.rope.freq_base": np.float32(base)}
    if kind == "llama3":
        factors = frequencies(pairs, base, None) / frequencies(pairs, base, scaling)
        original = scaling["original_max_position_embeddings"]
        return metadata | {"llama.rope.scaling.original_context_length": np.uint32(original)}, factors
    if kind in ("linear", "yarn"):
        metadata |= {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": np.float32(scaling["factor"])}
    if kind == "yarn":
        usual = dict(items({name: scaling[name] for name in ("rope_type", "factor",
                                                             "original_max_position_embeddings")}))
        if scaling != usual:
            raise UserError("GGUF files have yarn only with its usual attention_factor, beta_fast, beta_slow and "
                            "truncate; save the model as a folder")
        metadata["llama.rope.scaling.original_context_length"] = np.uint32(scaling["original_max_position_embeddings"])
    return metadata, None
