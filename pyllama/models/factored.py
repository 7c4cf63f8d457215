"""Matrices that are products of two factors, as a decomposition leaves them: see compression/low_rank.py.

    ranks_by_layer = {"q_proj": [R_0, R_1, ...], ...}       q_proj of layer i is second [F R_i] times first [R_i D]

A rank of 0 says that the matrix is whole.
"""
from dataclasses import dataclass, field, replace

from pyllama.errors import UserError
from pyllama.models.uneven import UnevenConfig

RANKS = "ranks_by_layer"                        # the field; config.json has it if there are factors
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class FactoredConfig(UnevenConfig):
    """The configuration of a model whose matrices may be factors.  Raises UserError if a rank is invalid."""

    ranks_by_layer: dict | None = field(default=None, kw_only=True)     # {matrix: R of each layer}; 0: it is whole

    def __post_init__(self):
        super().__post_init__()
        L = self.num_hidden_layers                      # type: ignore[attr-defined]
        for name, ranks in (self.ranks_by_layer or {}).items():
            numbers = isinstance(ranks, list) and all(type(rank) is int and rank >= 0 for rank in ranks)
            if name not in MATRICES or not numbers or len(ranks) != L:
                raise UserError(f"{RANKS} has {name} = {ranks!r}; it must have a rank, or 0, of each of the {L} layers "
                                f"for some of {', '.join(MATRICES)}")
        if self.ranks_by_layer and self.stored(L) < L:
            raise UserError(f"{RANKS} gives every layer factors, but share_layers {self.share_layers} gives several "
                            f"the same weights; remove one of them")

    @property
    def shares(self) -> bool:
        """See Config.shares."""
        return super().shares or self.ranks_by_layer is not None

    def rank_of(self, layer: int, name: str) -> int:
        """R of a matrix; 0: it is whole."""
        ranks = (self.ranks_by_layer or {}).get(name)
        return ranks[layer] if ranks else 0

    def unshared(self):
        """See SharingConfig.unshared."""
        return replace(super().unshared(), ranks_by_layer=None)

    def to_dict(self) -> dict:
        """The contents of config.json; see Config.to_dict."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name != RANKS or value is not None}
