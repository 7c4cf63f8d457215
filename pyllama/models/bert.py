"""BERT (Devlin et al., 2019), an encoder that sees both sides, forward and backward side by side.

    head                what it scores                              labels
    masked_lm           each masked token (see text/corruption.py)  [B T], -100 where nothing is masked
    classification      each text, from its first token             [B]
    tagging             each token                                  [B T], -100 where none is wanted
    span                each token as the first, and as the last    [B 2], the two places, -100 for none
    none                nothing: the vectors alone

Parameters have Hugging Face's names.

Axes: B batch, T time, D model, H heads, F hidden, V vocabulary, C classes.
"""
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.models.layers import (
    ACTIVATIONS,
    class_loss,
    drop,
    feed_forward,
    look_up,
    multi_head,
    normalise,
    pick,
    prediction_loss,
    project,
    residual,
)
from pyllama.models.recompute import recomputed
from pyllama.ops import linear, tanh
from pyllama.rng import generator

POOLED = ("classification", "none")                         # the heads that read the first token through bert.pooler


@dataclass(frozen=True)
class BertConfig(Config):
    """The shape of a BERT, under the names of Hugging Face's config.json."""

    TYPE = "bert"
    HEADS: ClassVar = {"masked_lm": "BertForMaskedLM", "classification": "BertForSequenceClassification",
                       "tagging": "BertForTokenClassification", "span": "BertForQuestionAnswering", "none": "BertModel"}
    ONLY: ClassVar = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
                      "tie_word_embeddings": True, "quantization_config": None}

    vocab_size: int = 30522                     # V
    hidden_size: int = 768                      # D
    num_hidden_layers: int = 12                 # L
    num_attention_heads: int = 12               # H
    intermediate_size: int = 3072               # F
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1            # on the embeddings, on what a layer adds, before a head; in training
    max_position_embeddings: int = 512          # places there are vectors for
    type_vocab_size: int = 2                    # kinds of token: first and second text
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

    @classmethod
    def from_dict(cls, stored: dict) -> "BertConfig":
        """From a config.json.  Unknown keys are kept in `extra`; those that change the mathematics refused."""
        return super().from_dict({"num_labels": len(stored.get("id2label") or range(2)), **stored})


