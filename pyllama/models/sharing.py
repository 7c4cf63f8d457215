"""Parameters that several parts of a model share: layers used more than once, a table of embeddings as two factors.

    share_layers = n          n layers in a row have the weights of one (Lan et al., 2020, ALBERT, section 3.1)
    share_layers = 1,2,1,2    each layer has the weights of the stored layer with this number: any pattern, such as
                              "cycle" and "cycle (rev)" (Takase & Kiyono, 2021, section 2)
    embedding_size = E        the table [V D] is W Pᵀ, with the weights W [V E] and the projection P [D E] (ALBERT)

A weight that is used several times gets the sum of the gradients of its uses: see layers.through and layers.with_head.
"""
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pyllama.errors import UserError, counted
from pyllama.models.config import Config

SHARING = ("share_layers", "embedding_size")                # the fields; config.json has them if weights are shared
Pattern = int | list[int]                                   # n, or the number of each layer's stored layer, from 1


@dataclass(frozen=True)
class SharingConfig(Config):
    """The configuration of a model of equal layers, which may share weights.

    A family says in LAYERS which of its fields are numbers of layers.  Raises UserError if a field is invalid.

    >>> from pyllama.models.llama import LlamaConfig
    >>> LlamaConfig(num_hidden_layers=4, share_layers="1,2,1,2").share_layers
    [1, 2, 1, 2]
    """

    LAYERS: ClassVar[tuple[str, ...]] = ("num_hidden_layers",)

    share_layers: int | list[int] | str = field(default=1, kw_only=True)    # see pattern()
    embedding_size: int | None = field(default=None, kw_only=True)          # E; None or D: the table is not factorized

    def __post_init__(self):
        object.__setattr__(self, "share_layers", pattern(self.share_layers))
        self.check(positive=("embedding_size",))
        if isinstance(self.share_layers, int):
            self.check(positive=("share_layers",), multiples=[(name, "share_layers") for name in self.LAYERS])
        else:
            require_order(self.share_layers, {name: getattr(self, name) for name in self.LAYERS})
            if max(self.share_layers) == len(self.share_layers):
                object.__setattr__(self, "share_layers", 1)     # each layer has weights of its own
        D = self.hidden_size                            # type: ignore[attr-defined]
        if (self.embedding_size or 1) > D:
            raise UserError(f"embedding_size is {self.embedding_size}, above the model's width {D}, which saves "
                            f"nothing; make it smaller")

    def stored(self, layers: int) -> int:
        """How many layers have weights of their own, if so many run."""
        share: Any = self.share_layers
        return layers // share if isinstance(share, int) else max(share)

    @property
    def factor(self) -> int | None:
        """E; None: the table of embeddings is not factorized."""
        return None if self.embedding_size == self.hidden_size else self.embedding_size   # type: ignore[attr-defined]

    @property
    def shares(self) -> bool:
        """See Config.shares."""
        layers = getattr(self, self.LAYERS[0])
        return self.stored(layers) < layers or self.factor is not None

    def unshared(self):
        """The configuration of the expanded model."""
        return replace(self, share_layers=1, embedding_size=None)

    def to_dict(self) -> dict:
        """The contents of config.json, as other programs know them if nothing is shared; see Config.to_dict."""
        values = super().to_dict()
        ours = () if self.shares else SHARING
        return {name: value for name, value in values.items() if name not in ours}


def pattern(share: Any) -> Pattern:
    """Which layers share weights, as a number or a list, or as a text that has either.

    Raises UserError for anything else.

    >>> from pyllama.models.sharing import pattern
    >>> pattern("2"), pattern("1,2,1,2")
    (2, [1, 2, 1, 2])
    """
    if isinstance(share, int):
        return share
    try:
        numbers = [*map(int, share.split(","))] if isinstance(share, str) else [*map(operator.index, share)]
    except (TypeError, ValueError):
        raise UserError(f"share_layers is {share!r}; it must be the number of layers in a row that share weights, or "
                        f"the number of each layer's weights, such as 1,2,1,2") from None
    return numbers[0] if isinstance(share, str) and "," not in share else numbers


