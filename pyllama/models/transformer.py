"""The Transformer (Vaswani et al., 2017), an encoder and a decoder, forward and backward side by side.

    memory = encode(source)                        each token attends to the whole source
    scores = decode(target so far, memory)         each token attends to itself, those before it, and the memory

A decoder layer attends twice, to the target and to the memory: see models/transformer_layers.py.  All decoder layers
use the memory, so its gradients add.  models/bart.py is the same with other positions and norms.  Parameters have the
names of Hugging Face's BART.

Axes: B batch, S source time, T target time, D model, H heads, F hidden, V vocabulary.
"""
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pyllama.errors import UserError, with_article
from pyllama.low import in_float32, total, widened
from pyllama.models.config import Dimensions
from pyllama.models.init import Initializer
from pyllama.models.kv_cache import Cache
from pyllama.models.layers import (
    ACTIVATIONS,
    drop,
    layer_normalize,
    look_up,
    prediction_loss,
    summed,
    through,
    token_scores,
    with_head,
)
from pyllama.models.sharing import SharingConfig, in_turn
from pyllama.models.transformer_layers import decoder_layer, encoder_layer, keys_values
from pyllama.rng import NO_DRAW, generator


@dataclass(frozen=True)
class TransformerConfig(SharingConfig):
    """The configuration of an encoder-decoder, under the names of Hugging Face's translation models.

    Raises UserError if a field is invalid.
    """

    TYPE = "transformer"
    HEADS: ClassVar = {"seq2seq": "TransformerForConditionalGeneration"}
    BODY = ("model.",)
    DROPOUTS = ("dropout",)
    LAYERS = ("encoder_layers", "decoder_layers")

    vocab_size: int = 32000                     # V
    d_model: int = 512                          # D
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8            # H
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048                 # F
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    max_position_embeddings: int = 512          # number of position embeddings, if these are learned
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    position_offset: int = 0                    # row of the first position's embedding; 2 in BART
    norm_first: bool = False                    # True: x + f(norm(x)), and a final norm; False: norm(x + f(x))
    normalize_embedding: bool = False           # a norm on the embeddings
    scale_embedding: bool = True                # multiply the token embeddings by √D
    share_embeddings: bool = True               # one embedding matrix for source and target
    tie_word_embeddings: bool = True            # the target's embeddings are the output matrix too
    final_bias: bool = False                    # add a bias to the scores
    dropout: float = 0.1                        # on the embeddings and on each residual branch
    layer_norm_eps: float = 1e-5
    init_std: float | None = None               # of all weights; None: √(2/(inputs+outputs)), tokens 1/√D
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int = 0             # the decoder's first input

    def __post_init__(self):
        self.check(positive=("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
                             "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim",
                             "max_position_embeddings"), shares=("dropout",),
                   multiples=[("d_model", "encoder_attention_heads"), ("d_model", "decoder_attention_heads")],
                   choices={"positions": ("sinusoidal", "learned"), "activation_function": ACTIVATIONS})
        if not 0 <= self.decoder_start_token_id < self.vocab_size:
            raise UserError(f"decoder_start_token_id is {self.decoder_start_token_id}, outside the vocabulary of "
                            f"{self.vocab_size}; set it to the id of the start token")
        super().__post_init__()

    @property
    def hidden_size(self) -> int:
        """D"""
        return self.d_model

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        table = "model.shared.weight" if self.share_embeddings else "model.decoder.embed_tokens.weight"
        tied = {"lm_head.weight": table} if self.tie_word_embeddings and self.head == "seq2seq" else {}
        sides = ("encoder", "decoder") if self.share_embeddings else ()
        return {f"model.{side}.embed_tokens.weight": table for side in sides} | tied

    @classmethod
    def small(cls, shape: Dimensions, **fields):
        """The configuration of this size, with pre-norm layers, which train without a long warmup; fields override it.

        Raises UserError if the tokenizer has no end token.
        """
        if shape.eos_id is None:
            raise UserError(f"the tokenizer has no end token, which {with_article(cls.TYPE)} needs to end its output; "
                            f"use one with an end token, such as bpe")
        return cls(**{"vocab_size": shape.vocab_size, "d_model": shape.width, "encoder_layers": shape.depth,
                      "decoder_layers": shape.depth, "encoder_attention_heads": shape.heads,
                      "decoder_attention_heads": shape.heads, "encoder_ffn_dim": shape.feed_forward,
                      "decoder_ffn_dim": shape.feed_forward, "max_position_embeddings": shape.context,
                      "norm_first": True, "dropout": shape.dropout, "pad_token_id": shape.pad_id,
                      "bos_token_id": shape.bos_id, "eos_token_id": shape.eos_id,
                      "decoder_start_token_id": shape.eos_id if shape.bos_id is None else shape.bos_id, **fields})

    def to_dict(self) -> dict:
        """The contents of config.json: other programs require a number for init_std, and may force an end token."""
        values = super().to_dict()
        return {"is_encoder_decoder": True, "forced_eos_token_id": None, **values,
                "init_std": values["init_std"] or 0.02}


