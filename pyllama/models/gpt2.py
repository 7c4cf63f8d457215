"""GPT-2 (Radford et al., 2019), forward and backward side by side: pre-norm blocks, learned positions, tanh-GELU.

Parameters have Hugging Face's names and its "Conv1D" layout: the matrices of the blocks are stored as (inputs,
outputs), not (outputs, inputs) as everywhere else.

Axes: B batch, T query time, S key time, D model, H heads, F hidden, V vocabulary.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pyllama.errors import UserError
from pyllama.low import total
from pyllama.models.adapters import adapted, is_special
from pyllama.models.config import Dimensions
from pyllama.models.init import Initializer
from pyllama.models.layers import (
    ACTIVATIONS,
    drop,
    feed_forward,
    layer_normalize,
    look_up,
    multi_head,
    prediction_loss,
    residual,
    through,
    token_scores,
    with_head,
)
from pyllama.models.sharing import SharingConfig
from pyllama.ops import linear
from pyllama.rng import NO_DRAW, generator


@dataclass(frozen=True)
class GPT2Config(SharingConfig):
    """The configuration of a GPT-2, under the names of Hugging Face's config.json.

    Raises UserError if a field is invalid.
    """

    TYPE = "gpt2"
    HEADS: ClassVar = {"lm": "GPT2LMHeadModel"}
    ALIASES: ClassVar = {"GPT2Model": "lm", "GPT2DoubleHeadsModel": "lm"}
    ONLY: ClassVar = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                      "add_cross_attention": False, "quantization_config": None}
    BODY = ("transformer.",)
    DROPOUTS = ("resid_pdrop", "embd_pdrop")
    NO_DROPOUT: ClassVar = {"attn_pdrop": 0.0}
    USUAL_IDS: ClassVar = {"bos_token_id": 50256, "eos_token_id": 50256}
    LEARNS: ClassVar = {"lm": "next token"}
    LAYERS = ("n_layer",)
    TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")

    vocab_size: int = 50257                     # V
    n_positions: int = 1024                     # number of position embeddings
    n_embd: int = 768                           # D
    n_layer: int = 12                           # L
    n_head: int = 12                            # H
    n_inner: int | None = None                  # F; None: 4 n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1                    # dropout on each residual branch
    embd_pdrop: float = 0.1                     # dropout on the embeddings
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self):
        self.check(positive=("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
                   shares=("resid_pdrop", "embd_pdrop"), multiples=[("n_embd", "n_head")],
                   choices={"activation_function": ACTIVATIONS})
        super().__post_init__()

    def copies(self) -> dict[str, str]:
        """See Config.copies."""
        return {"lm_head.weight": "transformer.wte.weight"} if self.tie_word_embeddings else {}

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
        """G = H"""
        return self.n_head

    @property
    def head_width(self) -> int:
        """K"""
        return self.n_embd // self.n_head

    @property
    def max_position_embeddings(self) -> int:
        """The context length in tokens."""
        return self.n_positions

    @classmethod
    def small(cls, shape: Dimensions) -> "GPT2Config":
        """The configuration of this size."""
        return cls(vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.width, n_layer=shape.depth,
                   n_head=shape.heads, n_inner=shape.hidden, resid_pdrop=shape.dropout, embd_pdrop=shape.dropout,
                   bos_token_id=shape.bos_id, eos_token_id=shape.eos_id)


def init(c: GPT2Config, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²); norms one, biases zero.

    The weights of the projections into the residual stream are divided by √(2L) (section 2.3).
    """
    weights = Initializer(generator(seed, "init"), c.initializer_range, dtype)
    D, F = c.n_embd, c.n_inner or 4 * c.n_embd
    out_std = c.initializer_range / np.sqrt(2 * c.n_layer)

    def conv(inputs, outputs, std=None):
        return weights.matrix(inputs, outputs, std) | {"bias": weights.zeros(outputs)}

    def layer():
        return {"ln_1": weights.norm(D), "attn": {"c_attn": conv(D, 3 * D), "c_proj": conv(D, D, out_std)},
                "ln_2": weights.norm(D), "mlp": {"c_fc": conv(D, F), "c_proj": conv(F, D, out_std)}}

    p = {"transformer": {"wte": weights.table(c.vocab_size, D, c.factor), "wpe": weights.matrix(c.n_positions, D),
                         "h": [layer() for _ in range(c.stored(c.n_layer))], "ln_f": weights.norm(D)}}
    return p if c.tie_word_embeddings else p | {"lm_head": weights.matrix(c.vocab_size, D)}


def tidy(tensors, c):
    """The state dict with the names of init().

    A model without a head omits "transformer.".
    """
    return {name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": a
            for name, a in tensors.items()}


def convolve(x, p):
    """x w + b, with w stored as (inputs, outputs): x [... D], w [D F], b [F] -> y [... F];  back gives dx, dp.

    The weight may have an adapter, or be stored in few bits: see adapters.py.
    """
    if is_special(p):
        return adapted(x, p, turned=True)
    y, linear_back = linear(x, p["weight"].T, p["bias"])

    def back(dy):
        dx, dw, db = linear_back(dy)
        return dx, {"weight": dw.T, "bias": db}

    return y, back


def self_attention(x, p, c, *, mask=None, segments=None, cache=None):
    """Causal attention: x [B T D] -> y [B T D];  back gives dx, dp.

    mask [B S]: 0 at padding.    cache: x continues the S - T tokens in it (see kv_cache.py)
    segments [B S]: packed documents
    """
    qkv, in_back = convolve(x, p["c_attn"])
    y, attention_back = multi_head(*np.split(qkv, 3, axis=-1), c.n_head, mask=mask, segments=segments, causal=True,
                                   cache=cache)
    y, out_back = convolve(y, p["c_proj"])

    def back(dy):
        dy, d_out = out_back(dy)
        dx, d_in = in_back(np.concatenate(attention_back(dy), axis=-1))
        return dx, {"c_attn": d_in, "c_proj": d_out}

    return y, back


