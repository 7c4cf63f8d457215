"""GPT-2 (Radford et al., 2019), forward and backward side by side: pre-norm blocks, learned positions, tanh-GELU.

Parameters have Hugging Face's names and its "Conv1D" layout: the matrices of the blocks are stored as (in, out), not
(out, in) as everywhere else.

Axes: B batch, T query time, S key time, D model, H heads, F hidden, V vocabulary.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.models.layers import (
    ACTIVATIONS,
    drop,
    feed_forward,
    look_up,
    multi_head,
    normalise,
    prediction_loss,
    residual,
)
from pyllama.models.recompute import recomputed
from pyllama.ops import linear
from pyllama.rng import generator


@dataclass(frozen=True)
class GPT2Config(Config):
    """The shape of a GPT-2, under the names of Hugging Face's config.json."""

    TYPE = "gpt2"
    ONLY: ClassVar = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                      "add_cross_attention": False, "quantization_config": None}

    vocab_size: int = 50257                     # V
    n_positions: int = 1024                     # places there are position vectors for
    n_embd: int = 768                           # D
    n_layer: int = 12                           # L
    n_head: int = 12                            # H
    n_inner: int | None = None                  # F; None: 4 n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1                    # dropout on what a block adds; in training
    embd_pdrop: float = 0.1                     # dropout on the embeddings; in training
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self):
        self.check(positive=("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
                   shares=("resid_pdrop", "embd_pdrop"), multiples=[("n_embd", "n_head")],
                   choices={"activation_function": ACTIVATIONS})

    @property
    def hidden_size(self) -> int:
        """D"""
        return self.n_embd

    @property
    def num_hidden_layers(self) -> int:
        """L"""
        return self.n_layer

    @property
    def groups(self) -> int:
        """G, as many as there are heads"""
        return self.n_head

    @property
    def head_width(self) -> int:
        """K"""
        return self.n_embd // self.n_head

    @property
    def max_position_embeddings(self) -> int:
        return self.n_positions

    def to_dict(self) -> dict:
        """For config.json: what Hugging Face's GPT2LMHeadModel reads, and our own keys beside it."""
        return {"architectures": ["GPT2LMHeadModel"], **super().to_dict()}


def init(c: GPT2Config, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²), those of the projections that feed the residual stream divided by √(2L)
    (section 2.3); norms one, biases zero."""
    rng = generator(seed, "init")

    def matrix(rows, columns, std=c.initializer_range):
        return (std * rng.standard_normal((rows, columns))).astype(dtype)

    def conv(wide, out, std=c.initializer_range):
        return {"weight": matrix(wide, out, std), "bias": np.zeros(out, dtype)}

    def norm():
        return {"weight": np.ones(c.n_embd, dtype), "bias": np.zeros(c.n_embd, dtype)}

    D, F = c.n_embd, c.n_inner or 4 * c.n_embd
    out_std = c.initializer_range / np.sqrt(2 * c.n_layer)

    def layer():
        return {"ln_1": norm(), "attn": {"c_attn": conv(D, 3 * D), "c_proj": conv(D, D, out_std)},
                "ln_2": norm(), "mlp": {"c_fc": conv(D, F), "c_proj": conv(F, D, out_std)}}

    p = {"transformer": {"wte": {"weight": matrix(c.vocab_size, D)}, "wpe": {"weight": matrix(c.n_positions, D)},
                         "h": [layer() for _ in range(c.n_layer)], "ln_f": norm()}}
    return p if c.tie_word_embeddings else p | {"lm_head": {"weight": matrix(c.vocab_size, D)}}


def tidy(tensors, c):
    """A state dict as init() names it: some writers leave "transformer." out, or store causal masks and tied copies."""
    tensors = {name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": a
               for name, a in tensors.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    return {name: a for name, a in tensors.items() if not (c.tie_word_embeddings and name == "lm_head.weight")}


def convolve(x, p):
    """x w + b: an affine map whose weight is stored as (in, out)"""
    y, linear_back = linear(x, p["weight"].T, p["bias"])

    def back(dy):
        dx, dw, db = linear_back(dy)
        return dx, {"weight": dw.T, "bias": db}

    return y, back


def self_attention(x, p, c, cache=None, mask=None):
    qkv, in_back = convolve(x, p["c_attn"])
    y, attention_back = multi_head(*np.split(qkv, 3, axis=-1), c.n_head, mask, causal=True, cache=cache)
    y, out_back = convolve(y, p["c_proj"])

    def back(dy):
        dy, d_out = out_back(dy)
        dx, d_in = in_back(np.concatenate(attention_back(dy), axis=-1))
        return dx, {"c_attn": d_in, "c_proj": d_out}

    return y, back


def block(x, p, c, key=None, row=0, cache=None, mask=None):
    """y = x + drop(attention(norm(x)));  z = y + drop(feed_forward(norm(y)))"""
    y, attention_back = residual(lambda n: self_attention(n, p["attn"], c, cache, mask), x, p["ln_1"],
                                 c.layer_norm_epsilon, True, c.resid_pdrop, key and (*key, "attention"), row)
    z, feed_back = residual(lambda n: feed_forward(n, *p["mlp"].values(), c.activation_function, convolve), y,
                            p["ln_2"], c.layer_norm_epsilon, True, c.resid_pdrop, key and (*key, "mlp"), row)

    def back(dz):
        dy, d_norm2, *d_mlp = feed_back(dz)
        dx, d_norm1, d_attention = attention_back(dy)
        return dx, {"ln_1": d_norm1, "attn": d_attention, "ln_2": d_norm2,
                    "mlp": dict(zip(p["mlp"], d_mlp, strict=True))}

    return z, back


def positions(ids, c, caches, mask):
    """The place of each token [B T], counted from the first that is not padding."""
    start = caches[0].length if caches else 0
    B, T = ids.shape
    if mask is None:
        places, most = np.broadcast_to(np.arange(start, start + T, like=ids), (B, T)), start + T
    else:
        places = np.maximum(np.cumsum(mask, axis=1)[:, start:] - 1, 0)
        most = int(places.max()) + 1 if places.size else 0
    if most > c.n_positions:
        raise UserError(f"{most} tokens are more than the {c.n_positions} that the model has positions for "
                        f"(n_positions); shorten the text")
    return places


def hidden(ids, p, c, key=None, row=0, caches=None, mask=None, recompute=False):
    """The last layer's normalised output [B T D] for ids [B T].  back(dx) gives the gradients of p["transformer"]."""
    run = recomputed(block) if recompute else block
    tokens, token_back = look_up(ids, p["wte"])
    places, place_back = look_up(positions(ids, c, caches, mask), p["wpe"])
    x, drop_back = drop(tokens + places, c.embd_pdrop, key and (*key, "embedding"), row)
    block_backs = []
    for i, layer in enumerate(p["h"]):
        x, block_back = run(x, layer, c, key and (*key, i), row, caches and caches[i], mask)
        block_backs.append(block_back)
    x, norm_back = normalise(x, p["ln_f"], c.layer_norm_epsilon)

    def back(dx):
        dx, d_norm = norm_back(dx)
        d_layers = []
        for block_back in reversed(block_backs):
            dx, d_layer = block_back(dx)
            d_layers.append(d_layer)
        dx = drop_back(dx)
        return {"wte": token_back(dx), "wpe": place_back(dx), "h": d_layers[::-1], "ln_f": d_norm}

    return x, back


def head(p, c):
    """The output projection: its own, or the embeddings."""
    return p["transformer"]["wte"] if c.tie_word_embeddings else p["lm_head"]


def with_head(d, dw, c):
    """The gradient tree; a tied table is used twice, so its gradients add."""
    if c.tie_word_embeddings:
        return {"transformer": {**d, "wte": {"weight": d["wte"]["weight"] + dw}}}
    return {"transformer": d, "lm_head": {"weight": dw}}


def logits(ids, p, c, key=None, row=0, caches=None, mask=None, recompute=False):
    """Scores of the next token [B T V] after each of ids [B T].  Arguments as in llama.logits; padding on either side.
    """
    x, hidden_back = hidden(ids, p["transformer"], c, key, row, caches, mask, recompute)
    z, head_back = linear(x, head(p, c)["weight"])

    def back(dz):
        dx, dw = head_back(dz)
        return with_head(hidden_back(dx), dw, c)

    return z, back


def next_scores(ids, p, c, caches, mask=None):
    """z [B V] of the token after ids [B T], and of no earlier one; nothing is kept for a backward pass."""
    x, _ = hidden(ids, p["transformer"], c, caches=caches, mask=mask, recompute=True)
    return linear(x[:, -1], head(p, c)["weight"])[0]


def loss(ids, labels, p, c, key=None, row=0, mask=None, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels[:, 1:] from ids[:, :-1]; see llama.loss."""
    mask = None if mask is None else mask[:, :-1]
    x, hidden_back = hidden(ids[:, :-1], p["transformer"], c, key, row, None, mask, recompute)
    value, loss_back = prediction_loss(x, head(p, c)["weight"], None, labels[:, 1:], count=count, **options)

    def back(dvalue=1.0):
        dx, dw, _ = loss_back(dvalue)
        return with_head(hidden_back(dx), dw, c)

    return value, back
