"""The layers of the Transformer's encoder and decoder, forward and backward side by side; see models/transformer.py.

Axes: B batch, S source time, T target time, D model, H heads.
"""
from pyllama.low import total
from pyllama.models.layers import feed_forward, multi_head, project, residual
from pyllama.rng import NO_DRAW


def keys_values(memory, p):
    """(k, v) [B S D] of memory [B S D];  back((dk, dv)) gives dmemory, dp."""
    k, k_back = project(memory, p["k_proj"])
    v, v_back = project(memory, p["v_proj"])

    def back(dkv):
        (dm_k, d_k), (dm_v, d_v) = k_back(dkv[0]), v_back(dkv[1])
        return total(dm_k, dm_v), {"k_proj": d_k, "v_proj": d_v}

    return (k, v), back


def attend(x, kv, p, H, **options):
    """Multi-head attention to the keys and values: x [B T D], k and v [B S D] -> y [B T D];  back gives dx, dkv, dp."""
    q, q_back = project(x, p["q_proj"])
    y, heads_back = multi_head(q, *kv, H, **options)
    y, out_back = project(y, p["out_proj"])

    def back(dy):
        dy, d_out = out_back(dy)
        dq, *dkv = heads_back(dy)
        dx, d_q = q_back(dq)
        return dx, dkv, {"q_proj": d_q, "out_proj": d_out}

    return y, back


def self_attention(x, p, H, **options):
    """Attention of x [B T D] to itself -> y [B T D];  back gives dx, dp.    options: see layers.multi_head"""
    kv, kv_back = keys_values(x, p)
    y, attend_back = attend(x, kv, p, H, **options)

    def back(dy):
        dx, dkv, dp = attend_back(dy)
        dx_kv, dp_kv = kv_back(dkv)
        return total(dx, dx_kv), dp | dp_kv

    return y, back


def cross_attention(x, memory, p, H, *, mask=None, cached=None):
    """Attention of x [B T D] to memory [B S D] -> y [B T D];  back gives dx, dmemory, dp.

    mask [B S]: 0 at the source's padding.    cached: keys_values(memory, p), if it was computed before
    """
    kv, kv_back = cached or keys_values(memory, p)
    y, attend_back = attend(x, kv, p, H, mask=mask)

    def back(dy):
        dx, dkv, dp = attend_back(dy)
        dmemory, dp_kv = kv_back(dkv)
        return dx, dmemory, dp | dp_kv

    return y, back


def branches(c):
    """The options of layers.residual that all branches of a layer share."""
    return {"eps": c.layer_norm_eps, "norm_first": c.norm_first, "rate": c.dropout}


def encoder_layer(x, p, c, *, mask=None, draw=NO_DRAW):
    """Bidirectional attention, then feed-forward, as residual branches: x [B S D] -> z [B S D];  back gives dx, dp."""
    y, attention_back = residual(lambda n: self_attention(n, p["self_attn"], c.encoder_attention_heads, mask=mask),
                                 x, p["self_attn_layer_norm"], **branches(c), draw=draw.at("attention"))
    z, feed_back = residual(lambda n: feed_forward(n, p["fc1"], p["fc2"], c.activation_function),
                            y, p["final_layer_norm"], **branches(c), draw=draw.at("mlp"))

    def back(dz):
        dy, d_norm2, d_fc1, d_fc2 = feed_back(dz)
        dx, d_norm1, d_attention = attention_back(dy)
        return dx, {"self_attn": d_attention, "self_attn_layer_norm": d_norm1, "fc1": d_fc1, "fc2": d_fc2,
                    "final_layer_norm": d_norm2}

    return z, back


def decoder_layer(x, memory, p, c, *, mask=None, draw=NO_DRAW, cache=None):
    """Causal attention, attention to the memory, feed-forward: x [B T D], memory [B S D] -> u [B T D];
    back gives dx, dmemory, dp.

    mask [B S]: 0 at the source's padding.    cache: this layer's element of transformer.remember()
    """
    H = c.decoder_attention_heads
    target_cache, memory_kv = cache or (None, None)
    y, self_back = residual(lambda n: self_attention(n, p["self_attn"], H, causal=True, cache=target_cache),
                            x, p["self_attn_layer_norm"], **branches(c), draw=draw.at("attention"))
    z, cross_back = residual(lambda n: cross_attention(n, memory, p["encoder_attn"], H, mask=mask, cached=memory_kv),
                             y, p["encoder_attn_layer_norm"], **branches(c), draw=draw.at("memory"))
    u, feed_back = residual(lambda n: feed_forward(n, p["fc1"], p["fc2"], c.activation_function),
                            z, p["final_layer_norm"], **branches(c), draw=draw.at("mlp"))

    def back(du):
        dz, d_norm3, d_fc1, d_fc2 = feed_back(du)
        dy, d_norm2, dmemory, d_cross = cross_back(dz)
        dx, d_norm1, d_self = self_back(dy)
        return dx, dmemory, {"self_attn": d_self, "self_attn_layer_norm": d_norm1, "encoder_attn": d_cross,
                             "encoder_attn_layer_norm": d_norm2, "fc1": d_fc1, "fc2": d_fc2,
                             "final_layer_norm": d_norm3}

    return u, back
