"""BART (Lewis et al., 2020): the Transformer with learned positions, normalized embeddings and exact GELU.  It learns
to reconstruct corrupted text (see text/corruption.py).  mBART (Liu et al., 2020) is BART with pre-norm layers.

    head=seq2seq           scores of the target's tokens
    head=classification    scores of classes: the decoder reads the same text as the encoder, and its output at the last
                           end token passes through two linear maps with a tanh between them

Axes: B batch, S source time, T target time, D model, V vocabulary, C classes.
"""
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from pyllama.errors import UserError
from pyllama.models import transformer
from pyllama.models.config import Config, Dimensions
from pyllama.models.init import Initializer
from pyllama.models.layers import class_loss, feed_forward, last_positions, pick
from pyllama.models.transformer import TransformerConfig
from pyllama.rng import NO_DRAW, generator


@dataclass(frozen=True)
class BartConfig(TransformerConfig):
    """The configuration of a BART, under the names of Hugging Face's config.json.

    Raises UserError if a field is invalid.
    """

    TYPE = "bart"
    HEADS: ClassVar = {"seq2seq": "BartForConditionalGeneration", "classification": "BartForSequenceClassification"}
    ALIASES: ClassVar = {"BartModel": "seq2seq"}
    LEARNS: ClassVar = {"seq2seq": "corrupted text"}

    vocab_size: int = 50265                     # V
    d_model: int = 1024                         # D
    encoder_layers: int = 12
    decoder_layers: int = 12
    encoder_attention_heads: int = 16
    decoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_ffn_dim: int = 4096
    activation_function: str = "gelu"
    max_position_embeddings: int = 1024
    positions: Literal["sinusoidal", "learned"] = "learned"
    position_offset: int = 2                    # rows 0 and 1 of the position embeddings are unused
    normalize_embedding: bool = True
    scale_embedding: bool = False
    final_bias: bool = True
    init_std: float | None = 0.02
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 2
    head: Literal["seq2seq", "classification"] = "seq2seq"
    num_labels: int = 3                         # C

    def __post_init__(self):
        super().__post_init__()
        self.check(positive=("num_labels",), choices={"head": self.HEADS})
        if self.head == "classification" and not isinstance(self.eos_token_id, int):
            raise UserError("a BART classifies from its output at the end token; set eos_token_id to an integer")

    @classmethod
    def from_dict(cls, stored: dict) -> "BartConfig":
        """The configuration from a config.json; see Config.from_dict."""
        written_by_0_1_0 = stored.get("head") == "lm"
        tied = stored.get("tie_word_embeddings", True)          # in transformers, of all tables
        return super().from_dict({"share_embeddings": tied, **stored,
                                  **({"head": "seq2seq"} if written_by_0_1_0 else {})})

    @classmethod
    def small(cls, shape: Dimensions, **fields):
        """The configuration of an mBART of this size: its pre-norm layers train without a long warmup.

        The decoder starts with the end token, as transformers starts it for a text that ends.
        """
        return super(BartConfig, MBartConfig).small(shape, **{
            "head": shape.head, "init_std": None, "scale_embedding": True, "decoder_start_token_id": shape.eos_id,
            **fields})

    def same_in_transformers(self) -> type[Config] | None:
        """BART or mBART, if the rest is theirs; see Config.same_in_transformers."""
        same = MBartConfig if self.norm_first else BartConfig
        theirs = (self.positions, self.position_offset, self.normalize_embedding, self.final_bias)
        if theirs != ("learned", 2, True, True) or self.share_embeddings != self.tie_word_embeddings:
            return None
        return same if self.head == "seq2seq" or isinstance(self, MBartConfig) == self.norm_first else None


@dataclass(frozen=True)
class MBartConfig(BartConfig):
    """The configuration of an mBART (Liu et al., 2020): a BART with pre-norm layers.

    To classify, its decoder starts with the text's last token, not with decoder_start_token_id.
    """

    TYPE = "mbart"
    HEADS: ClassVar = {"seq2seq": "MBartForConditionalGeneration", "classification": "MBartForSequenceClassification"}
    ALIASES: ClassVar = {"MBartModel": "seq2seq"}

    norm_first: bool = True


def init(c: BartConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, init_std²); norms one, biases zero."""
    if c.head == "seq2seq":
        return transformer.init(c, seed, dtype)
    p = transformer.init(replace(c, tie_word_embeddings=True, final_bias=False), seed, dtype)     # no scores of tokens
    D, C = c.d_model, c.num_labels
    weights = Initializer(generator(seed, "init", "head"), c.init_std or D ** -0.5, dtype)
    return {"model": p["model"], "classification_head": {"dense": weights.affine(D, D),
                                                         "out_proj": weights.affine(C, D)}}


tidy = transformer.tidy


def classify(x, p):
    """Scores of the classes, out(tanh(dense(x))): x [B D] -> z [B C];  back gives dx, dp."""
    z, network_back = feed_forward(x, p["dense"], p["out_proj"], "tanh")

    def back(dz):
        dx, d_dense, d_out = network_back(dz)
        return dx, {"dense": d_dense, "out_proj": d_out}

    return z, back


def end_positions(ids, c, *, mask=None):
    """The position [B] of each row's last end token that is not padding: ids, mask [B S].

    Raises UserError if a row has none.
    """
    ends = (ids == c.eos_token_id) & (True if mask is None else mask != 0)
    if not ends.any(axis=1).all():
        raise UserError(f"row {int(np.argmin(ends.any(axis=1)))} has no end token (id {c.eos_token_id}), which a BART "
                        f"needs to classify; add it to each text")
    return ids.shape[1] - 1 - ends[:, ::-1].argmax(axis=1)


def decoder_input(ids, c, *, mask=None):
    """The decoder's input for a text to classify, the text shifted by one: ids [B S] -> target [B S]."""
    target = transformer.shifted(ids, c)
    if isinstance(c, MBartConfig):
        target[:, 0] = ids[np.arange(len(ids), like=ids), last_positions(ids, mask)]
    return target


def logits(ids, p, c, *, mask=None, draw=NO_DRAW, recompute=False, labels=None):
    """transformer.logits; with a classification head, scores of the classes: ids [B S] -> z [B C]."""
    if c.head == "seq2seq":
        return transformer.logits(ids, p, c, mask=mask, draw=draw, recompute=recompute, labels=labels)
    x, hidden_back = transformer.hidden(ids, decoder_input(ids, c, mask=mask), p["model"], c, mask=mask, draw=draw,
                                        recompute=recompute)
    x, pick_back = pick(x, end_positions(ids, c, mask=mask))
    z, classify_back = classify(x, p["classification_head"])

    def back(dz):
        dx, d_head = classify_back(dz)
        return {"model": hidden_back(pick_back(dx)), "classification_head": d_head}

    return z, back


def loss(ids, labels, p, c, *, mask=None, draw=NO_DRAW, recompute=False, count=None, **options):
    """transformer.loss; with a classification head, the mean cross-entropy in nats of labels [B] of texts ids [B S]."""
    if c.head == "seq2seq":
        return transformer.loss(ids, labels, p, c, mask=mask, draw=draw, recompute=recompute, count=count, **options)
    z, logits_back = logits(ids, p, c, mask=mask, draw=draw, recompute=recompute)
    value, loss_back = class_loss(z, labels, count=count, **options)
    return value, lambda dvalue=1.0: logits_back(loss_back(dvalue)[0])
