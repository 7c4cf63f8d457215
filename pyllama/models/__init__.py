"""The models.  Each family is a module of plain functions: a Config, init, and passes of the form y, back = f(...).

To add one, write its module after the protocol below, and give it a line in MODELS: the commands, the tasks and the
tests take it from there.
"""
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from pyllama.models import bart, bert, glove, gpt2, llama, lstm, skipgram, textbook, transformer
from pyllama.models.config import Config
from pyllama.rng import NO_DRAW, Draw


class ModelModule(Protocol):
    """What the module of a family offers.  ids [B T], p the tree of parameters, c the configuration.

    Functions between these, such as hidden() and block(), take the same keywords in the same order.
    """

    def init(self, c: Any, seed: int = 0, dtype: str = "float32") -> dict:
        """The tree of first parameters, with the names of a state dict."""

    def tidy(self, tensors: dict, c: Any) -> dict:
        """A state dict as other programs write it, with the names that init() gives."""

    def logits(self, ids: Any, p: dict, c: Any, *, mask: Any = None, draw: Draw = NO_DRAW,
               recompute: bool = False) -> Any:
        """(scores of what the head scores, back);  back(dscores) gives the tree of the parameters' gradients."""

    def loss(self, ids: Any, labels: Any, p: dict, c: Any, *, mask: Any = None, draw: Draw = NO_DRAW,
             recompute: bool = False, count: Any = None, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Any:
        """(the mean loss, back);  back(dloss=1.0) gives the tree of the parameters' gradients.

        count: divide the sum of the losses by it instead of by how many labels count.  With a classification head it
        takes weights [B] too (see layers.class_loss).
        """


class WriterModule(ModelModule, Protocol):
    """The module of a family that learns the next token: it continues texts (see generation.py)."""

    def next_scores(self, ids: Any, p: dict, c: Any, *, mask: Any = None, caches: Any) -> Any:
        """z [B V] of the token after the last; caches: one a layer, which the ids continue (see kv_cache.py)."""


class Family(NamedTuple):
    model: ModelModule                          # the module
    config: type[Config]


MODELS: dict[str, Family] = {                   # model_type in config.json -> family
    "llama": Family(llama, llama.LlamaConfig),
    "gpt2": Family(gpt2, gpt2.GPT2Config),
    "bert": Family(bert, bert.BertConfig),
    "transformer": Family(transformer, transformer.TransformerConfig),
    "bart": Family(bart, bart.BartConfig),
    "lstm": Family(lstm, lstm.LstmConfig),
}
APART: dict[str, tuple[ModuleType, type[Config]]] = {       # models that no command offers
    "skipgram": (skipgram, skipgram.SkipgramConfig),
    "glove": (glove, glove.GloveConfig),
    "textbook": (textbook, textbook.TextbookConfig),
}

# A configuration has its module as `model`, which a subclass inherits.  It is set here, where both are known: the base
# of the configurations cannot import what is built on it.
for _model, _config in (*MODELS.values(), *APART.values()):
    _config.model = _model


def families_with(head: str) -> list[str]:
    """The families that have this head."""
    return [kind for kind, family in MODELS.items() if head in family.config.HEADS]
