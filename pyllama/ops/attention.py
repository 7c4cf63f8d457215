"""Grouped-query scaled dot-product attention.

Sources     Vaswani et al., 2017, equation 1; Ainslie et al., 2023 (groups);
            Dao et al., 2022 (the backward pass from lse)

Arrays      q [B G R T K], k [B G S K], v [B G S K] in; y [B G R T K] out;
            all float32 or all float64.  Each of the G key/value heads serves
            R query heads.  mask [B S], optional: integers 0 and 1.

Visibility  Query t stands at position t' = t + S - T among the keys: the last
            query at the last key.  So earlier keys can come from a cache.
            Query t sees key s if all of these hold:
   mask     mask_bs ≠ 0; for padding, or any other pattern
   causal   causal=True: s ≤ t'.  If T > S, the first queries see no key.
   window   window=n: t' - n < s, and s < t' + n.  None: no limit.

Forward     The indices of batch and head are left out.  i runs over the K
            numbers of a head.

            a_ts = Σ_i q_ti k_si / √K                      -∞ where not visible
            lse_t = log Σ_s exp a_ts
            p_ts = exp(a_ts - lse_t)
            y_ti = Σ_s p_ts v_si

            If a query sees no key, its y is 0 and it passes no gradient on.

Backward    y is linear in p and in v:

            dv_si = Σ_t p_ts dy_ti
            dp_ts = Σ_i dy_ti v_si

            p is the softmax of a (see softmax.py):

            δ_t = Σ_s p_ts dp_ts
                = Σ_s p_ts Σ_i dy_ti v_si
                = Σ_i dy_ti y_ti                    so δ can be had without p
            da_ts = p_ts (dp_ts - δ_t)

            a is linear in q and in k:

            dq_ti = Σ_s da_ts k_si / √K
            dk_si = Σ_t da_ts q_ti / √K

            k and v serve R query heads, so the sums over t in dk and dv run
            over r as well.  The code treats r and t as one axis of R T rows.

Saved       q, k, v, mask, y, lse.  p [T S] is recomputed from lse, so memory
            grows linearly with T and S.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     One head of width 1.  The scores (log 3, 0) give the weights
            (3/4, 1/4), so y is 3/4 · 4 + 1/4 · 8.

            >>> import numpy as np
            >>> from pyllama.ops import attention
            >>> q = np.log([3.0]).reshape(1, 1, 1, 1, 1)
            >>> k = np.array([1.0, 0.0]).reshape(1, 1, 2, 1)
            >>> v = np.array([4.0, 8.0]).reshape(1, 1, 2, 1)
            >>> y, back = attention(q, k, v)
            >>> y.ravel().round(4)
            array([5.])
            >>> dq, dk, dv = back(np.ones_like(y))
            >>> dq.ravel().round(4)
            array([-0.75])
            >>> dk.ravel().round(4)
            array([-0.824,  0.824])
            >>> dv.ravel().round(4)
            array([0.75, 0.25])

            Three ways to hide a key from a query:

            >>> y, back = attention(q, k, v, np.array([[0, 1]]))   # padding
            >>> y.ravel().round(4)
            array([8.])
            >>> y, back = attention(q, k, v, causal=True, window=1)
            >>> y.ravel().round(4)
            array([8.])
            >>> two = np.concatenate([q, q], axis=3)          # two queries
            >>> y, back = attention(two, k, v, causal=True)
            >>> y.ravel().round(4)
            array([4., 5.])
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.softmax import log_sum_exp


def rows(x):
    """[B G R T K] -> [B G R*T K]: all queries of a key/value head go through one matrix product."""
    B, G, R, T, K = x.shape
    return x.reshape(B, G, R * T, K)


def scores(q, k, mask, causal, window):
    """a [B G R*T S], -∞ where not visible."""
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
