"""Structured pruning: a model without some of its heads, channels and layers, which is really smaller.

Parts are scored (scores.py), the lowest leave (choice.py, parts.py), and the output matrices of the rest are refitted
on a text (repair.py).  A key/value head leaves with its query heads.  Layers then have sizes of their own, unless each
loses equally many: see models/uneven.py.
"""
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from pyllama import params
from pyllama.compression.choice import lasting, lowest, relative
from pyllama.compression.parts import Kept, everything, in_own_memory, require_plain, without_the_rest
from pyllama.compression.repair import Fit, repaired
from pyllama.compression.scores import SCORES, Scores
from pyllama.errors import UserError
from pyllama.quantization.passes import Rows


@dataclass(frozen=True)
class Pruning:
    """What leaves.  Raises UserError if a value is out of range, or if nothing leaves."""

    heads: float = 0.0                          # share of the key/value heads that leave, each with its query heads
    channels: float = 0.0                       # share of the feed-forward's channels that leave
    layers: int = 0                             # number of layers that leave
    score: Literal["magnitude", "wanda", "taylor"] | None = None    # what counts (default: see docs/pruning.md)
    even: bool = False                          # each layer loses equally many, so that other programs can read it
    repair: bool = True                         # refit output matrices on the text

    def __post_init__(self):
        for name in ("heads", "channels"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in 0 <= share < 1")
        if self.layers < 0:
            raise UserError(f"layers is {self.layers}; it must be at least 0")
        if not (self.heads or self.channels or self.layers):
            raise UserError("heads, channels and layers are 0, so that nothing would leave; set one of them")


class Pruned(NamedTuple):
    """A smaller model."""
    config: Any
    params: dict
    kept: Kept                                  # of the model's parts
    fits: dict[str, Fit]                        # the repaired matrices by their names in the model; none without a text


def pruned(p: dict, c: Any, pruning: Pruning, rows: Rows | None = None) -> Pruned:
    """The model without the parts that matter least.

    p, c        plain parameters and the configuration of a LLaMA, Mistral, Qwen2 or Qwen3
    rows        a text: see quantization/passes.py; None: only magnitudes can be compared, and nothing is repaired

    The parameters of the result are float32.

    Raises UserError for another family, for a score that needs a text, or if too much or nothing would leave.

    >>> import pyllama
    >>> from pyllama.compression.pruning import Pruning, pruned
    >>> model = pyllama.create("llama", "python-docs", hidden_size=16, num_attention_heads=4, num_hidden_layers=2)
    >>> smaller = pruned(model.params, model.config, Pruning(heads=0.25, channels=0.5, even=True))
    >>> smaller.config.num_attention_heads, model.config.intermediate_size, smaller.config.intermediate_size
    (3, 64, 32)
    """
    require_plain(c)
    score = pruning.score or ("wanda" if rows else "magnitude")
    if rows is None and score != "magnitude":
        raise UserError(f"the score {score} compares what a text does in the model; give data, or set score to "
                        f"magnitude")
    p = in_own_memory(p)
    scores = SCORES[score](p, c, rows)
    if rows and pruning.layers and pruning.score is None:       # of layers, the size of what they add says little
        scores = scores._replace(layers=SCORES["taylor"](p, c, rows).layers)
    kept = chosen(scores, c, pruning, comparable=score == "taylor")
    return without(kept, p, c, rows if pruning.repair else None)


def without(kept: Kept, p: dict, c: Any, rows: Rows | None = None) -> Pruned:
    """The model of the parts that are kept, refitted on the rows if there are some."""
    p = in_own_memory(p)
    fits = repaired(p, c, kept, rows) if rows else {}
    tree = params.rebuild(p, (fits[name].weight if name in fits else leaf for name, leaf in params.leaves(p)))
    return Pruned(*without_the_rest(tree, c, kept), kept, fits)


def chosen(scores: Scores, c: Any, pruning: Pruning, comparable: bool) -> Kept:
    """The parts that stay.    comparable: the scores of different layers are of one scale"""
    if pruning.layers >= c.num_hidden_layers:
        raise UserError(f"layers is {pruning.layers}, but the model has {c.num_hidden_layers}, of which one must stay; "
                        f"make it smaller")
    layers = ~lowest(scores.layers, pruning.layers)
    stay, kept = np.flatnonzero(layers), everything(c)._replace(layers=layers)
    for name in ("heads", "channels"):
        masks, of_rest = getattr(kept, name), [getattr(scores, name)[i] for i in stay]
        rest = lasting(of_rest if comparable else relative(of_rest), getattr(pruning, name), pruning.even, name)
        for i, mask in zip(stay, rest, strict=True):
            masks[i] = mask
    return kept