def block(x, p, c, *, mask=None, segments=None, draw=NO_DRAW, cache=None):
    """y = x + drop(attention(norm(x)));  z = y + drop(feed_forward(norm(y))): x [B T D] -> z [B T D];
    back gives dx, dp."""
    branch = {"eps": c.layer_norm_epsilon, "norm_first": True, "rate": c.resid_pdrop}
    y, attention_back = residual(lambda n: self_attention(n, p["attn"], c, mask=mask, segments=segments, cache=cache),
                                 x, p["ln_1"], **branch, draw=draw.at("attention"))
    z, feed_back = residual(lambda n: feed_forward(n, *p["mlp"].values(), c.activation_function, convolve),
                            y, p["ln_2"], **branch, draw=draw.at("mlp"))

    def back(dz):
        dy, d_norm2, *d_mlp = feed_back(dz)
        dx, d_norm1, d_attention = attention_back(dy)
        return dx, {"ln_1": d_norm1, "attn": d_attention, "ln_2": d_norm2,
                    "mlp": dict(zip(p["mlp"], d_mlp, strict=True))}

    return z, back


def positions(ids, c, *, mask=None, segments=None, caches=None):
    """The position [B T] of each of ids [B T], counted from the first token of its text that is not padding; with
    segments, of its document.

    Raises UserError if there are more than n_positions.
    """
    start = caches[0].length if caches else 0
    B, T = ids.shape
    if mask is None:
        t = np.broadcast_to(np.arange(start, start + T, like=ids), (B, T))
        t = t if segments is None else t - first_positions(segments)
        length = start + T
    else:
        number = np.cumsum(mask, axis=1)
        if segments is not None:
            number = number - np.take_along_axis(number - mask, first_positions(segments), axis=1)
        t = np.maximum(number[:, start:] - 1, 0)
        length = int(t.max()) + 1 if t.size else 0
    if length > c.n_positions:
        raise UserError(f"the text has {length} tokens, but the model has only {c.n_positions} positions "
                        f"(n_positions); shorten the text")
    return t


def first_positions(segments):
    """The position [B T] at which the document of each token begins.  segments [B T]: their numbers, in any order."""
    B, T = segments.shape
    begins = np.ones_like(segments)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    number = np.cumsum(begins)                                      # ascending, so that its first place can be searched
    return np.searchsorted(number, number).reshape(B, T) - T * np.arange(B, like=segments)[:, None]


def hidden(ids, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, caches=None):
    """The last layer's normalized output: ids [B T] -> x [B T D];  back(dx) gives the gradients of p["transformer"].

    Arguments as in llama.logits.
    """
    tokens, token_back = look_up(ids, p["wte"])
    position, position_back = look_up(positions(ids, c, mask=mask, segments=segments, caches=caches), p["wpe"])
    x, drop_back = drop(total(tokens, position), c.embd_pdrop, draw.at("embedding"))

    def run(x, layer, i):
        return block(x, layer, c, mask=mask, segments=segments, draw=draw.at(i), cache=caches and caches[i])

    x, layers_back = through(x, p["h"], run, recompute, c.share_layers)
    x, norm_back = layer_normalize(x, p["ln_f"], c.layer_norm_epsilon)

    def back(dx):
        dx, d_norm = norm_back(dx)
        dx, d_layers, _ = layers_back(dx)
        dx = drop_back(dx)
        return {"wte": token_back(dx), "wpe": position_back(dx), "h": d_layers, "ln_f": d_norm}

    return x, back


def head(p, c):
    """The output table {"weight": [V D]}: lm_head, or the token embeddings if they are tied."""
    return p["transformer"]["wte"] if c.tie_word_embeddings else p["lm_head"]


def grads_of(d_body, d_head, c):
    """The gradient tree, given that of the output table."""
    return with_head({"transformer": d_body}, d_body["wte"], d_head, c.tie_word_embeddings)


def logits(ids, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, caches=None):
    """Scores of the next token: ids [B T] -> z [B T V];  back gives the gradients of p.

    Arguments as in llama.logits.  Padding may be on either side.
    """
    x, hidden_back = hidden(ids, p["transformer"], c, mask=mask, segments=segments, draw=draw, recompute=recompute,
                            caches=caches)
    z, head_back = token_scores(x, head(p, c))

    def back(dz):
        dx, d_head, _ = head_back(dz)
        return grads_of(hidden_back(dx), d_head, c)

    return z, back


def next_scores(ids, p, c, *, mask=None, caches):
    """Scores of the token after the last: ids [B T] -> z [B V].  There is no backward pass."""
    x, _ = hidden(ids, p["transformer"], c, mask=mask, recompute=None, caches=caches)
    return token_scores(x[:, -1], head(p, c))[0]


def loss(ids, labels, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels[:, 1:] from ids[:, :-1]: ids, labels [B T+1] -> nats, a 0-d float.

    Arguments and back as in llama.loss.
    """
    mask, segments = (None if x is None else x[:, :-1] for x in (mask, segments))
    x, hidden_back = hidden(ids[:, :-1], p["transformer"], c, mask=mask, segments=segments, draw=draw,
                            recompute=recompute)
    value, loss_back = prediction_loss(x, head(p, c), None, labels[:, 1:], count=count, **options)

    def back(dvalue=1.0):
        dx, d_head, _ = loss_back(dvalue)
        return grads_of(hidden_back(dx), d_head, c)

    return value, back
