"""DistilBERT (Sanh et al., 2019): BERT with half the layers, other names, and neither types nor a pooler.

The heads are those of models/bert.py; "classification" has a layer with ReLU instead of the pooler.

Axes: B batch, T time, D model, F hidden, V vocabulary, C classes.
"""
from dataclasses import dataclass
from typing import ClassVar, Literal

from pyllama.low import total
from pyllama.models import bert
from pyllama.models.config import Dimensions
from pyllama.models.encoder import embed, first, logits, loss, transform_of
from pyllama.models.init import Initializer
from pyllama.models.layers import ACTIVATIONS, drop, feed_forward, multi_head, project, residual, through
from pyllama.models.sharing import SharingConfig
from pyllama.ops import relu
from pyllama.rng import NO_DRAW, generator

__all__ = ["DistilBertConfig", "block", "hidden", "init", "logits", "loss", "score", "tidy", "transform"]


@dataclass(frozen=True)
class DistilBertConfig(SharingConfig):
    """The configuration of a DistilBERT, under the names of Hugging Face's config.json.

    Raises UserError if a field is invalid.
    """

    TYPE = "distilbert"
    HEADS: ClassVar = {"masked_lm": "DistilBertForMaskedLM", "classification": "DistilBertForSequenceClassification",
                       "tagging": "DistilBertForTokenClassification", "span": "DistilBertForQuestionAnswering",
                       "none": "DistilBertModel"}
    ONLY: ClassVar = {"tie_word_embeddings": True, "quantization_config": None}
    ROOT = "distilbert"
    BODY = ("distilbert.",)
    DROPOUTS = ("dropout", "seq_classif_dropout")
    NO_DROPOUT: ClassVar = {"attention_dropout": 0.0, "qa_dropout": 0.0}
    LAYERS = ("n_layers",)
    LEARNS: ClassVar = {"masked_lm": "masked tokens"}
    layer_norm_eps: ClassVar = 1e-12

    vocab_size: int = 30522                     # V
    dim: int = 768                              # D
    n_layers: int = 6                           # L
    n_heads: int = 12                           # H
    hidden_dim: int = 3072                      # F
    activation: str = "gelu"
    dropout: float = 0.1                        # on the embeddings and after the feed-forward
    seq_classif_dropout: float = 0.2            # before the scores of a text's classes
    max_position_embeddings: int = 512          # number of position embeddings
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    head: Literal["masked_lm", "classification", "tagging", "span", "none"] = "masked_lm"
    num_labels: int = 2                         # C

    def __post_init__(self):
        self.check(positive=("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings",
                             "num_labels"), shares=("dropout", "seq_classif_dropout"),
                   multiples=[("dim", "n_heads")], choices={"head": self.HEADS, "activation": ACTIVATIONS})
        super().__post_init__()

    @property
    def hidden_size(self) -> int:
        """D"""
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        """L"""
        return self.n_layers

    @property
    def hidden_dropout_prob(self) -> float:
        """The dropout rate under BERT's name."""
        return self.dropout

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        table = "distilbert.embeddings.word_embeddings.weight"
        return {"vocab_projector.weight": table} if self.head == "masked_lm" else {}

    position_ids = bert.BertConfig.position_ids

    @classmethod
    def small(cls, shape: Dimensions):
        """The configuration of this size."""
        return cls(vocab_size=shape.vocab_size, dim=shape.width, n_layers=shape.depth, n_heads=shape.heads,
                   hidden_dim=shape.feed_forward, dropout=shape.dropout, seq_classif_dropout=shape.dropout,
                   max_position_embeddings=shape.context, head=shape.head)