def init(c: TransformerConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, init_std²), or Glorot & Bengio's (2010) normal distribution if that is None; norms one, biases
    zero."""
    def std(outputs, inputs):
        return c.init_std or math.sqrt(2 / (outputs + inputs))

    weights = Initializer(generator(seed, "init"), std, dtype)
    D, token_std = c.d_model, c.init_std or c.d_model ** -0.5

    def attention():
        return {name: weights.affine(D, D) for name in ("k_proj", "v_proj", "q_proj", "out_proj")}

    def layer(F, cross):
        p = {"self_attn": attention(), "self_attn_layer_norm": weights.norm(D)}
        if cross:
            p |= {"encoder_attn": attention(), "encoder_attn_layer_norm": weights.norm(D)}
        return p | {"fc1": weights.affine(F, D), "fc2": weights.affine(D, F), "final_layer_norm": weights.norm(D)}

    def stack(layers, F, cross):
        p = {} if c.share_embeddings else {"embed_tokens": weights.table(c.vocab_size, D, c.factor, token_std)}
        if c.positions == "learned":
            p["embed_positions"] = weights.matrix(c.max_position_embeddings + c.position_offset, D, token_std)
        p["layers"] = [layer(F, cross) for _ in range(c.stored(layers))]
        if c.normalize_embedding:
            p["layernorm_embedding"] = weights.norm(D)
        if c.norm_first:
            p["layer_norm"] = weights.norm(D)
        return p

    shared = {"shared": weights.table(c.vocab_size, D, c.factor, token_std)} if c.share_embeddings else {}
    p: dict = {"model": {**shared, "encoder": stack(c.encoder_layers, c.encoder_ffn_dim, False),
                         "decoder": stack(c.decoder_layers, c.decoder_ffn_dim, True)}}
    if not c.tie_word_embeddings:
        p["lm_head"] = weights.matrix(c.vocab_size, D)
    if c.final_bias:
        p["final_logits_bias"] = weights.zeros(1, c.vocab_size)
    return p


def tidy(tensors, c):
    """The state dict with the names of init().

    Some programs omit "model.", or the scores' bias if it is zero, or the copies of a shared matrix.
    """
    tensors = {f"model.{name}" if name.startswith(("shared.", "encoder.", "decoder.")) else name: a
               for name, a in tensors.items()}
    if c.final_bias and c.head == "seq2seq":
        tensors = {"final_logits_bias": np.broadcast_to(np.float32(0), (1, c.vocab_size)), **tensors}
    shared = tensors.get("model.shared.weight")
    if shared is None or c.share_embeddings:
        return tensors
    tensors.pop("model.shared.weight")                          # a table of neither side
    return {f"model.{side}.embed_tokens.weight": shared for side in ("encoder", "decoder")} | tensors


# The two stacks

def sinusoids(start, stop, D):
    """Position encodings [T D] for t = start, ..., stop - 1: sin(t / 10000^(2i/D)) at 2i, its cosine at 2i + 1 (section
    3.5)."""
    i = np.arange(D)
    angle = np.arange(start, stop)[:, None] / 10000 ** (i // 2 * 2 / D)
    return np.where(i % 2, np.cos(angle), np.sin(angle))


def embed(ids, table, p, c, *, draw=NO_DRAW, start=0):
    """Token + position: ids [B T], the first at position `start` -> x [B T D];  back gives d_table, dp.

    Raises UserError if learned positions run out.
    """
    (B, T), D = ids.shape, c.d_model
    scale = math.sqrt(D) if c.scale_embedding else 1.0
    tokens, token_back = look_up(ids, table)
    if c.positions == "learned":
        if start + T > c.max_position_embeddings:
            raise UserError(f"the text has {start + T} tokens, but the model has only {c.max_position_embeddings} "
                            f"positions (max_position_embeddings); shorten the text")
        rows = np.arange(T, like=ids) + start + c.position_offset
        positions, position_back = look_up(np.broadcast_to(rows, (B, T)), p["embed_positions"])
    else:
        positions = np.asarray(sinusoids(start, start + T, D), widened(tokens[:0]).real.dtype, like=tokens)
        position_back = None
    x = in_float32(lambda tokens, positions: tokens * scale + positions, tokens, positions)
    if c.normalize_embedding:
        x, norm_back = layer_normalize(x, p["layernorm_embedding"], c.layer_norm_eps)
    x, drop_back = drop(x, c.dropout, draw.at("embedding"))

    def back(dx):
        dx, dp = drop_back(dx), {}
        if c.normalize_embedding:
            dx, dp["layernorm_embedding"] = norm_back(dx)
        if position_back:
            dp["embed_positions"] = position_back(dx)
        return token_back(in_float32(lambda dx: dx * scale, dx)), dp

    return x, back


def table_of(p, side, c):
    """The token embeddings {"weight": [V D]} of one side, "encoder" or "decoder", in p["model"] or its gradient."""
    return p["shared"] if c.share_embeddings else p[side]["embed_tokens"]


def encode(ids, p, c, *, mask=None, draw=NO_DRAW, recompute=False):
    """The encoder: source ids [B S] -> memory [B S D];  back gives d_table, d_encoder.

    mask [B S]: 0 at padding.    draw, recompute: see llama.logits
    """
    draw = draw.at("encoder")

    def run(x, layer, i):
        return encoder_layer(x, layer, c, mask=mask, draw=draw.at(i))

    return side_of("encoder", run, ids, p, c, draw=draw, recompute=recompute)


def decode(ids, memory, p, c, *, mask=None, draw=NO_DRAW, recompute=False, caches=None):
    """The decoder: target ids [B T], memory [B S D] -> x [B T D];  back gives dmemory, d_table, d_decoder.

    mask [B S]: 0 at the source's padding.    draw, recompute: see llama.logits.    caches: see remember()
    """
    draw = draw.at("decoder")

    def run(x, layer, i):
        return decoder_layer(x, memory, layer, c, mask=mask, draw=draw.at(i), cache=caches and caches[i])

    start = caches[0][0].length if caches else 0
    x, side_back = side_of("decoder", run, ids, p, c, draw=draw, recompute=recompute, start=start)

    def back(dx):
        d_table, d_decoder, *dmemories = side_back(dx)
        return total(*dmemories), d_table, d_decoder

    return x, back


def side_of(side, run, ids, p, c, *, draw, recompute, start=0):
    """One side, "encoder" or "decoder": ids [B T] -> x [B T D];  back gives d_table, dp, then the others of the layers.

    run runs a layer: see layers.through
    """
    table, p = table_of(p, side, c), p[side]
    x, embed_back = embed(ids, table, p, c, draw=draw, start=start)
    x, layers_back = through(x, p["layers"], run, recompute, c.share_layers)
    if c.norm_first:
        x, norm_back = layer_normalize(x, p["layer_norm"], c.layer_norm_eps)

    def back(dx):
        dp = {}
        if c.norm_first:
            dx, dp["layer_norm"] = norm_back(dx)
        dx, dp["layers"], others = layers_back(dx)
        d_table, d_embed = embed_back(dx)
        return d_table, dp | d_embed, *others

    return x, back


def remember(memory, p, c, *, room=64):
    """The caches for decoding token by token: for each layer, a Cache of the target's keys and values, and the keys and
    values of the memory [B S D] with their back, which are one for layers that share weights."""
    B, H = len(memory), c.decoder_attention_heads
    of_memory = [keys_values(memory, layer["encoder_attn"]) for layer in p["decoder"]["layers"]]
    return [(Cache(B, H, c.d_model // H, memory, room), kv) for kv in in_turn(of_memory, c.share_layers)]


# The model

def shifted(labels, c):
    """The decoder's input [B T] for labels [B T]: the start token, then all labels but the last.

    Ignored labels become padding.
    """
    start = np.full_like(labels[:, :1], c.decoder_start_token_id)
    ids = np.concatenate([start, labels[:, :-1]], axis=1)
    return np.where(ids < 0, c.pad_token_id or 0, ids)


def hidden(ids, target, p, c, *, mask=None, draw=NO_DRAW, recompute=False):
    """The decoder's output: source ids [B S], target ids [B T] -> x [B T D];  back(dx) gives the gradients of p."""
    memory, encode_back = encode(ids, p, c, mask=mask, draw=draw, recompute=recompute)
    x, decode_back = decode(target, memory, p, c, mask=mask, draw=draw, recompute=recompute)

    def back(dx):
        dmemory, d_target, d_decoder = decode_back(dx)
        d_source, d_encoder = encode_back(dmemory)
        if c.share_embeddings:
            return {"shared": summed(d_source, d_target), "encoder": d_encoder, "decoder": d_decoder}
        return {"encoder": {"embed_tokens": d_source, **d_encoder}, "decoder": {"embed_tokens": d_target, **d_decoder}}

    return x, back


