"""RoBERTa (Liu et al., 2019): BERT with other names, heads and positions, and without the types of two texts.

XLM-RoBERTa and CamemBERT are the same model.  The heads are those of models/bert.py; "classification" has a layer of
its own instead of BERT's pooler.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pyllama.errors import UserError, with_article
from pyllama.models import bert
from pyllama.models.bert import BertConfig, hidden
from pyllama.models.config import Dimensions
from pyllama.models.encoder import first, logits, loss, transform_of
from pyllama.models.init import Initializer
from pyllama.models.layers import drop, project
from pyllama.ops import tanh
from pyllama.rng import NO_DRAW, generator

__all__ = ["CamembertConfig", "RobertaConfig", "XlmRobertaConfig", "hidden", "init", "logits", "loss", "score", "tidy",
           "transform"]
HEADS = {"masked_lm": "ForMaskedLM", "classification": "ForSequenceClassification",
         "tagging": "ForTokenClassification", "span": "ForQuestionAnswering", "none": "Model"}


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The configuration of a RoBERTa, under the names of Hugging Face's config.json.

    Positions are counted from pad_token_id + 1, so a text may have that many tokens less than
    max_position_embeddings.  Raises UserError if a field is invalid.
    """

    TYPE = "roberta"
    HEADS: ClassVar = {head: f"Roberta{name}" for head, name in HEADS.items()}
    ALIASES: ClassVar = {}
    ROOT = "roberta"
    BODY = ("roberta.embeddings.", "roberta.encoder.")

    vocab_size: int = 50265                     # V
    pad_token_id: int | None = 1

    def __post_init__(self):
        super().__post_init__()
        if self.pad_token_id is None or self.context < 1:
            raise UserError(f"pad_token_id is {self.pad_token_id}, but {with_article(self.TYPE)} counts its "
                            f"{self.max_position_embeddings} positions from the id after it; set it to the id of <pad>")

    @property
    def context(self) -> int:
        """The longest text in tokens."""
        return self.max_position_embeddings - (self.pad_token_id or 0) - 1

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        return {"lm_head.decoder.weight": f"{self.ROOT}.embeddings.word_embeddings.weight",
                "lm_head.decoder.bias": "lm_head.bias"} if self.head == "masked_lm" else {}

    def position_ids(self, ids):
        """The rows [B T] of the position embeddings for ids [B T]: padding has the row pad_token_id."""
        there = ids != self.pad_token_id
        return self.pad_token_id + np.cumsum(there, axis=1) * there

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this size."""
        return cls(vocab_size=shape.vocab_size, hidden_size=shape.width, num_hidden_layers=shape.depth,
                   num_attention_heads=shape.heads, intermediate_size=shape.feed_forward, type_vocab_size=1,
                   hidden_dropout_prob=shape.dropout, max_position_embeddings=shape.context + shape.pad_id + 1,
                   pad_token_id=shape.pad_id, head=shape.head)


@dataclass(frozen=True)
class XlmRobertaConfig(RobertaConfig):
    """The configuration of an XLM-RoBERTa (Conneau et al., 2020)."""

    TYPE = "xlm-roberta"
    HEADS: ClassVar = {head: f"XLMRoberta{name}" for head, name in HEADS.items()}

    vocab_size: int = 30522                     # V


@dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """The configuration of a CamemBERT (Martin et al., 2020)."""

    TYPE = "camembert"
    HEADS: ClassVar = {head: f"Camembert{name}" for head, name in HEADS.items()}

    vocab_size: int = 30522                     # V


tidy = bert.tidy


def init(c: RobertaConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²); norms one, biases zero."""
    weights, D = Initializer(generator(seed, "init"), c.initializer_range, dtype), c.hidden_size
    p = {c.ROOT: bert.init_body(weights, c)}
    if c.head == "none":
        p[c.ROOT]["pooler"] = {"dense": weights.affine(D, D)}
    elif c.head == "masked_lm":
        p["lm_head"] = {"bias": weights.zeros(c.vocab_size), "dense": weights.affine(D, D),
                        "layer_norm": weights.norm(D)}
    elif c.head == "classification":
        p["classifier"] = {"dense": weights.affine(D, D), "out_proj": weights.affine(c.num_labels, D)}
    elif c.head == "tagging":
        p["classifier"] = weights.affine(c.num_labels, D)
    else:
        p["qa_outputs"] = weights.affine(2, D)
    return p


def transform(x, p, c):
    """norm(gelu(affine(x))), the input of the masked_lm head: see models/encoder.py.  hidden_act does not matter."""
    head = p["lm_head"]
    y, transform_back = transform_of(x, head["dense"], head["layer_norm"], "gelu", c.layer_norm_eps)

    def back(dy, db):
        dx, d_dense, d_norm = transform_back(dy)
        return dx, {"lm_head": {"bias": db, "dense": d_dense, "layer_norm": d_norm}}

    return (y, head["bias"]), back


def classify(x, p, c, *, draw=NO_DRAW):
    """Scores of the classes, out(drop(tanh(dense(drop(the first token's vector))))): x [B T D] -> z [B C];  back gives
    dx, dp."""
    x, first_back = first(x)
    x, drop_in_back = drop(x, c.hidden_dropout_prob, draw.at("head"))
    x, dense_back = project(x, p["dense"])
    x, tanh_back = tanh(x)
    x, drop_out_back = drop(x, c.hidden_dropout_prob, draw.at("classes"))
    z, out_back = project(x, p["out_proj"])

    def back(dz):
        dx, d_out = out_back(dz)
        dx, d_dense = dense_back(*tanh_back(drop_out_back(dx)))
        return first_back(drop_in_back(dx)), {"dense": d_dense, "out_proj": d_out}

    return z, back


def score(x, p, c, *, draw=NO_DRAW):
    """Scores of texts or tokens: x [B T D] -> z [B C], [B T C] or [B T 2];  see models/encoder.py."""
    if c.head != "classification":
        return bert.score(x, p, c, draw=draw)
    z, classify_back = classify(x, p["classifier"], c, draw=draw)

    def back(dz):
        dx, d_head = classify_back(dz)
        return dx, {"classifier": d_head}, {}

    return z, back