def init(c: DistilBertConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²); norms one, biases zero."""
    weights, D, F = Initializer(generator(seed, "init"), c.initializer_range, dtype), c.dim, c.hidden_dim

    def layer():
        return {"attention": {name: weights.affine(D, D) for name in ("q_lin", "k_lin", "v_lin", "out_lin")},
                "sa_layer_norm": weights.norm(D),
                "ffn": {"lin1": weights.affine(F, D), "lin2": weights.affine(D, F)},
                "output_layer_norm": weights.norm(D)}

    p = {"distilbert": {"embeddings": {"word_embeddings": weights.table(c.vocab_size, D, c.factor),
                                       "position_embeddings": weights.matrix(c.max_position_embeddings, D),
                                       "LayerNorm": weights.norm(D)},
                        "transformer": {"layer": [layer() for _ in range(c.stored(c.n_layers))]}}}
    if c.head == "masked_lm":
        p |= {"vocab_transform": weights.affine(D, D), "vocab_layer_norm": weights.norm(D),
              "vocab_projector": {"bias": weights.zeros(c.vocab_size)}}
    elif c.head == "classification":
        p |= {"pre_classifier": weights.affine(D, D), "classifier": weights.affine(c.num_labels, D)}
    elif c.head == "tagging":
        p["classifier"] = weights.affine(c.num_labels, D)
    elif c.head == "span":
        p["qa_outputs"] = weights.affine(2, D)
    return p


def tidy(tensors, c):
    """The state dict with the names of init(): a model without a head omits "distilbert."."""
    return {f"distilbert.{name}" if name.startswith(("embeddings.", "transformer.")) else name: a
            for name, a in tensors.items()}


def self_attention(x, p, c, *, mask=None):
    """Bidirectional attention: x [B T D] -> y [B T D];  back gives dx, dp.    mask [B T]: 0 at padding"""
    q, q_back = project(x, p["q_lin"])
    k, k_back = project(x, p["k_lin"])
    v, v_back = project(x, p["v_lin"])
    y, heads_back = multi_head(q, k, v, c.n_heads, mask=mask)
    y, out_back = project(y, p["out_lin"])

    def back(dy):
        dy, d_out = out_back(dy)
        dq, dk, dv = heads_back(dy)
        dx_q, d_q = q_back(dq)
        dx_k, d_k = k_back(dk)
        dx_v, d_v = v_back(dv)
        return total(dx_q, dx_k, dx_v), {"q_lin": d_q, "k_lin": d_k, "v_lin": d_v, "out_lin": d_out}

    return y, back


def block(x, p, c, *, mask=None, draw=NO_DRAW):
    """y = norm(x + attention(x));  z = norm(y + drop(feed_forward(y))): x [B T D] -> z [B T D];  back gives dx, dp."""
    y, attention_back = residual(lambda n: self_attention(n, p["attention"], c, mask=mask), x, p["sa_layer_norm"],
                                 eps=c.layer_norm_eps, norm_first=False, rate=0.0, draw=NO_DRAW)
    z, feed_back = residual(lambda n: feed_forward(n, p["ffn"]["lin1"], p["ffn"]["lin2"], c.activation),
                            y, p["output_layer_norm"], eps=c.layer_norm_eps, norm_first=False, rate=c.dropout,
                            draw=draw.at("mlp"))

    def back(dz):
        dy, d_norm2, d_lin1, d_lin2 = feed_back(dz)
        dx, d_norm1, d_attention = attention_back(dy)
        return dx, {"attention": d_attention, "sa_layer_norm": d_norm1, "ffn": {"lin1": d_lin1, "lin2": d_lin2},
                    "output_layer_norm": d_norm2}

    return z, back


def hidden(ids, p, c, *, mask=None, types=None, draw=NO_DRAW, recompute=False):
    """The last layer's output: ids [B T] -> x [B T D];  back(dx) gives the gradients of p, the parameters below c.ROOT.

    mask [B T]: 0 at padding.    types: ignored.    draw, recompute: see llama.logits
    """
    x, embed_back = embed(ids, p["embeddings"], c, draw=draw)
    x, layers_back = through(x, p["transformer"]["layer"],
                             lambda x, layer, i: block(x, layer, c, mask=mask, draw=draw.at(i)), recompute,
                             c.share_layers)

    def back(dx):
        dx, d_layers, _ = layers_back(dx)
        return {"embeddings": embed_back(dx), "transformer": {"layer": d_layers}}

    return x, back


def transform(x, p, c):
    """norm(activation(affine(x))), the input of the masked_lm head: see models/encoder.py."""
    y, transform_back = transform_of(x, p["vocab_transform"], p["vocab_layer_norm"], c.activation, c.layer_norm_eps)

    def back(dy, db):
        dx, d_dense, d_norm = transform_back(dy)
        return dx, {"vocab_transform": d_dense, "vocab_layer_norm": d_norm, "vocab_projector": {"bias": db}}

    return (y, p["vocab_projector"]["bias"]), back


def classify(x, p, c, *, draw=NO_DRAW):
    """Scores of the classes, out(drop(relu(dense(the first token's vector)))): x [B T D] -> z [B C];  back gives
    dx, d_head."""
    x, first_back = first(x)
    x, dense_back = project(x, p["pre_classifier"])
    x, relu_back = relu(x)
    x, drop_back = drop(x, c.seq_classif_dropout, draw.at("head"))
    z, out_back = project(x, p["classifier"])

    def back(dz):
        dx, d_out = out_back(dz)
        dx, d_dense = dense_back(*relu_back(drop_back(dx)))
        return first_back(dx), {"pre_classifier": d_dense, "classifier": d_out}

    return z, back


def score(x, p, c, *, draw=NO_DRAW):
    """Scores of texts or tokens: x [B T D] -> z [B C], [B T C] or [B T 2];  see models/encoder.py."""
    if c.head != "classification":
        return bert.score(x, p, c, draw=draw)
    z, classify_back = classify(x, p, c, draw=draw)

    def back(dz):
        dx, d_head = classify_back(dz)
        return dx, d_head, {}

    return z, back
