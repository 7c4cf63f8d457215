"""BERT (Devlin et al., 2019), a bidirectional encoder, forward and backward side by side.

    head                it scores                                   labels
    masked_lm           each masked token (see text/corruption.py)  [B T], -100 at tokens that are not masked
    classification      each text, from its first token             [B]
    tagging             each token                                  [B T], -100 to ignore a token
    span                each token as the first, and as the last    [B 2], the two positions, -100 to ignore one
    none                nothing: hidden() gives the vectors

Parameters have Hugging Face's names.  models/encoder.py has what RoBERTa and DistilBERT share with it.

Axes: B batch, T time, D model, H heads, F hidden, V vocabulary, C classes.
"""
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pyllama.low import total
from pyllama.models.config import Dimensions
from pyllama.models.encoder import embed, first, logits, loss, transform_of
from pyllama.models.init import Initializer
from pyllama.models.layers import (
    ACTIVATIONS,
    drop,
    feed_forward,
    multi_head,
    project,
    residual,
    through,
)
from pyllama.models.sharing import SharingConfig
from pyllama.ops import tanh
from pyllama.rng import NO_DRAW, generator

__all__ = ["BertConfig", "block", "hidden", "init", "logits", "loss", "score", "tidy", "transform"]
POOLED = ("classification", "none")                         # the heads that read the first token through bert.pooler


@dataclass(frozen=True)
class BertConfig(SharingConfig):
    """The configuration of a BERT, under the names of Hugging Face's config.json.

    Raises UserError if a field is invalid.
    """

    TYPE = "bert"
    HEADS: ClassVar = {"masked_lm": "BertForMaskedLM", "classification": "BertForSequenceClassification",
                       "tagging": "BertForTokenClassification", "span": "BertForQuestionAnswering", "none": "BertModel"}
    ONLY: ClassVar = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
                      "tie_word_embeddings": True, "quantization_config": None}
    ALIASES: ClassVar = {"BertForPreTraining": "masked_lm"}
    ROOT = "bert"                               # of the names of the parameters that all heads share
    BODY = ("bert.embeddings.", "bert.encoder.")
    DROPOUTS = ("hidden_dropout_prob",)
    NO_DROPOUT: ClassVar = {"attention_probs_dropout_prob": 0.0}
    LEARNS: ClassVar = {"masked_lm": "masked tokens"}

    vocab_size: int = 30522                     # V
    hidden_size: int = 768                      # D
    num_hidden_layers: int = 12                 # L
    num_attention_heads: int = 12               # H
    intermediate_size: int = 3072               # F
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1            # on the embeddings and residual branches, before a head
    max_position_embeddings: int = 512          # number of position embeddings
    type_vocab_size: int = 2                    # token types: first and second text
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    head: Literal["masked_lm", "classification", "tagging", "span", "none"] = "masked_lm"
    num_labels: int = 2                         # C

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                             "intermediate_size", "max_position_embeddings", "type_vocab_size", "num_labels"),
                   shares=("hidden_dropout_prob",), multiples=[("hidden_size", "num_attention_heads")],
                   choices={"head": self.HEADS, "hidden_act": ACTIVATIONS})
        super().__post_init__()

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        decoder = "cls.predictions.decoder"
        return {f"{decoder}.weight": "bert.embeddings.word_embeddings.weight",
                f"{decoder}.bias": "cls.predictions.bias"} if self.head == "masked_lm" else {}

    def spares(self, name: str) -> bool:
        """See Config.spares: without a head, the pooler is not used."""
        return self.head == "none" and ".pooler." in name

    def position_ids(self, ids):
        """The rows [B T] of the position embeddings for ids [B T]."""
        return np.broadcast_to(np.arange(ids.shape[1], like=ids), ids.shape)

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this size."""
        return cls(vocab_size=shape.vocab_size, hidden_size=shape.width, num_hidden_layers=shape.depth,
                   num_attention_heads=shape.heads, intermediate_size=shape.feed_forward,
                   hidden_dropout_prob=shape.dropout, max_position_embeddings=shape.context, head=shape.head)


def init_body(weights, c):
    """The parameters that all heads share."""
    D, F = c.hidden_size, c.intermediate_size

    def layer():
        return {"attention": {"self": {name: weights.affine(D, D) for name in ("query", "key", "value")},
                              "output": {"dense": weights.affine(D, D), "LayerNorm": weights.norm(D)}},
                "intermediate": {"dense": weights.affine(F, D)},
                "output": {"dense": weights.affine(D, F), "LayerNorm": weights.norm(D)}}

    return {"embeddings": {"word_embeddings": weights.table(c.vocab_size, D, c.factor),
                           "position_embeddings": weights.matrix(c.max_position_embeddings, D),
                           "token_type_embeddings": weights.matrix(c.type_vocab_size, D),
                           "LayerNorm": weights.norm(D)},
            "encoder": {"layer": [layer() for _ in range(c.stored(c.num_hidden_layers))]}}


def init(c: BertConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²); norms one, biases zero."""
    weights, D = Initializer(generator(seed, "init"), c.initializer_range, dtype), c.hidden_size
    p = {"bert": init_body(weights, c)}
    if c.head in POOLED:
        p["bert"]["pooler"] = {"dense": weights.affine(D, D)}
    if c.head == "masked_lm":
        p["cls"] = {"predictions": {"bias": weights.zeros(c.vocab_size),
                                    "transform": {"dense": weights.affine(D, D), "LayerNorm": weights.norm(D)}}}
    elif c.head in ("classification", "tagging"):
        p["classifier"] = weights.affine(c.num_labels, D)
    elif c.head == "span":
        p["qa_outputs"] = weights.affine(2, D)
    return p


