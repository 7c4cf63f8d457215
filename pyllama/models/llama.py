"""LLaMA (Touvron et al., 2023), forward and backward side by side.

Mistral, Qwen2 and Qwen3 are the same with other options: see models/llama_config.py.

Parameters are a tree of dicts and lists with Hugging Face's names, so that params.leaves() yields the keys of a state
dict.  A backward pass returns a tree of gradients of the same form.

Axes: B batch, T query time, S key time, D model, H query heads, G key/value heads, R = H/G, K head width, F hidden,
V vocabulary.
"""
import numpy as np

from pyllama.low import total
from pyllama.models.init import Initializer
from pyllama.models.layers import (
    class_loss,
    drop,
    last_positions,
    look_up,
    merge_heads,
    pick,
    project,
    split_heads,
    through,
    token_scores,
    toward,
    with_head,
)
from pyllama.models.llama_config import LlamaConfig
from pyllama.ops import attention, linear_cross_entropy, rms_norm, rope, swiglu
from pyllama.ops.add_rms_norm import add_rms_norm
from pyllama.rng import NO_DRAW, generator

__all__ = ["LlamaConfig", "block", "hidden", "init", "logits", "loss", "next_scores", "tidy"]


def init(c: LlamaConfig, seed: int = 0, dtype: str = "float32") -> dict:
    """Weights from N(0, initializer_range²); norms one, biases zero.

    The weights of the projections into the residual stream are divided by √(2L) (Radford et al., 2019, section 2.3).
    """
    weights = Initializer(generator(seed, "init"), c.initializer_range, dtype)
    D, R = c.hidden_size, c.num_attention_heads // c.groups
    out_std = c.initializer_range / np.sqrt(2 * c.num_hidden_layers)
    bias, out_bias = c.biases

    def head_norms():
        return {name: weights.norm(c.head_width, bias=False) for name in ("q_norm", "k_norm") if c.HEAD_NORMS}

    def layer(i):
        F, KV = c.channels_of(i), c.groups_of(i) * c.head_width

        def projection(name, outputs, inputs, std=None, bias=c.mlp_bias):
            return {name: weights.affine(outputs, inputs, std, bias, c.rank_of(i, name))}

        return {
            "input_layernorm": weights.norm(D, bias=False),
            "self_attn": {**projection("q_proj", R * KV, D, bias=bias),
                          **projection("k_proj", KV, D, bias=bias),
                          **projection("v_proj", KV, D, bias=bias),
                          **projection("o_proj", D, R * KV, out_std, out_bias), **head_norms()},
            "post_attention_layernorm": weights.norm(D, bias=False),
            "mlp": {**projection("gate_proj", F, D), **projection("up_proj", F, D),
                    **projection("down_proj", D, F, out_std)},
        }

    p = {"model": {"embed_tokens": weights.table(c.vocab_size, D, c.factor),
                   "layers": [layer(i) for i in range(c.stored(c.num_hidden_layers))],
                   "norm": weights.norm(D, bias=False)}}
    if c.head == "classification":
        return p | {"score": weights.matrix(c.num_labels, D)}
    return p if c.tie_word_embeddings else p | {"lm_head": weights.matrix(c.vocab_size, D)}


def tidy(tensors, c):
    """The state dict with the names of init(): a model without a head omits "model."."""
    return {f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name: a
            for name, a in tensors.items()}


def rms_normalize(x, p, c):
    """rms_norm: x [... D] -> y [... D];  back gives dx, dp"""
    y, norm_back = rms_norm(x, p["weight"], eps=c.rms_norm_eps)

    def back(dy):
        dx, dw = norm_back(dy)
        return dx, {"weight": dw}

    return y, back


def add_and_normalize(x, a, p, c):
    """y = x + a;  n = norm(y): x, a [B T D] -> (y, n) [B T D];  back(dy, dn) gives dx, da, dp"""
    yn, norm_back = add_rms_norm(x, a, p["weight"], eps=c.rms_norm_eps)

    def back(dy, dn):
        dx, da, dw = norm_back((dy, dn))
        return dx, da, {"weight": dw}

    return yn, back


def normalize_heads(x, p, name, c):
    """Qwen3's norm of queries or keys, p[name] [K]: x [B H T K] -> y [B H T K];  back gives dx, {name: dp}.

    The other families have none: y is x.
    """
    if not c.HEAD_NORMS:
        return x, lambda dy: (dy, {})
    y, norm_back = rms_normalize(x, p[name], c)

    def back(dy):
        dx, dp = norm_back(dy)
        return dx, {name: dp}

    return y, back