def init(c: BertConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²); norms one, biases zero."""
    rng, D, F = generator(seed, "init"), c.hidden_size, c.intermediate_size

    def matrix(rows, columns):
        return {"weight": (c.initializer_range * rng.standard_normal((rows, columns))).astype(dtype)}

    def affine(out, wide):
        return matrix(out, wide) | {"bias": np.zeros(out, dtype)}

    def norm():
        return {"weight": np.ones(D, dtype), "bias": np.zeros(D, dtype)}

    def layer():
        return {"attention": {"self": {name: affine(D, D) for name in ("query", "key", "value")},
                              "output": {"dense": affine(D, D), "LayerNorm": norm()}},
                "intermediate": {"dense": affine(F, D)}, "output": {"dense": affine(D, F), "LayerNorm": norm()}}

    p = {"bert": {"embeddings": {"word_embeddings": matrix(c.vocab_size, D),
                                 "position_embeddings": matrix(c.max_position_embeddings, D),
                                 "token_type_embeddings": matrix(c.type_vocab_size, D), "LayerNorm": norm()},
                  "encoder": {"layer": [layer() for _ in range(c.num_hidden_layers)]},
                  **({"pooler": {"dense": affine(D, D)}} if c.head in POOLED else {})}}
    heads = {"masked_lm": lambda: {"cls": {"predictions": {
                 "bias": np.zeros(c.vocab_size, dtype), "transform": {"dense": affine(D, D), "LayerNorm": norm()}}}},
             "classification": lambda: {"classifier": affine(c.num_labels, D)},
             "tagging": lambda: {"classifier": affine(c.num_labels, D)},
             "span": lambda: {"qa_outputs": affine(2, D)}, "none": dict}
    return p | heads[c.head]()


def tidy(tensors, c):
    """A state dict as init() names it.  Some writers leave "bert." out, call a norm's parameters gamma and beta, or
    store place numbers, tied copies, and what the head at hand does not read: the next-sentence head, the pooler."""
    needless = ("position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
                "cls.seq_relationship.weight", "cls.seq_relationship.bias",
                *(() if c.head in POOLED else ("pooler.dense.weight", "pooler.dense.bias")))
    tensors = {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): a
               for name, a in tensors.items() if not name.endswith(needless)}
    return {f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name: a
            for name, a in tensors.items()}


# The encoder

def self_attention(x, p, c, mask):
    q, q_back = project(x, p["self"]["query"])
    k, k_back = project(x, p["self"]["key"])
    v, v_back = project(x, p["self"]["value"])
    y, heads_back = multi_head(q, k, v, c.num_attention_heads, mask)
    y, out_back = project(y, p["output"]["dense"])

    def back(dy):
        dy, d_out = out_back(dy)
        dq, dk, dv = heads_back(dy)
        dx_q, d_q = q_back(dq)
        dx_k, d_k = k_back(dk)
        dx_v, d_v = v_back(dv)
        return dx_q + dx_k + dx_v, {"query": d_q, "key": d_k, "value": d_v}, d_out

    return y, back


def layer(x, p, c, mask=None, key=None, row=0):
    """y = norm(x + drop(attention(x)));  z = norm(y + drop(feed_forward(y)))"""
    around = (c.layer_norm_eps, False, c.hidden_dropout_prob)
    y, attention_back = residual(lambda n: self_attention(n, p["attention"], c, mask), x,
                                 p["attention"]["output"]["LayerNorm"], *around, key and (*key, "attention"), row)
    z, feed_back = residual(lambda n: feed_forward(n, p["intermediate"]["dense"], p["output"]["dense"], c.hidden_act),
                            y, p["output"]["LayerNorm"], *around, key and (*key, "mlp"), row)

    def back(dz):
        dy, d_norm2, d_in, d_out = feed_back(dz)
        dx, d_norm1, d_self, d_dense = attention_back(dy)
        return dx, {"attention": {"self": d_self, "output": {"dense": d_dense, "LayerNorm": d_norm1}},
                    "intermediate": {"dense": d_in}, "output": {"dense": d_out, "LayerNorm": d_norm2}}

    return z, back


def embed(ids, types, p, c, key=None, row=0):
    """norm(token + place + type) [B T D] of ids [B T] and types [B T], None for all of type 0"""
    B, T = ids.shape
    if c.max_position_embeddings < T:
        raise UserError(f"{T} tokens are more than the {c.max_position_embeddings} that the model has positions for "
                        f"(max_position_embeddings); shorten the text")
    tokens, token_back = look_up(ids, p["word_embeddings"])
    places, place_back = look_up(np.broadcast_to(np.arange(T, like=ids), (B, T)), p["position_embeddings"])
    kinds, kind_back = look_up(np.zeros_like(ids) if types is None else types, p["token_type_embeddings"])
    x, norm_back = normalise(tokens + places + kinds, p["LayerNorm"], c.layer_norm_eps)
    x, drop_back = drop(x, c.hidden_dropout_prob, key and (*key, "embedding"), row)

    def back(dx):
        dx, d_norm = norm_back(drop_back(dx))
        return {"word_embeddings": token_back(dx), "position_embeddings": place_back(dx),
                "token_type_embeddings": kind_back(dx), "LayerNorm": d_norm}

    return x, back


def hidden(ids, p, c, key=None, row=0, mask=None, types=None, recompute=False):
    """The last layer's output [B T D] for ids [B T].  back(dx) gives the gradients of p["bert"], but the pooler's.

    mask [B T]: 0 marks padding.    types [B T]: which text a token belongs to; None: all to the first
    key, row, recompute: see llama.logits
    """
    run = recomputed(layer) if recompute else layer
    x, embed_back = embed(ids, types, p["embeddings"], c, key, row)
    layer_backs = []
    for i, one in enumerate(p["encoder"]["layer"]):
        x, layer_back = run(x, one, c, mask, key and (*key, i), row)
        layer_backs.append(layer_back)

    def back(dx):
        d_layers = []
        for layer_back in reversed(layer_backs):
            dx, d_layer = layer_back(dx)
            d_layers.append(d_layer)
        return {"embeddings": embed_back(dx), "encoder": {"layer": d_layers[::-1]}}

    return x, back


# The heads

def pool(x, p):
    """tanh of an affine map of the first token's vector, [B D]"""
    x, pick_back = pick(x, np.zeros(len(x), int, like=x))
    x, dense_back = project(x, p["dense"])
    y, tanh_back = tanh(x)

    def back(dy):
        dx, d_dense = dense_back(*tanh_back(dy))
        return pick_back(dx), {"dense": d_dense}

    return y, back