def spelled(share: Sequence[int]) -> str:
    """1,2,1,2"""
    return ",".join(map(str, share))


def require_order(share: list[int], lengths: dict[str, int]) -> None:
    """Raise UserError unless a list has the lengths {field: layers}, and counts the stored layers by their first use.

    Without that rule two patterns could be the same model, and a number that is left out would be a layer without use.
    """
    for name, layers in lengths.items():
        if len(share) != layers:
            raise UserError(f"share_layers {spelled(share)} is a pattern of {counted(len(share), 'layer')}, but "
                            f"{name} is {layers}; give a number for each layer")
    by_first_use = [*dict.fromkeys(share)]
    if by_first_use != [*range(1, len(by_first_use) + 1)]:
        raise UserError(f"share_layers is {spelled(share)}, but its numbers must be 1, 2, ... in the order of their "
                        f"first use; write {spelled([by_first_use.index(number) + 1 for number in share])}")


def fitting(share: Pattern, layers: int) -> Pattern:
    """The pattern for another number of layers: as many in a row as divide it; a list of another length has none.

    >>> from pyllama.models.sharing import fitting
    >>> fitting(4, layers=6), fitting([1, 2, 1, 2], layers=4), fitting([1, 2, 1, 2], layers=6)
    (2, [1, 2, 1, 2], 1)
    """
    if isinstance(share, int):
        return math.gcd(layers, share)
    return share if len(share) == layers else 1


def expanded(config: Any, tree: dict) -> tuple[Any, dict]:
    """(configuration, tree) of the same function without sharing, which other programs can read.

    Layers that shared weights have the same arrays; a factorized table, or another matrix, is multiplied out.

    >>> import numpy as np
    >>> from pyllama.models.llama import LlamaConfig
    >>> from pyllama.models.sharing import expanded
    >>> table = {"weight": np.array([[1.0], [2.0]]), "projection": np.array([[3.0], [4.0]])}
    >>> config, tree = expanded(LlamaConfig(share_layers=2, embedding_size=1), {"table": table, "layers": ["first"]})
    >>> tree["table"]["weight"].tolist(), tree["layers"], config.share_layers
    ([[3.0, 4.0], [6.0, 8.0]], ['first', 'first'], 1)
    """
    if not config.shares:
        return config, tree
    return config.unshared(), _expanded(tree, config.share_layers)


def _expanded(branch: Any, share: Pattern) -> Any:
    if isinstance(branch, list):
        return in_turn([_expanded(layer, share) for layer in branch], share)
    if not isinstance(branch, dict):
        return branch
    if "projection" in branch:
        return {"weight": whole(branch)}
    if "first" in branch:
        return branch["second"] | {"weight": plain(branch["second"]["weight"]) @ plain(branch["first"]["weight"])}
    return {name: _expanded(below, share) for name, below in branch.items()}


def in_turn(layers: Sequence, share: Pattern) -> list:
    """The stored layers as they run.

    >>> from pyllama.models.sharing import in_turn
    >>> in_turn(["a", "b"], 2), in_turn(["a", "b"], [1, 2, 2, 1])
    (['a', 'a', 'b', 'b'], ['a', 'b', 'b', 'a'])
    """
    if isinstance(share, int):
        return [layer for layer in layers for _ in range(share)]
    return [layers[number - 1] for number in share]


def whole(table: dict) -> Any:
    """The table of embeddings [V D]: its weight W or, if it is factorized, W Pᵀ."""
    w = table["weight"]
    if "projection" not in table:
        return w
    return plain(w) @ table["projection"].T


def plain(w: Any) -> Any:
    """The numbers of a matrix, decoded if it is an EncodedArray, whose module is above this one."""
    return w.decoded() if hasattr(w, "decoded") else w
