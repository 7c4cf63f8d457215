"""LLaMA (Touvron et al., 2023), forward and backward side by side.

Parameters are a tree of dicts and lists with Hugging Face's names, so that params.leaves() yields the keys of a
state dict; a backward pass returns the tree of gradients of the same form.

Axes: B batch, T query time, S key time, D model, H query heads, G key/value heads, R = H/G, K head width, F hidden,
V vocabulary.
"""
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from pyllama.errors import UserError
from pyllama.models.config import Config
from pyllama.models.layers import class_loss, drop, pick, project
from pyllama.models.recompute import recomputed
from pyllama.ops import attention, embedding, linear_cross_entropy, rms_norm, rope, swiglu
from pyllama.ops.add_rms_norm import add_rms_norm
from pyllama.rng import generator
from pyllama.rotary import frequencies


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The shape of a LLaMA, under the names of Hugging Face's config.json."""

    TYPE = "llama"
    HEADS: ClassVar = {"lm": "LlamaForCausalLM", "classification": "LlamaForSequenceClassification"}
    ONLY: ClassVar = {"hidden_act": "silu", "attention_dropout": 0.0,
                      "partial_rotary_factor": 1.0, "quantization_config": None}

    vocab_size: int = 32000                     # V
    hidden_size: int = 288                      # D
    intermediate_size: int = 768                # F
    num_hidden_layers: int = 6                  # L
    num_attention_heads: int = 6                # H
    num_key_value_heads: int | None = None      # G; None: as many as query heads
    head_dim: int | None = None                 # K; None: hidden_size / num_attention_heads
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None            # see ops/rope.py
    rope_interleaved: bool = False              # False: Hugging Face's halves; True: Meta's neighbouring pairs
    sliding_window: int | None = None           # keys a query looks back on, itself included; None: all
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    resid_pdrop: float = 0.0                    # dropout on the embeddings and on what a block adds; in training
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    head: Literal["lm", "classification"] = "lm"            # scores of the next token, or of classes of the whole text
    num_labels: int = 2                         # C, classes

    def __post_init__(self):
        self.check(positive=("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                             "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
                             "sliding_window", "num_labels"), shares=("resid_pdrop",), choices={"head": self.HEADS},
                   multiples=[("hidden_size", "num_attention_heads")] if self.head_dim is None else [])
        for name in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.num_attention_heads % self.groups:
            raise UserError(f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                            f"{self.groups}; change one")
        if self.head_width % 2:
            raise UserError(f"the head width is {self.head_width}, but rotary positions turn pairs; make it even")
        frequencies(self.head_width // 2, self.rope_theta, self.rope_scaling)       # refuses what it does not know

    @property
    def groups(self) -> int:
        """G"""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_width(self) -> int:
        """K"""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @classmethod
    def from_dict(cls, stored: dict) -> "LlamaConfig":
        """From a config.json.  Unknown keys are kept in `extra`; those that change the mathematics refused."""
        stored = dict(stored)
        rope = stored.pop("rope_parameters", None) or {}             # the newer form of rope_theta and rope_scaling
        if rope and stored.get("rope_theta") is None:
            stored["rope_theta"] = rope.get("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default" and stored.get("rope_scaling") is None:
            stored["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        return super().from_dict({"num_labels": len(stored.get("id2label") or range(2)), **stored})

    def to_dict(self) -> dict:
        """For config.json: what Hugging Face's LLaMA reads, and our own keys beside it."""
        return {"hidden_act": "silu", **super().to_dict(),
                "num_key_value_heads": self.groups, "head_dim": self.head_width}


def init(c: LlamaConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²), those of the projections that feed the residual stream divided by √(2L)
    (Radford et al., 2019, section 2.3); norms one, biases zero."""
    rng = generator(seed, "init")

    def matrix(out, wide, bias=False, std=c.initializer_range):
        p = {"weight": (std * rng.standard_normal((out, wide))).astype(dtype)}
        return p | {"bias": np.zeros(out, dtype)} if bias else p

    def norm():
        return {"weight": np.ones(c.hidden_size, dtype)}

    D, F, Q, KV = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_width, c.groups * c.head_width
    out_std = c.initializer_range / np.sqrt(2 * c.num_hidden_layers)

    def layer():
        return {
            "input_layernorm": norm(),
            "self_attn": {"q_proj": matrix(Q, D, c.attention_bias), "k_proj": matrix(KV, D, c.attention_bias),
                          "v_proj": matrix(KV, D, c.attention_bias),
                          "o_proj": matrix(D, Q, c.attention_bias, out_std)},
            "post_attention_layernorm": norm(),
            "mlp": {"gate_proj": matrix(F, D, c.mlp_bias), "up_proj": matrix(F, D, c.mlp_bias),
                    "down_proj": matrix(D, F, c.mlp_bias, out_std)},
        }

    p = {"model": {"embed_tokens": matrix(c.vocab_size, D), "layers": [layer() for _ in range(c.num_hidden_layers)],
                   "norm": norm()}}
    if c.head == "classification":
        return p | {"score": matrix(c.num_labels, D)}
    return p if c.tie_word_embeddings else p | {"lm_head": matrix(c.vocab_size, D)}


def normalise(x, p, c):
    y, norm_back = rms_norm(x, p["weight"], eps=c.rms_norm_eps)

    def back(dy):
        dx, dw = norm_back(dy)
        return dx, {"weight": dw}

    return y, back


def add_and_normalise(x, a, p, c):
    """y = x + a;  n = norm(y)"""
    yn, norm_back = add_rms_norm(x, a, p["weight"], eps=c.rms_norm_eps)

    def back(dy, dn):
        dx, da, dw = norm_back((dy, dn))
        return dx, da, {"weight": dw}

    return yn, back


def self_attention(x, p, c, cache=None, mask=None):
    (B, T, _), K, G = x.shape, c.head_width, c.groups
    turn = {"base": c.rope_theta, "start": 0 if cache is None else cache.length, "interleaved": c.rope_interleaved,
            "scaling": c.rope_scaling}

    def split(y):                                           # [B T H*K] -> [B H T K]
        return y.reshape(B, T, -1, K).swapaxes(1, 2)

    def merge(y):                                           # [B ... T K] -> [B T H*K], its inverse and transpose
        return y.reshape(B, -1, T, K).swapaxes(1, 2).reshape(B, T, -1)

    q, q_back = project(x, p["q_proj"])
    k, k_back = project(x, p["k_proj"])
    v, v_back = project(x, p["v_proj"])
    q, turn_q_back = rope(split(q), **turn)
    k, turn_k_back = rope(split(k), **turn)
    k, v = (k, split(v)) if cache is None else cache.extend(k, split(v))
    y, attention_back = attention(q.reshape(B, G, -1, T, K), k, v, *([] if mask is None else [mask]),
                                  causal=True, window=c.sliding_window)
    y, o_back = project(merge(y), p["o_proj"])

    def back(dy):
        dy, do = o_back(dy)
        dq, dk, dv, *_ = attention_back(split(dy).reshape(B, G, -1, T, K))
        dq, = turn_q_back(dq.reshape(B, -1, T, K))
        dk, = turn_k_back(dk)
        dx_q, dwq = q_back(merge(dq))
        dx_k, dwk = k_back(merge(dk))
        dx_v, dwv = v_back(merge(dv))
        return dx_q + dx_k + dx_v, {"q_proj": dwq, "k_proj": dwk, "v_proj": dwv, "o_proj": do}

    return y, back


def feed_forward(x, p):
    g, gate_back = project(x, p["gate_proj"])
    u, up_back = project(x, p["up_proj"])
    h, swiglu_back = swiglu(g, u)
    y, down_back = project(h, p["down_proj"])

    def back(dy):
        dh, d_down = down_back(dy)
        dg, du = swiglu_back(dh)
        dx_g, d_gate = gate_back(dg)
        dx_u, d_up = up_back(du)
        return dx_g + dx_u, {"gate_proj": d_gate, "up_proj": d_up, "down_proj": d_down}

    return y, back


def block(x, p, c, key=None, row=0, cache=None, mask=None):
    """y = x + drop(attention(norm(x)));  z = y + drop(feed_forward(norm(y)))"""
    n, norm1_back = normalise(x, p["input_layernorm"], c)
    a, attention_back = self_attention(n, p["self_attn"], c, cache, mask)
    a, drop_a_back = drop(a, c.resid_pdrop, key and (*key, "attention"), row)
    (y, n), norm2_back = add_and_normalise(x, a, p["post_attention_layernorm"], c)
    f, feed_back = feed_forward(n, p["mlp"])
    f, drop_f_back = drop(f, c.resid_pdrop, key and (*key, "mlp"), row)
    z = y + f

    def back(dz):
        dn, d_mlp = feed_back(drop_f_back(dz))
        dx, da, d_norm2 = norm2_back(dz, dn)
        dn, d_attention = attention_back(drop_a_back(da))
        dx_n, d_norm1 = norm1_back(dn)
        return dx + dx_n, {"input_layernorm": d_norm1, "self_attn": d_attention,
                           "post_attention_layernorm": d_norm2, "mlp": d_mlp}

    return z, back


def hidden(ids, p, c, key=None, row=0, caches=None, mask=None, recompute=False):
    """The last layer's normalised output [B T D] for ids [B T].  back(dx) gives the gradients of p["model"]."""
    run = recomputed(block) if recompute else block
    x, embed_back = embedding(ids, p["embed_tokens"]["weight"])
    x, drop_back = drop(x, c.resid_pdrop, key and (*key, "embedding"), row)
    block_backs = []
    for i, layer in enumerate(p["layers"]):
        x, block_back = run(x, layer, c, key and (*key, i), row, caches and caches[i], mask)
        block_backs.append(block_back)
    x, norm_back = normalise(x, p["norm"], c)

    def back(dx):
        dx, d_norm = norm_back(dx)
        d_layers = []
        for block_back in reversed(block_backs):
            dx, d_layer = block_back(dx)
            d_layers.append(d_layer)
        _, d_embed = embed_back(drop_back(dx))
        return {"embed_tokens": {"weight": d_embed}, "layers": d_layers[::-1], "norm": d_norm}

    return x, back


def tidy(tensors, c):
    """A state dict as init() names it: without the copy of the embeddings that some writers store as a tied output."""
    return {name: a for name, a in tensors.items()
            if name != "lm_head.weight" or (c.head == "lm" and not c.tie_word_embeddings)}


def head(p, c):
    """The output projection: its own, or the embeddings."""
    return p["model"]["embed_tokens"] if c.tie_word_embeddings else p["lm_head"]


def with_head(d_model, d_head, c):
    """The gradient tree; a tied table is used twice, so its gradients add."""
    if c.tie_word_embeddings:
        embed = d_model["embed_tokens"]["weight"] + d_head["weight"]
        return {"model": {**d_model, "embed_tokens": {"weight": embed}}}
    return {"model": d_model, "lm_head": d_head}


def logits(ids, p, c, key=None, row=0, caches=None, mask=None, recompute=False):
    """Scores of the next token [B T V] after each of ids [B T], or of the classes [B C], from the last token's place.

    caches   one per layer (see kv_cache.py): ids continue what they hold.    mask [B S]: 0 marks padding
    key      where given, dropout is on and drawn from it, ids[0] being row number `row` of the whole batch
    recompute    see recompute.py
    """
    x, hidden_back = hidden(ids, p["model"], c, key, row, caches, mask, recompute)
    if c.head == "classification":
        x, pick_back = pick(x, last(ids, mask))
        z, score_back = project(x, p["score"])

        def back(dz):
            dx, d_score = score_back(dz)
            return {"model": hidden_back(pick_back(dx)), "score": d_score}
    else:
        z, head_back = project(x, head(p, c))

        def back(dz):
            dx, d_head = head_back(dz)
            return with_head(hidden_back(dx), d_head, c)

    return z, back


def last(ids, mask):
    """The place of each text's last token [B], padding being on either side."""
    if mask is None:
        return np.zeros(len(ids), int, like=ids) + ids.shape[1] - 1
    return ids.shape[1] - 1 - (mask != 0)[:, ::-1].argmax(axis=1)


def next_scores(ids, p, c, caches, mask=None):
    """z [B V] of the token after ids [B T], and of no earlier one; nothing is kept for a backward pass."""
    x, _ = hidden(ids, p["model"], c, caches=caches, mask=mask, recompute=True)
    return project(x[:, -1], head(p, c))[0]


def loss(ids, labels, p, c, key=None, row=0, mask=None, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels[:, 1:] from ids[:, :-1], as Hugging Face shifts them; both [B T+1].
    With a head of classes, of the labels [B] of the texts ids [B T].

    A label of -100 does not count.  key and row: see logits.  count, label_smoothing, z_loss: see ops/cross_entropy.py.
    """
    if c.head == "classification":
        z, logits_back = logits(ids, p, c, key, row, None, mask, recompute)
        value, loss_back = class_loss(z, labels, count=count, **options)
        return value, lambda dvalue=1.0: logits_back(loss_back(dvalue)[0])
    mask = None if mask is None else mask[:, :-1]
    x, hidden_back = hidden(ids[:, :-1], p["model"], c, key, row, None, mask, recompute)
    rows = x.reshape(-1, c.hidden_size)
    value, loss_back = linear_cross_entropy(rows, head(p, c)["weight"], labels[:, 1:].reshape(-1),
                                            count=count, **options)

    def back(dvalue=1.0):
        dx, dw, _ = loss_back(dvalue)
        return with_head(hidden_back(dx.reshape(x.shape)), {"weight": dw}, c)

    return value, back
