"""The Transformer (Vaswani et al., 2017), an encoder and a decoder, forward and backward side by side.

    memory = encode(source)                        each token sees all of the source
    scores = decode(target so far, memory)         each token sees those before it, and the memory

A decoder layer attends twice, to itself and to the memory.  The memory serves all of them: its gradients add.
models/bart.py is the same with other positions and norms.  Parameters have the names of Hugging Face's BART.

Axes: B batch, S source time, T target time, D model, H heads, F hidden, V vocabulary.
"""
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.models.kv_cache import Cache
from pyllama.models.layers import (
    ACTIVATIONS,
    drop,
    feed_forward,
    look_up,
    multi_head,
    normalise,
    prediction_loss,
    project,
    residual,
)
from pyllama.models.recompute import recomputed
from pyllama.rng import generator


@dataclass(frozen=True)
class TransformerConfig(Config):
    """The shape of an encoder-decoder, under the names of Hugging Face's translation models."""

    TYPE = "transformer"

    vocab_size: int = 32000                     # V
    d_model: int = 512                          # D
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8            # H
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048                 # F
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    max_position_embeddings: int = 512          # with learned positions: places there are vectors for
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    position_offset: int = 0                    # row of the first place's vector; BART's is 2
    norm_first: bool = False                    # True: x + f(norm(x)), and a norm at the end; False: norm(x + f(x))
    normalize_embedding: bool = False           # a norm on the embeddings
    scale_embedding: bool = True                # multiply the tokens' vectors by √D
    share_embeddings: bool = True               # one table for source and target; False: one vocabulary, two tables
    tie_word_embeddings: bool = True            # the target's table predicts as well
    final_bias: bool = False                    # a bias on the scores
    dropout: float = 0.1                        # on the embeddings and on what a layer adds; in training
    layer_norm_eps: float = 1e-5
    init_std: float | None = None               # of all weights; None: √(2 / (in + out)), and 1/√D for tokens
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int = 0             # what the decoder reads before the first target token

    def __post_init__(self):
        self.check(positive=("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
                             "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim",
                             "max_position_embeddings"), shares=("dropout",),
                   multiples=[("d_model", "encoder_attention_heads"), ("d_model", "decoder_attention_heads")],
                   choices={"positions": ("sinusoidal", "learned"), "activation_function": ACTIVATIONS})
        if not 0 <= self.decoder_start_token_id < self.vocab_size:
            raise UserError(f"decoder_start_token_id is {self.decoder_start_token_id}, outside the vocabulary of "
                            f"{self.vocab_size}; give the id that starts a target")

    @property
    def hidden_size(self) -> int:
        """D"""
        return self.d_model

    def to_dict(self) -> dict:
        """For config.json."""
        return {"is_encoder_decoder": True, **super().to_dict()}