def self_attention(x, p, c, *, mask=None, segments=None, cache=None, window=None):
    """Causal attention: x [B T D] -> y [B T D];  back gives dx, dp.

    mask [B S]: 0 at padding.    cache: x continues the S - T tokens in it (see kv_cache.py)
    segments [B S]: packed documents.  Scores depend on distances alone, so positions need not restart with each.
    window: keys that a query sees, itself included; None: all
    """
    (B, T, _), K = x.shape, c.head_width
    turn = {"base": c.rope_theta, "start": 0 if cache is None else cache.length, "interleaved": c.rope_interleaved,
            "scaling": c.rope_scaling}
    q, q_back = project(x, p["q_proj"])
    k, k_back = project(x, p["k_proj"])
    v, v_back = project(x, p["v_proj"])
    H, G = q.shape[-1] // K, k.shape[-1] // K           # which may be fewer than those of other layers
    q, norm_q_back = normalize_heads(split_heads(q, H), p, "q_norm", c)
    k, norm_k_back = normalize_heads(split_heads(k, G), p, "k_norm", c)
    q, turn_q_back = rope(q, **turn)
    k, turn_k_back = rope(k, **turn)
    v = split_heads(v, G)
    if cache is not None:
        k, v = cache.extend(k, v)
    y, attention_back = attention(q.reshape(B, G, -1, T, K), k, v, mask=mask, segments=segments, causal=True,
                                  window=window)
    y, o_back = project(merge_heads(y.reshape(B, H, T, K)), p["o_proj"])

    def back(dy):
        dy, do = o_back(dy)
        dq, dk, dv, *_ = attention_back(split_heads(dy, H).reshape(B, G, -1, T, K))
        dq, = turn_q_back(dq.reshape(B, H, T, K))
        dk, = turn_k_back(dk)
        dq, d_q_norm = norm_q_back(dq)
        dk, d_k_norm = norm_k_back(dk)
        dx_q, dwq = q_back(merge_heads(dq))
        dx_k, dwk = k_back(merge_heads(dk))
        dx_v, dwv = v_back(merge_heads(dv))
        dx = total(dx_q, dx_k, dx_v)
        return dx, {"q_proj": dwq, "k_proj": dwk, "v_proj": dwv, "o_proj": do, **d_q_norm, **d_k_norm}

    return y, back


def feed_forward(x, p):
    """y = down(silu(gate(x)) · up(x)): x [B T D] -> y [B T D], F inside;  back gives dx, dp"""
    g, gate_back = project(x, p["gate_proj"])
    u, up_back = project(x, p["up_proj"])
    h, swiglu_back = swiglu(g, u)
    y, down_back = project(h, p["down_proj"])

    def back(dy):
        dh, d_down = down_back(dy)
        dg, du = swiglu_back(dh)
        dx_g, d_gate = gate_back(dg)
        dx_u, d_up = up_back(du)
        return total(dx_g, dx_u), {"gate_proj": d_gate, "up_proj": d_up, "down_proj": d_down}

    return y, back


def block(x, p, c, *, mask=None, segments=None, draw=NO_DRAW, cache=None, window=None):
    """y = x + drop(attention(norm(x)));  z = y + drop(feed_forward(norm(y))): x [B T D] -> z [B T D];
    back gives dx, dp."""
    n, norm1_back = rms_normalize(x, p["input_layernorm"], c)
    a, attention_back = self_attention(n, p["self_attn"], c, mask=mask, segments=segments, cache=cache,
                                       window=window)
    a, drop_a_back = drop(a, c.resid_pdrop, draw.at("attention"))
    (y, n), norm2_back = add_and_normalize(x, a, p["post_attention_layernorm"], c)
    f, feed_back = feed_forward(n, p["mlp"])
    f, drop_f_back = drop(f, c.resid_pdrop, draw.at("mlp"))
    z = total(y, f)

    def back(dz):
        dn, d_mlp = feed_back(drop_f_back(dz))
        dx, da, d_norm2 = norm2_back(dz, dn)
        dn, d_attention = attention_back(drop_a_back(da))
        dx_n, d_norm1 = norm1_back(dn)
        return total(dx, dx_n), {"input_layernorm": d_norm1, "self_attn": d_attention,
                           "post_attention_layernorm": d_norm2, "mlp": d_mlp}

    return z, back


