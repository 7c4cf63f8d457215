"""Grouped-query scaled dot-product attention (Vaswani et al., 2017, equation 1; Ainslie et al., 2023).

            Query t stands at the place t' = t + S - T among the keys: the last query at the last key, so that a cache
            of earlier keys needs no more.  It sees key s if
   mask     mask_bs ≠ 0            (padding; any pattern)
   causal   s ≤ t'                 (T > S: the first queries see no key)
   window   t' - window < s        (and s < t' + window, if not causal)

Forward     a_ts = Σ_i q_ti k_si / √K,   -∞ where not seen       i = 0 .. K-1 runs over a head's width
            lse_t = log Σ_s exp a_ts        p_ts = exp(a_ts - lse_t)        y_ti = Σ_s p_ts v_si
            A query that sees no key attends to nothing: y = 0, and no gradient.

Backward    y is linear in p and v:       dv_si = Σ_t p_ts dy_ti           dp_ts = Σ_i dy_ti v_si
            softmax (see softmax.py):     da_ts = p_ts (dp_ts - δ_t),      δ_t = Σ_s p_ts dp_ts
            and δ needs no p, since       δ_t = Σ_s p_ts Σ_i dy_ti v_si = Σ_i dy_ti y_ti            (Dao et al., 2022)
            a is bilinear:                dq_ti = Σ_s da_ts k_si / √K      dk_si = Σ_t da_ts q_ti / √K
            k and v serve R query heads: their sums run over r and t, one axis of R T rows here.

Saved       q, k, v, mask, y, lse.   p [T S] is computed again from lse: memory stays linear in T and S.
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.softmax import log_sum_exp


def rows(x):
    """[B G R T K] -> [B G R*T K]: to a product, the queries of a key/value head are one axis."""
    B, G, R, T, K = x.shape
    return x.reshape(B, G, R * T, K)


def scores(q, k, mask, causal, window):
    """a [B G R*T S], -∞ where not seen."""
    (B, G, R, T, K), S = q.shape, k.shape[-2]
    place, s = np.arange(S - T, S, like=q)[:, None], np.arange(S, like=q)
    seen = (s <= place) if causal else (s == s)
    if window is not None:
        seen = seen & (s > place - window) & (s < place + window)
    seen = seen[None] if mask is None else seen & (mask != 0)[:, None]                      # [B|1 T S]
    a = (rows(q) @ k.swapaxes(-1, -2) * K ** -0.5).reshape(B, G, R, T, S)
    return np.where(seen[:, None, None], a, -np.inf).reshape(B, G, R * T, S)


def forward(q, k, v, mask=None, *, causal=False, window=None):
    a = scores(q, k, mask, causal, window)
    lse = log_sum_exp(a)
    y = (np.exp(a - lse) @ v).reshape(q.shape)
    return y, (q, k, v, mask, y, lse)


def backward(dy, q, k, v, mask, y, lse, *, causal=False, window=None):
    p = np.exp(scores(q, k, mask, causal, window) - lse)
    dv = p.swapaxes(-1, -2) @ rows(dy)
    dp = rows(dy) @ v.swapaxes(-1, -2)
    da = p * (dp - np.sum(rows(dy * y), axis=-1, keepdims=True)) * q.shape[-1] ** -0.5
    return (da @ k).reshape(q.shape), da.swapaxes(-1, -2) @ rows(q), dv, None


attention = op("q[B G R T K], k[B G S K], v[B G S K], mask[B S]<2? -> y[B G R T K]", forward, backward,
               causal=[False, True], window=[None, 1, 2, 5])
