"""The model families.  Each is a module of plain functions: a Config, init, and passes of the form y, back = f(...).

To add one, write a module that follows the protocol below, and add a line to MODELS.  The commands, the tasks and the
tests then use it.
"""
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from pyllama.models import (
    albert,
    bart,
    bert,
    distilbert,
    glove,
    gpt2,
    llama,
    llama_config,
    lstm,
    roberta,
    skipgram,
    textbook,
    transformer,
)
from pyllama.models.config import Config
from pyllama.rng import NO_DRAW, Draw


class ModelModule(Protocol):
    """The functions of a family's module.

    ids [B T] are integers, p is the tree of parameters, c the configuration.  Inner functions, such as hidden() and
    block(), take the same keywords in the same order.
    """

    def init(self, c: Any, seed: int = 0, dtype: str = "float32") -> dict:
        """A tree of random parameters, drawn from the seed.  Its leaves have the names of a state dict."""

    def tidy(self, tensors: dict, c: Any) -> dict:
        """A state dict written by another program, {name: array}, renamed to the names of init()."""

    def logits(self, ids: Any, p: dict, c: Any, *, mask: Any = None, draw: Draw = NO_DRAW,
               recompute: bool = False) -> Any:
        """(the head's scores, back);  back(dscores) gives the gradients of p, a tree of the same form.

        mask [B T] is 0 at padding.  draw has the random numbers of dropout (see rng.Draw).  recompute trades time for
        memory (see recompute.py).
        """

    def loss(self, ids: Any, labels: Any, p: dict, c: Any, *, mask: Any = None, draw: Draw = NO_DRAW,
             recompute: bool = False, count: Any = None, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Any:
        """(mean loss in nats, a 0-d float; back);  back(dvalue=1.0) gives the gradients of p, a tree of the same form.

        A label of -100 is ignored.  count: divide the sum of the losses by it instead of by the number of labels that
        are not ignored.  With a classification head, loss also takes weights [B], and labels of a floating-point dtype
        are numbers to estimate (see layers.class_loss).
        """


class WriterModule(ModelModule, Protocol):
    """The module of a family that predicts the next token, and so can continue text (see generation/).

    Its logits and loss also take segments, of the shape of ids: the numbers of packed documents, which do not see each
    other.  Its logits also take caches, as next_scores does.
    """

    def next_scores(self, ids: Any, p: dict, c: Any, *, mask: Any = None, caches: Any) -> Any:
        """Scores z [B V] of the token after the last.  caches: one per layer; ids continue them (see kv_cache.py)."""


class Family(NamedTuple):
    """A family of models."""
    model: ModelModule                          # its module
    config: type[Config]


MODELS: dict[str, Family] = {                   # model_type in config.json -> family
    "llama": Family(llama, llama_config.LlamaConfig),
    "mistral": Family(llama, llama_config.MistralConfig),
    "qwen2": Family(llama, llama_config.Qwen2Config),
    "qwen3": Family(llama, llama_config.Qwen3Config),
    "gpt2": Family(gpt2, gpt2.GPT2Config),
    "bert": Family(bert, bert.BertConfig),
    "roberta": Family(roberta, roberta.RobertaConfig),
    "xlm-roberta": Family(roberta, roberta.XlmRobertaConfig),
    "camembert": Family(roberta, roberta.CamembertConfig),
    "albert": Family(albert, albert.AlbertConfig),
    "distilbert": Family(distilbert, distilbert.DistilBertConfig),
    "transformer": Family(transformer, transformer.TransformerConfig),
    "bart": Family(bart, bart.BartConfig),
    "mbart": Family(bart, bart.MBartConfig),
    "lstm": Family(lstm, lstm.LstmConfig),
}
LIBRARY_ONLY: dict[str, tuple[ModuleType, type[Config]]] = {       # models that are not available in the commands
    "skipgram": (skipgram, skipgram.SkipgramConfig),
    "glove": (glove, glove.GloveConfig),
    "textbook": (textbook, textbook.TextbookConfig),
}

# A configuration has its module as `model`, which a subclass inherits.  It is set here, because config.py cannot import
# the modules that import it.
for _model, _config in (*MODELS.values(), *LIBRARY_ONLY.values()):
    _config.model = _model


def families_with(head: str) -> list[str]:
    """The names of the families that have this head."""
    return [kind for kind, family in MODELS.items() if head in family.config.HEADS]