def transform(x, p, c):
    """norm(activation(affine(x))), before the tokens are scored"""
    y, dense_back = project(x, p["dense"])
    y, activation_back = ACTIVATIONS[c.hidden_act](y)
    y, norm_back = normalise(y, p["LayerNorm"], c.layer_norm_eps)

    def back(dy):
        dy, d_norm = norm_back(dy)
        dx, d_dense = dense_back(*activation_back(dy))
        return dx, {"dense": d_dense, "LayerNorm": d_norm}

    return y, back


def score(x, p, c, key=None, row=0):
    """Scores of the head of texts or tokens for x [B T D]: [B C], [B T C], or [B T 2];  back gives dx, dp.

    dp: {"classifier": ...} or {"qa_outputs": ...}, and {"pooler": ...} with it where there is one.
    """
    name = "qa_outputs" if c.head == "span" else "classifier"
    pooled = c.head in POOLED
    if pooled:
        x, pool_back = pool(x, p["bert"]["pooler"])
    if c.head != "span":
        x, drop_back = drop(x, c.hidden_dropout_prob, key and (*key, "head"), row)
    z, head_back = project(x, p[name])

    def back(dz):
        dx, d_head = head_back(dz)
        if c.head != "span":
            dx = drop_back(dx)
        dx, d_pooler = pool_back(dx) if pooled else (dx, None)
        return dx, {name: d_head}, {"pooler": d_pooler} if pooled else {}

    return z, back


def logits(ids, p, c, key=None, row=0, mask=None, types=None, recompute=False):
    """The head's scores: of tokens [B T V], texts [B C], tokens' classes [B T C], or first and last places [B T 2].

    Arguments as in hidden().  A place that is padding has the score -∞ in a span.
    """
    x, hidden_back = hidden(ids, p["bert"], c, key, row, mask, types, recompute)
    if c.head == "masked_lm":
        own = p["cls"]["predictions"]
        x, transform_back = transform(x, own["transform"], c)
        z, table_back = linear(x, p["bert"]["embeddings"]["word_embeddings"]["weight"], own["bias"])

        def back(dz):
            dx, dw, db = table_back(dz)
            dx, d_transform = transform_back(dx)
            return predicted(hidden_back(dx), dw, db, d_transform)
    else:
        z, score_back = score(x, p, c, key, row)
        if c.head == "span" and mask is not None:
            z = np.where(mask[..., None] != 0, z, -np.inf)

        def back(dz):
            dx, d_head, d_pooler = score_back(dz)
            return {"bert": hidden_back(dx) | d_pooler, **d_head}

    return z, back


def predicted(d, dw, db, d_transform):
    """The gradient tree of a masked language model; the tied table is used twice, so its gradients add."""
    words = d["embeddings"]["word_embeddings"]
    words["weight"] = words["weight"] + dw
    return {"bert": d, "cls": {"predictions": {"bias": db, "transform": d_transform}}}


def loss(ids, labels, p, c, key=None, row=0, mask=None, types=None, recompute=False, count=None, **options):
    """Mean cross-entropy of the labels, see the table above; those of a span are two, its first and its last place.

    Arguments as in hidden().    count, label_smoothing, z_loss: see ops/cross_entropy.py
    """
    if c.head == "none":
        raise UserError("a BERT without a head has no loss; choose a head: " + ", ".join(set(c.HEADS) - {"none"}))
    if c.head == "masked_lm":
        x, hidden_back = hidden(ids, p["bert"], c, key, row, mask, types, recompute)
        own = p["cls"]["predictions"]
        x, transform_back = transform(x, own["transform"], c)
        value, loss_back = prediction_loss(x, p["bert"]["embeddings"]["word_embeddings"]["weight"], own["bias"], labels,
                                           count=count, **options)

        def back(dvalue=1.0):
            dx, dw, db = loss_back(dvalue)
            dx, d_transform = transform_back(dx)
            return predicted(hidden_back(dx), dw, db, d_transform)

        return value, back
    z, logits_back = logits(ids, p, c, key, row, mask, types, recompute)
    if c.head == "span":
        if options.get("label_smoothing"):
            raise UserError("label_smoothing would put a share of a span on padding; leave it out")
        z = z.swapaxes(1, 2)
    value, loss_back = class_loss(z.reshape(-1, z.shape[-1]), labels.reshape(-1), count=count, **options)

    def back(dvalue=1.0):
        dz = loss_back(dvalue)[0].reshape(z.shape)
        return logits_back(dz.swapaxes(1, 2) if c.head == "span" else dz)

    return value, back
