"""Parameters that several parts of a model share: layers used more than once, a table of embeddings as two factors.

    share_layers = n        each layer's weights are those of n layers in a row (Lan et al., 2020, ALBERT, section 3.1)
    embedding_size = E      the table [V D] is W Pᵀ, with the weights W [V E] and the projection P [D E] (the same)

A weight that is used several times gets the sum of the gradients of its uses: see layers.through and layers.with_head.
"""
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pyllama.errors import UserError
from pyllama.models.config import Config

SHARING = ("share_layers", "embedding_size")                # the fields; config.json has them if weights are shared


@dataclass(frozen=True)
class SharingConfig(Config):
    """The configuration of a model of equal layers, which may share weights.

    A family says in LAYERS which of its fields are numbers of layers.  Raises UserError if a field is invalid.
    """

    LAYERS: ClassVar[tuple[str, ...]] = ("num_hidden_layers",)

    share_layers: int = field(default=1, kw_only=True)                  # n; layers in a row that share their weights
    embedding_size: int | None = field(default=None, kw_only=True)      # E; None or D: the table is not factorized

    def __post_init__(self):
        self.check(positive=("share_layers", "embedding_size"),
                   multiples=[(name, "share_layers") for name in self.LAYERS])
        D = self.hidden_size                            # type: ignore[attr-defined]
        if (self.embedding_size or 1) > D:
            raise UserError(f"embedding_size is {self.embedding_size}, above the model's width {D}, which saves "
                            f"nothing; make it smaller")

    @property
    def factor(self) -> int | None:
        """E; None: the table of embeddings is not factorized."""
        return None if self.embedding_size == self.hidden_size else self.embedding_size   # type: ignore[attr-defined]

    @property
    def shares(self) -> bool:
        """See Config.shares."""
        return self.share_layers > 1 or self.factor is not None

    def to_dict(self) -> dict:
        """The contents of config.json, as other programs know them if nothing is shared; see Config.to_dict."""
        values = super().to_dict()
        ours = () if self.shares else SHARING
        return {name: value for name, value in values.items() if name not in ours}


def expanded(config: Any, tree: dict) -> tuple[Any, dict]:
    """(configuration, tree) of the same function without sharing, which other programs can read.

    Layers that shared weights have the same arrays; a factorized table is multiplied out.

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
    return replace(config, share_layers=1, embedding_size=None), _expanded(tree, config.share_layers)


def _expanded(branch: Any, times: int) -> Any:
    if isinstance(branch, list):
        return in_turn(branch, times)
    if not isinstance(branch, dict):
        return branch
    if "projection" in branch:
        return {"weight": whole(branch)}
    return {name: _expanded(below, times) for name, below in branch.items()}


def in_turn(layers: list, times: int) -> list:
    """The layers as they run, each `times` times in a row.

    >>> from pyllama.models.sharing import in_turn
    >>> in_turn(["a", "b"], 2)
    ['a', 'a', 'b', 'b']
    """
    return [layer for layer in layers for _ in range(times)]


def whole(table: dict) -> Any:
    """The table of embeddings [V D]: its weight W or, if it is factorized, W Pᵀ."""
    w = table["weight"]
    if "projection" not in table:
        return w
    numbers = w.decoded() if hasattr(w, "decoded") else w       # of an EncodedArray, which is above this layer
    return numbers @ table["projection"].T