def hidden(ids, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, caches=None):
    """The last layer's normalized output: ids [B T] -> x [B T D];  back(dx) gives the gradients of p["model"].

    Arguments as in logits.
    """
    x, embed_back = look_up(ids, p["embed_tokens"])
    x, drop_back = drop(x, c.resid_pdrop, draw.at("embedding"))

    def run(x, layer, i):
        return block(x, layer, c, mask=mask, segments=segments, draw=draw.at(i), cache=caches and caches[i],
                     window=c.window(i))

    x, layers_back = through(x, p["layers"], run, recompute, c.share_layers)
    x, norm_back = rms_normalize(x, p["norm"], c)

    def back(dx):
        dx, d_norm = norm_back(dx)
        dx, d_layers, _ = layers_back(dx)
        return {"embed_tokens": embed_back(drop_back(dx)), "layers": d_layers, "norm": d_norm}

    return x, back


def head(p, c):
    """The output table {"weight": [V D]}: lm_head, or the token embeddings if they are tied."""
    return p["model"]["embed_tokens"] if c.tie_word_embeddings else p["lm_head"]


def grads_of(d_model, d_head, c):
    """The gradient tree of a language model, given that of the output table."""
    return with_head({"model": d_model}, d_model["embed_tokens"], d_head, c.tie_word_embeddings)


def logits(ids, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, caches=None):
    """Scores of the next token: ids [B T] -> z [B T V];  back gives the gradients of p.

    With a classification head, scores of the classes [B C], computed at each text's last token.

    ids          integers [B T]
    mask         [B S]: 0 at padding
    segments     [B S]: the numbers of documents that are packed into a row; they do not see each other
    draw         the random numbers of dropout (see rng.Draw); NO_DRAW: no dropout
    recompute    save memory by computing activations twice (see recompute.py)
    caches       one per layer (see kv_cache.py): ids continue the S - T tokens in them
    """
    x, hidden_back = hidden(ids, p["model"], c, mask=mask, segments=segments, draw=draw, recompute=recompute,
                            caches=caches)
    if c.head == "classification":
        x, pick_back = pick(x, last_positions(ids, mask))
        z, score_back = project(x, p["score"])

        def back(dz):
            dx, d_score = score_back(dz)
            return {"model": hidden_back(pick_back(dx)), "score": d_score}
    else:
        z, head_back = token_scores(x, head(p, c))

        def back(dz):
            dx, d_head, _ = head_back(dz)
            return grads_of(hidden_back(dx), d_head, c)

    return z, back


def next_scores(ids, p, c, *, mask=None, caches):
    """Scores of the token after the last: ids [B T] -> z [B V].  There is no backward pass."""
    x, _ = hidden(ids, p["model"], c, mask=mask, recompute=None, caches=caches)
    return token_scores(x[:, -1], head(p, c))[0]


def loss(ids, labels, p, c, *, mask=None, segments=None, draw=NO_DRAW, recompute=False, count=None, **options):
    """Mean cross-entropy of predicting labels[:, 1:] from ids[:, :-1]: ids, labels [B T+1] -> nats, a 0-d float.

    The labels are those of Hugging Face: not shifted, and -100 is ignored.  With a classification head, the mean
    cross-entropy of the labels [B] of the texts ids [B T].

    mask and segments [B T+1], draw, recompute: see logits.  count, label_smoothing, z_loss: see ops/cross_entropy.py.
    back(dvalue=1.0) gives the gradients of p.
    """
    if c.head == "classification":
        z, logits_back = logits(ids, p, c, mask=mask, segments=segments, draw=draw, recompute=recompute)
        value, loss_back = class_loss(z, labels, count=count, **options)
        return value, lambda dvalue=1.0: logits_back(loss_back(dvalue)[0])
    mask, segments = (None if x is None else x[:, :-1] for x in (mask, segments))
    x, hidden_back = hidden(ids[:, :-1], p["model"], c, mask=mask, segments=segments, draw=draw, recompute=recompute)
    rows, toward_back = toward(x.reshape(-1, c.hidden_size), head(p, c))
    value, loss_back = linear_cross_entropy(rows, head(p, c)["weight"], labels[:, 1:].reshape(-1),
                                            count=count, **options)

    def back(dvalue=1.0):
        dy, dw, _ = loss_back(dvalue)
        dx, d_head = toward_back(dy, {"weight": dw})
        return grads_of(hidden_back(dx.reshape(x.shape)), d_head, c)

    return value, back
