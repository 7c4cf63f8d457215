"""ALBERT (Lan et al., 2020): a BERT whose layers share weights, and whose embeddings are narrower than the layers.

    embeddings [B T E], of tokens, positions and types  ->  an affine map to [B T D]  ->  G groups of layers

Each group has the weights of one layer, which L/G layers in a row use.  The heads are those of models/bert.py; that of
masked_lm scores with the token embeddings [V E].

Axes: B batch, T time, E embeddings, D model, F hidden, V vocabulary, C classes.
"""
from dataclasses import dataclass
from typing import ClassVar, Literal

from pyllama.models import bert
from pyllama.models.config import Config, Dimensions
from pyllama.models.encoder import embed, logits, loss, transform_of
from pyllama.models.init import Initializer
from pyllama.models.layers import ACTIVATIONS, drop, feed_forward, project, residual, through
from pyllama.rng import NO_DRAW, generator

__all__ = ["AlbertConfig", "block", "hidden", "init", "logits", "loss", "score", "tidy", "transform"]


@dataclass(frozen=True)
class AlbertConfig(Config):
    """The configuration of an ALBERT, under the names of Hugging Face's config.json.

    Raises UserError if a field is invalid.
    """

    TYPE = "albert"
    HEADS: ClassVar = {head: name.replace("Bert", "Albert") for head, name in bert.BertConfig.HEADS.items()}
    ALIASES: ClassVar = {"AlbertForPreTraining": "masked_lm"}
    ONLY: ClassVar = {"inner_group_num": 1, "position_embedding_type": "absolute", "tie_word_embeddings": True,
                      "quantization_config": None}
    ROOT = "albert"
    BODY = ("albert.embeddings.", "albert.encoder.")
    DROPOUTS = ("hidden_dropout_prob", "classifier_dropout_prob")
    LEARNS: ClassVar = {"masked_lm": "masked tokens"}

    vocab_size: int = 30000                     # V
    embedding_size: int = 128                   # E
    hidden_size: int = 4096                     # D
    num_hidden_layers: int = 12                 # L
    num_hidden_groups: int = 1                  # G
    num_attention_heads: int = 64               # H
    intermediate_size: int = 16384              # F
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0            # on the embeddings and after the attention
    classifier_dropout_prob: float = 0.1        # before the scores of classes
    max_position_embeddings: int = 512          # number of position embeddings
    type_vocab_size: int = 2                    # token types: first and second text
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    head: Literal["masked_lm", "classification", "tagging", "span", "none"] = "masked_lm"
    num_labels: int = 2                         # C

    def __post_init__(self):
        self.check(positive=("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_hidden_groups",
                             "num_attention_heads", "intermediate_size", "max_position_embeddings", "type_vocab_size",
                             "num_labels"), shares=self.DROPOUTS,
                   multiples=[("hidden_size", "num_attention_heads"), ("num_hidden_layers", "num_hidden_groups")],
                   choices={"head": self.HEADS, "hidden_act": ACTIVATIONS})

    @property
    def share_layers(self) -> int:
        """L/G, the layers in a row that have the weights of one."""
        return self.num_hidden_layers // self.num_hidden_groups

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        return {"predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
                "predictions.decoder.bias": "predictions.bias"} if self.head == "masked_lm" else {}

    position_ids = bert.BertConfig.position_ids
    spares = bert.BertConfig.spares

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this size; E is half of the width, and at most ALBERT's own."""
        return cls(vocab_size=shape.vocab_size, embedding_size=min(cls.embedding_size, (shape.width + 1) // 2),
                   hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
                   intermediate_size=shape.feed_forward, hidden_dropout_prob=shape.dropout,
                   classifier_dropout_prob=shape.dropout, max_position_embeddings=shape.context, head=shape.head)


tidy = bert.tidy


def init(c: AlbertConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²), of the affine map from N(0, 1/E), which keeps the size of the embeddings;
    norms one, biases zero."""
    weights = Initializer(generator(seed, "init"), c.initializer_range, dtype)
    E, D, F = c.embedding_size, c.hidden_size, c.intermediate_size

    def layer():
        return {"full_layer_layer_norm": weights.norm(D),
                "attention": {name: weights.affine(D, D) for name in ("query", "key", "value", "dense")} |
                             {"LayerNorm": weights.norm(D)},
                "ffn": weights.affine(F, D), "ffn_output": weights.affine(D, F)}

    body = {"embeddings": {"word_embeddings": weights.matrix(c.vocab_size, E),
                           "position_embeddings": weights.matrix(c.max_position_embeddings, E),
                           "token_type_embeddings": weights.matrix(c.type_vocab_size, E),
                           "LayerNorm": weights.norm(E)},
            "encoder": {"embedding_hidden_mapping_in": weights.affine(D, E, E ** -0.5),
                        "albert_layer_groups": [{"albert_layers": [layer()]} for _ in range(c.num_hidden_groups)]}}
    if c.head in bert.POOLED:
        body["pooler"] = weights.affine(D, D)
    p = {"albert": body}
    if c.head == "masked_lm":
        p["predictions"] = {"bias": weights.zeros(c.vocab_size), "LayerNorm": weights.norm(E),
                            "dense": weights.affine(E, D)}
    elif c.head in ("classification", "tagging"):
        p["classifier"] = weights.affine(c.num_labels, D)
    elif c.head == "span":
        p["qa_outputs"] = weights.affine(2, D)
    return p


def block(x, p, c, *, mask=None, draw=NO_DRAW):
    """y = norm(x + drop(attention(x)));  z = norm(y + feed_forward(y)): x [B T D] -> z [B T D];  back gives dx, dp."""
    attention = p["attention"]
    branch = {"eps": c.layer_norm_eps, "norm_first": False}

    def attend(n):                                      # BERT has the same matrices, one level deeper
        return bert.self_attention(n, {"self": attention, "output": attention}, c, mask=mask)

    y, attention_back = residual(attend, x, attention["LayerNorm"], **branch, rate=c.hidden_dropout_prob,
                                 draw=draw.at("attention"))
    z, feed_back = residual(lambda n: feed_forward(n, p["ffn"], p["ffn_output"], c.hidden_act), y,
                            p["full_layer_layer_norm"], **branch, rate=0.0, draw=NO_DRAW)

    def back(dz):
        dy, d_norm2, d_ffn, d_output = feed_back(dz)
        dx, d_norm1, d_self, d_dense = attention_back(dy)
        return dx, {"full_layer_layer_norm": d_norm2, "attention": d_self | {"dense": d_dense, "LayerNorm": d_norm1},
                    "ffn": d_ffn, "ffn_output": d_output}

    return z, back


def hidden(ids, p, c, *, mask=None, types=None, draw=NO_DRAW, recompute=False):
    """The last layer's output: ids [B T] -> x [B T D];  back(dx) gives the gradients of p, except the pooler's.

    p: the parameters below c.ROOT.    The other arguments are those of bert.hidden.
    """
    encoder = p["encoder"]
    layers = [group["albert_layers"][0] for group in encoder["albert_layer_groups"]]
    x, embed_back = embed(ids, p["embeddings"], c, types=types, draw=draw)
    x, map_back = project(x, encoder["embedding_hidden_mapping_in"])
    x, layers_back = through(x, layers, lambda x, layer, i: block(x, layer, c, mask=mask, draw=draw.at(i)), recompute,
                             c.share_layers)

    def back(dx):
        dx, d_layers, _ = layers_back(dx)
        dx, d_map = map_back(dx)
        d_groups = [{"albert_layers": [d_layer]} for d_layer in d_layers]
        return {"embeddings": embed_back(dx),
                "encoder": {"embedding_hidden_mapping_in": d_map, "albert_layer_groups": d_groups}}

    return x, back


def transform(x, p, c):
    """norm(activation(affine(x))), the input [B T E] of the masked_lm head: see models/encoder.py."""
    head = p["predictions"]
    y, transform_back = transform_of(x, head["dense"], head["LayerNorm"], c.hidden_act, c.layer_norm_eps)

    def back(dy, db):
        dx, d_dense, d_norm = transform_back(dy)
        return dx, {"predictions": {"bias": db, "LayerNorm": d_norm, "dense": d_dense}}

    return (y, head["bias"]), back


def score(x, p, c, *, draw=NO_DRAW):
    """Scores of texts or tokens: x [B T D] -> z [B C], [B T C] or [B T 2];  see models/encoder.py."""
    if c.head == "span":
        return bert.score(x, p, c, draw=draw)
    pooled = c.head == "classification"
    if pooled:
        x, pool_back = bert.pool(x, {"dense": p["albert"]["pooler"]})
    x, drop_back = drop(x, c.classifier_dropout_prob, draw.at("head"))
    z, out_back = project(x, p["classifier"])

    def back(dz):
        dx, d_out = out_back(dz)
        dx = drop_back(dx)
        dx, d_pooler = pool_back(dx) if pooled else (dx, None)
        return dx, {"classifier": d_out}, {"pooler": d_pooler["dense"]} if pooled else {}

    return z, back
