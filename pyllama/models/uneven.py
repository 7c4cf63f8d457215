"""Layers of different sizes, as pruning leaves them: see compression/pruning.py.

    num_key_value_heads_by_layer = [G_0, G_1, ...]      layer i has G_i key/value heads, each with R = H/G query heads
    intermediate_size_by_layer = [F_0, F_1, ...]        layer i has F_i channels in its feed-forward

num_attention_heads H, num_key_value_heads G and intermediate_size F are then those of the largest layer.  R and the
head width are the same in all layers.
"""
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyllama import params
from pyllama.errors import UserError
from pyllama.models.init import outlines
from pyllama.models.sharing import SharingConfig

UNEVEN = {"num_key_value_heads_by_layer": "groups",         # field -> the property that is its upper bound
          "intermediate_size_by_layer": "intermediate_size"}


@dataclass(frozen=True)
class UnevenConfig(SharingConfig):
    """The configuration of a model whose layers may have different sizes.  Raises UserError if a field is invalid."""

    num_key_value_heads_by_layer: list[int] | None = field(default=None, kw_only=True)  # G_i; None: all have G
    intermediate_size_by_layer: list[int] | None = field(default=None, kw_only=True)    # F_i; None: all have F

    def __post_init__(self):
        super().__post_init__()
        L = self.num_hidden_layers                      # type: ignore[attr-defined]
        for name, bound in UNEVEN.items():
            sizes, most = getattr(self, name), getattr(self, bound)
            if sizes is None:
                continue
            if len(sizes) != L or not all(1 <= size <= most for size in sizes):
                raise UserError(f"{name} is {sizes}; it must have a number from 1 to {most} for each of the {L} layers")
            if self.stored(L) < L:
                raise UserError(f"{name} gives every layer a size, but share_layers {self.share_layers} gives several "
                                f"the same weights; remove one of them")

    @property
    def is_uneven(self) -> bool:
        """See Config.is_uneven."""
        return any(getattr(self, name) is not None for name in UNEVEN)

    def groups_of(self, layer: int) -> int:
        """G of a layer."""
        sizes = self.num_key_value_heads_by_layer
        return self.groups if sizes is None else sizes[layer]               # type: ignore[attr-defined]

    def channels_of(self, layer: int) -> int:
        """F of a layer."""
        sizes = self.intermediate_size_by_layer
        return self.intermediate_size if sizes is None else sizes[layer]    # type: ignore[attr-defined]

    def to_dict(self) -> dict:
        """The contents of config.json, as other programs know them if all layers are equal; see Config.to_dict."""
        return {name: value for name, value in super().to_dict().items() if name not in UNEVEN or value is not None}


def padded(config: Any, tree: dict) -> tuple[Any, dict]:
    """(configuration, tree) of the same function with equal layers, which other programs can read.

    Zeros take the place of the heads and channels that a layer lacks: the values of such a head are zero, and so is
    the gate of such a channel, silu(0) = 0.

    >>> import numpy as np
    >>> from pyllama.models.llama import LlamaConfig, init
    >>> from pyllama.models.uneven import padded
    >>> c = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2,
    ...                 intermediate_size_by_layer=[6, 2])
    >>> even, tree = padded(c, init(c))
    >>> [layer["mlp"]["up_proj"]["weight"].shape for layer in tree["model"]["layers"]], even.is_uneven
    ([(6, 8), (6, 8)], False)
    """
    if not config.is_uneven:
        return config, tree
    even = replace(config, **dict.fromkeys(UNEVEN))
    with outlines():
        shapes = {name: a.shape for name, a in params.leaves(config.model.init(even))}
    return even, params.rebuild(tree, (grown(a, shapes[name]) for name, a in params.leaves(tree)))


def grown(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array with zeros after its rows and columns, so that it has this shape."""
    return a if a.shape == shape else np.pad(a, [(0, more - has) for has, more in zip(a.shape, shape, strict=True)])