def init(c: TransformerConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from a normal distribution (Glorot & Bengio, 2010, where init_std is None); norms one, biases zero."""
    rng = generator(seed, "init")
    D = c.d_model

    def matrix(out, wide, std=None):
        std = c.init_std or std or math.sqrt(2 / (out + wide))
        return (std * rng.standard_normal((out, wide))).astype(dtype)

    def affine(out, wide):
        return {"weight": matrix(out, wide), "bias": np.zeros(out, dtype)}

    def norm():
        return {"weight": np.ones(D, dtype), "bias": np.zeros(D, dtype)}

    def attention():
        return {name: affine(D, D) for name in ("k_proj", "v_proj", "q_proj", "out_proj")}

    def tokens():
        return {"weight": matrix(c.vocab_size, D, D ** -0.5)}

    def layer(F, cross):
        return {"self_attn": attention(), "self_attn_layer_norm": norm(),
                **({"encoder_attn": attention(), "encoder_attn_layer_norm": norm()} if cross else {}),
                "fc1": affine(F, D), "fc2": affine(D, F), "final_layer_norm": norm()}

    def stack(layers, F, cross):
        rows = c.max_position_embeddings + c.position_offset
        return {**({} if c.share_embeddings else {"embed_tokens": tokens()}),
                **({"embed_positions": {"weight": matrix(rows, D, D ** -0.5)}} if c.positions == "learned" else {}),
                "layers": [layer(F, cross) for _ in range(layers)],
                **({"layernorm_embedding": norm()} if c.normalize_embedding else {}),
                **({"layer_norm": norm()} if c.norm_first else {})}

    return {"model": {**({"shared": tokens()} if c.share_embeddings else {}),
                      "encoder": stack(c.encoder_layers, c.encoder_ffn_dim, False),
                      "decoder": stack(c.decoder_layers, c.decoder_ffn_dim, True)},
            **({} if c.tie_word_embeddings else {"lm_head": {"weight": matrix(c.vocab_size, D)}}),
            **({"final_logits_bias": np.zeros((1, c.vocab_size), dtype)} if c.final_bias else {})}


def tidy(tensors, c):
    """A state dict as init() names it: some writers leave "model." out, or the scores' bias where it is zero, or store
    copies of tables that are shared."""
    tensors = {f"model.{name}" if name.startswith(("shared.", "encoder.", "decoder.")) else name: a
               for name, a in tensors.items()}
    if c.final_bias and getattr(c, "head", "lm") == "lm":
        tensors = {"final_logits_bias": np.zeros((1, c.vocab_size), np.float32), **tensors}
    copies = {f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder") if c.share_embeddings}
    copies |= {"lm_head.weight"} if c.tie_word_embeddings else set()
    return {name: a for name, a in tensors.items() if name not in copies}


# Layers

def keys_values(memory, p):
    """(k, v) [B S D] of memory [B S D];  back((dk, dv)) gives dmemory, dp."""
    k, k_back = project(memory, p["k_proj"])
    v, v_back = project(memory, p["v_proj"])

    def back(dkv):
        (dm_k, d_k), (dm_v, d_v) = k_back(dkv[0]), v_back(dkv[1])
        return dm_k + dm_v, {"k_proj": d_k, "v_proj": d_v}

    return (k, v), back


def attend(x, kv, p, H, **options):
    """Multi-head attention of x [B T D] to the keys and values;  back gives dx, dkv, dp."""
    q, q_back = project(x, p["q_proj"])
    y, heads_back = multi_head(q, *kv, H, **options)
    y, out_back = project(y, p["out_proj"])

    def back(dy):
        dy, d_out = out_back(dy)
        dq, *dkv = heads_back(dy)
        dx, d_q = q_back(dq)
        return dx, dkv, {"q_proj": d_q, "out_proj": d_out}

    return y, back


def attend_to_itself(x, p, H, **options):
    kv, kv_back = keys_values(x, p)
    y, attend_back = attend(x, kv, p, H, **options)

    def back(dy):
        dx, dkv, dp = attend_back(dy)
        dx_kv, dp_kv = kv_back(dkv)
        return dx + dx_kv, dp | dp_kv

    return y, back


def attend_to_memory(x, memory, p, H, known=None, **options):
    """known: what keys_values gave for this memory before, if it did"""
    kv, kv_back = known or keys_values(memory, p)
    y, attend_back = attend(x, kv, p, H, **options)

    def back(dy):
        dx, dkv, dp = attend_back(dy)
        dmemory, dp_kv = kv_back(dkv)
        return dx, dmemory, dp | dp_kv

    return y, back


def encoder_layer(x, p, c, mask=None, key=None, row=0):
    """Attention to the whole source, then feed-forward; each as residual() has it."""
    around = (c.layer_norm_eps, c.norm_first, c.dropout)
    y, attention_back = residual(lambda n: attend_to_itself(n, p["self_attn"], c.encoder_attention_heads, mask=mask),
                                 x, p["self_attn_layer_norm"], *around, key and (*key, "attention"), row)
    z, feed_back = residual(lambda n: feed_forward(n, p["fc1"], p["fc2"], c.activation_function), y,
                            p["final_layer_norm"], *around, key and (*key, "mlp"), row)

    def back(dz):
        dy, d_norm2, d_fc1, d_fc2 = feed_back(dz)
        dx, d_norm1, d_attention = attention_back(dy)
        return dx, {"self_attn": d_attention, "self_attn_layer_norm": d_norm1, "fc1": d_fc1, "fc2": d_fc2,
                    "final_layer_norm": d_norm2}

    return z, back


def decoder_layer(x, memory, p, c, mask=None, key=None, row=0, cache=None):
    """Attention to the target so far, attention to the memory, feed-forward;  back gives dx, dmemory, dp."""
    around, H = (c.layer_norm_eps, c.norm_first, c.dropout), c.decoder_attention_heads
    own, known = cache or (None, None)
    y, own_back = residual(lambda n: attend_to_itself(n, p["self_attn"], H, causal=True, cache=own), x,
                           p["self_attn_layer_norm"], *around, key and (*key, "attention"), row)
    z, cross_back = residual(lambda n: attend_to_memory(n, memory, p["encoder_attn"], H, known, mask=mask), y,
                             p["encoder_attn_layer_norm"], *around, key and (*key, "memory"), row)
    u, feed_back = residual(lambda n: feed_forward(n, p["fc1"], p["fc2"], c.activation_function), z,
                            p["final_layer_norm"], *around, key and (*key, "mlp"), row)

    def back(du):
        dz, d_norm3, d_fc1, d_fc2 = feed_back(du)
        dy, d_norm2, dmemory, d_cross = cross_back(dz)
        dx, d_norm1, d_own = own_back(dy)
        return dx, dmemory, {"self_attn": d_own, "self_attn_layer_norm": d_norm1, "encoder_attn": d_cross,
                             "encoder_attn_layer_norm": d_norm2, "fc1": d_fc1, "fc2": d_fc2,
                             "final_layer_norm": d_norm3}

    return u, back


# The two stacks

def sinusoids(places, D):
    """[T D]: sin(t / 10000^(2i/D)) at 2i, its cosine at 2i + 1 (section 3.5)."""
    i = np.arange(D)
    angle = np.arange(*places)[:, None] / 10000 ** (i // 2 * 2 / D)
    return np.where(i % 2, np.cos(angle), np.sin(angle))


def embed(ids, table, p, c, key=None, row=0, start=0):
    """Token and place [B T D] of ids [B T], the first being number `start`;  back gives the tables' gradients."""
    (B, T), D = ids.shape, c.d_model
    scale = math.sqrt(D) if c.scale_embedding else 1.0
    tokens, token_back = look_up(ids, table)
    if c.positions == "learned":
        if start + T > c.max_position_embeddings:
            raise UserError(f"{start + T} tokens are more than the {c.max_position_embeddings} that the model has "
                            f"positions for (max_position_embeddings); shorten the text")
        rows = np.arange(T, like=ids) + start + c.position_offset
        places, place_back = look_up(np.broadcast_to(rows, (B, T)), p["embed_positions"])
    else:
        places, place_back = np.asarray(sinusoids((start, start + T), D), tokens.real.dtype, like=tokens), None
    x = tokens * scale + places
    if c.normalize_embedding:
        x, norm_back = normalise(x, p["layernorm_embedding"], c.layer_norm_eps)
    x, drop_back = drop(x, c.dropout, key and (*key, "embedding"), row)

    def back(dx):
        dx, dp = drop_back(dx), {}
        if c.normalize_embedding:
            dx, dp["layernorm_embedding"] = norm_back(dx)
        if place_back:
            dp["embed_positions"] = place_back(dx)
        return token_back(dx * scale), dp

    return x, back


def table_of(p, side, c):
    return p["shared"] if c.share_embeddings else p[side]["embed_tokens"]


def encode(ids, p, c, mask=None, key=None, row=0, recompute=False):
    """The memory [B S D] of source ids [B S], mask [B S] being 0 at padding;  back gives d_table, d_encoder."""
    key, run = key and (*key, "encoder"), recomputed(encoder_layer) if recompute else encoder_layer
    p, table = p["encoder"], table_of(p, "encoder", c)
    x, embed_back = embed(ids, table, p, c, key, row)
    x, stack_back = through(x, p, c, lambda x, layer, i: run(x, layer, c, mask, key and (*key, i), row))

    def back(dx):
        dx, dp, _ = stack_back(dx)
        d_table, d_embed = embed_back(dx)
        return d_table, {**dp, **d_embed}

    return x, back


def decode(ids, memory, p, c, mask=None, key=None, row=0, caches=None, recompute=False):
    """The decoder's output [B T D] for target ids [B T];  back gives dmemory, d_table, d_decoder.

    mask [B S]: 0 at the source's padding.    caches: see remember()
    """
    key, run = key and (*key, "decoder"), recomputed(decoder_layer) if recompute else decoder_layer
    p, table = p["decoder"], table_of(p, "decoder", c)
    x, embed_back = embed(ids, table, p, c, key, row, caches[0][0].length if caches else 0)
    x, stack_back = through(x, p, c, lambda x, layer, i: run(x, memory, layer, c, mask, key and (*key, i), row,
                                                             caches and caches[i]))

    def back(dx):
        dx, dp, dmemories = stack_back(dx)
        d_table, d_embed = embed_back(dx)
        return sum(dmemories), d_table, {**dp, **d_embed}

    return x, back


def through(x, p, c, run):
    """Layer after layer, then the norm of norm_first;  back gives dx, dp, and what else the layers' backs gave."""
    layer_backs = []
    for i, layer in enumerate(p["layers"]):
        x, layer_back = run(x, layer, i)
        layer_backs.append(layer_back)
    if c.norm_first:
        x, norm_back = normalise(x, p["layer_norm"], c.layer_norm_eps)

    def back(dx):
        dp, d_layers, others = {}, [], []
        if c.norm_first:
            dx, dp["layer_norm"] = norm_back(dx)
        for layer_back in reversed(layer_backs):
            dx, *other, d_layer = layer_back(dx)
            d_layers.append(d_layer)
            others += other
        return dx, {**dp, "layers": d_layers[::-1]}, others

    return x, back


def remember(memory, p, c, room=64):
    """What decoding token by token keeps of each layer: a cache of its own keys and values, and those of the memory."""
    B, H = len(memory), c.decoder_attention_heads
    return [(Cache(B, H, c.d_model // H, memory, room), keys_values(memory, layer["encoder_attn"]))
            for layer in p["decoder"]["layers"]]


# The whole

def shifted(labels, c):
    """What the decoder reads, [B T]: the start token, then each label but the last; any token where none counts."""
    start = np.full_like(labels[:, :1], c.decoder_start_token_id)
    read = np.concatenate([start, labels[:, :-1]], axis=1)
    return np.where(read < 0, c.pad_token_id or 0, read)


def hidden(ids, target, p, c, mask=None, key=None, row=0, recompute=False):
    """The decoder's output [B T D] for source ids [B S] and what it reads, target [B T];  back gives d_model."""
    memory, encode_back = encode(ids, p, c, mask, key, row, recompute)
    x, decode_back = decode(target, memory, p, c, mask, key, row, None, recompute)

    def back(dx):
        dmemory, d_target, d_decoder = decode_back(dx)
        d_source, d_encoder = encode_back(dmemory)
        if c.share_embeddings:
            return {"shared": {"weight": d_source["weight"] + d_target["weight"]},
                    "encoder": d_encoder, "decoder": d_decoder}
        return {"encoder": {"embed_tokens": d_source, **d_encoder}, "decoder": {"embed_tokens": d_target, **d_decoder}}

    return x, back


def head(p, c):
    """w [V D] and b [V] or None of the scores x wᵀ + b."""
    table = table_of(p["model"], "decoder", c) if c.tie_word_embeddings else p["lm_head"]
    return table["weight"], p["final_logits_bias"][0] if c.final_bias else None


def with_head(d, dw, db, c):
    """The gradient tree; a tied table is used again, so its gradients add."""
    grads = {"model": d}
    if c.tie_word_embeddings:
        table = table_of(d, "decoder", c)
        table["weight"] = table["weight"] + dw
    else:
        grads["lm_head"] = {"weight": dw}
    return grads | ({"final_logits_bias": db[None]} if c.final_bias else {})


def loss(ids, labels, p, c, key=None, row=0, mask=None, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels [B T] from the source ids [B S] and the labels before each.

    A label of -100 does not count.  mask [B S]: 0 at the source's padding.  key and row: see llama.logits.
    count, label_smoothing, z_loss: see ops/cross_entropy.py.
    """
    x, hidden_back = hidden(ids, shifted(labels, c), p["model"], c, mask, key, row, recompute)
    value, loss_back = prediction_loss(x, *head(p, c), labels, count=count, **options)

    def back(dvalue=1.0):
        dx, dw, db = loss_back(dvalue)
        return with_head(hidden_back(dx), dw, db, c)

    return value, back