def head(p, c):
    """(table {"weight": [V D]}, b [V] or None) of the scores: see layers.token_scores."""
    table = table_of(p["model"], "decoder", c) if c.tie_word_embeddings else p["lm_head"]
    return table, p["final_logits_bias"][0] if c.final_bias else None


def grads_of(d_model, d_head, db, c):
    """The gradient tree, given that of the output table and db [V] of the scores."""
    grads = with_head({"model": d_model}, table_of(d_model, "decoder", c), d_head, c.tie_word_embeddings)
    return grads | ({"final_logits_bias": db[None]} if c.final_bias else {})


def logits(ids, p, c, *, mask=None, draw=NO_DRAW, recompute=False, labels=None):
    """Scores of each target token, given the source ids [B S] and the labels [B T] before it -> z [B T V];  back gives
    the gradients of p.

    labels=None: scores of the first target token only, [B 1 V].  Other arguments as in loss().
    """
    target = shifted(np.zeros_like(ids[:, :1]) if labels is None else labels, c)
    x, hidden_back = hidden(ids, target, p["model"], c, mask=mask, draw=draw, recompute=recompute)
    z, head_back = token_scores(x, *head(p, c))

    def back(dz):
        dx, d_head, db = head_back(dz)
        return grads_of(hidden_back(dx), d_head, db, c)

    return z, back


def loss(ids, labels, p, c, *, mask=None, draw=NO_DRAW, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels [B T] from source ids [B S] and the previous labels -> nats, a 0-d float.

    A label of -100 is ignored.  mask [B S]: 0 at the source's padding.  draw, recompute: see llama.logits.
    count, label_smoothing, z_loss: see ops/cross_entropy.py.  back(dvalue=1.0) gives the gradients of p.
    """
    x, hidden_back = hidden(ids, shifted(labels, c), p["model"], c, mask=mask, draw=draw, recompute=recompute)
    value, loss_back = prediction_loss(x, *head(p, c), labels, count=count, **options)

    def back(dvalue=1.0):
        dx, d_head, db = loss_back(dvalue)
        return grads_of(hidden_back(dx), d_head, db, c)

    return value, back