def tidy(tensors, c):
    """The state dict with the names of init().

    A model without a head omits "bert."; some programs call a norm's parameters gamma and beta.
    """
    tensors = {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): a
               for name, a in tensors.items()}
    return {f"{c.ROOT}.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name: a
            for name, a in tensors.items()}


# The encoder

def self_attention(x, p, c, *, mask=None):
    """Bidirectional attention: x [B T D] -> y [B T D];  back gives dx and the gradients of p["self"] and
    p["output"]["dense"].

    mask [B T]: 0 at padding
    """
    q, q_back = project(x, p["self"]["query"])
    k, k_back = project(x, p["self"]["key"])
    v, v_back = project(x, p["self"]["value"])
    y, heads_back = multi_head(q, k, v, c.num_attention_heads, mask=mask)
    y, out_back = project(y, p["output"]["dense"])

    def back(dy):
        dy, d_out = out_back(dy)
        dq, dk, dv = heads_back(dy)
        dx_q, d_q = q_back(dq)
        dx_k, d_k = k_back(dk)
        dx_v, d_v = v_back(dv)
        return total(dx_q, dx_k, dx_v), {"query": d_q, "key": d_k, "value": d_v}, d_out

    return y, back


def block(x, p, c, *, mask=None, draw=NO_DRAW):
    """y = norm(x + drop(attention(x)));  z = norm(y + drop(feed_forward(y))): x [B T D] -> z [B T D];
    back gives dx, dp."""
    branch = {"eps": c.layer_norm_eps, "norm_first": False, "rate": c.hidden_dropout_prob}
    y, attention_back = residual(lambda n: self_attention(n, p["attention"], c, mask=mask),
                                 x, p["attention"]["output"]["LayerNorm"], **branch, draw=draw.at("attention"))
    z, feed_back = residual(lambda n: feed_forward(n, p["intermediate"]["dense"], p["output"]["dense"], c.hidden_act),
                            y, p["output"]["LayerNorm"], **branch, draw=draw.at("mlp"))

    def back(dz):
        dy, d_norm2, d_in, d_out = feed_back(dz)
        dx, d_norm1, d_self, d_dense = attention_back(dy)
        return dx, {"attention": {"self": d_self, "output": {"dense": d_dense, "LayerNorm": d_norm1}},
                    "intermediate": {"dense": d_in}, "output": {"dense": d_out, "LayerNorm": d_norm2}}

    return z, back


def hidden(ids, p, c, *, mask=None, types=None, draw=NO_DRAW, recompute=False):
    """The last layer's output: ids [B T] -> x [B T D];  back(dx) gives the gradients of p, except the pooler's.

    p: the parameters below c.ROOT

    mask [B T]: 0 at padding.    types [B T]: 0 in the first text, 1 in the second; None: all 0
    draw, recompute: see llama.logits
    """
    x, embed_back = embed(ids, p["embeddings"], c, types=types, draw=draw)
    x, layers_back = through(x, p["encoder"]["layer"],
                             lambda x, layer, i: block(x, layer, c, mask=mask, draw=draw.at(i)), recompute,
                             c.share_layers)

    def back(dx):
        dx, d_layers, _ = layers_back(dx)
        return {"embeddings": embed_back(dx), "encoder": {"layer": d_layers}}

    return x, back


# The heads

def pool(x, p):
    """tanh(affine(the first token's vector)): x [B T D] -> y [B D];  back gives dx, dp."""
    x, first_back = first(x)
    x, dense_back = project(x, p["dense"])
    y, tanh_back = tanh(x)

    def back(dy):
        dx, d_dense = dense_back(*tanh_back(dy))
        return first_back(dx), {"dense": d_dense}

    return y, back


def transform(x, p, c):
    """norm(activation(affine(x))), the input of the masked_lm head: x [B T D] -> (y [B T D], the scores' bias [V]);
    back(dy, db) gives dx and the head's gradients."""
    p_head = p["cls"]["predictions"]
    y, transform_back = transform_of(x, p_head["transform"]["dense"], p_head["transform"]["LayerNorm"],
                                     c.hidden_act, c.layer_norm_eps)

    def back(dy, db):
        dx, d_dense, d_norm = transform_back(dy)
        return dx, {"cls": {"predictions": {"bias": db, "transform": {"dense": d_dense, "LayerNorm": d_norm}}}}

    return (y, p_head["bias"]), back


def score(x, p, c, *, draw=NO_DRAW):
    """Scores of texts or tokens: x [B T D] -> z [B C], [B T C] or [B T 2];  back gives dx, d_head, d_pooler.

    d_head: {"classifier": ...} or {"qa_outputs": ...}.    d_pooler: {"pooler": ...}, or {} without a pooler
    """
    name = "qa_outputs" if c.head == "span" else "classifier"
    pooled = c.head in POOLED
    if pooled:
        x, pool_back = pool(x, p["bert"]["pooler"])
    if c.head != "span":
        x, drop_back = drop(x, c.hidden_dropout_prob, draw.at("head"))
    z, head_back = project(x, p[name])

    def back(dz):
        dx, d_head = head_back(dz)
        if c.head != "span":
            dx = drop_back(dx)
        dx, d_pooler = pool_back(dx) if pooled else (dx, None)
        return dx, {name: d_head}, {"pooler": d_pooler} if pooled else {}

    return z, back
