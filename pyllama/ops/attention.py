"""Grouped-query scaled dot-product attention.

Sources     Vaswani et al., 2017, equation 1; Ainslie et al., 2023 (groups);
            Dao et al., 2022 (the backward pass from lse); Raffel et al., 2020
            (T5's bias); Press et al., 2022 (ALiBi); Gemma 2, 2024 (softcap)

Arrays      q [B G R T K], k [B G S K], v [B G S K] in; y [B G R T K] out;
            all float32 or all float64.  Each of the G key/value heads serves
            R query heads.  Optional, in this order or by name:
   mask     [B S] or [B T S], integers 0 and 1 or booleans
   segments [B S], integers: the document of each position
   bias     [B H T S], H = G R, in the precision of q, or with 1 for B, H or
            both: then it is the same for all sequences, or heads

Options     scale: of the scores; None: 1/√K
            softcap: c > 0, the bound of the scores; None: no bound
            causal, window: see below

Visibility  Query t stands at position t' = t + S - T among the keys: the last
            query at the last key.  So earlier keys can come from a cache.
            Query t sees key s if all of these hold:
   mask     mask_bs ≠ 0, for padding; or mask_bts ≠ 0, for any pattern
   segments segments_bs = segments_bt': documents that are packed into one
            sequence do not see each other.  If t' < 0: no key.
   causal   causal=True: s ≤ t'.  If T > S, the first queries see no key.
   window   window=n: t' - n < s, and s < t' + n.  None: no limit.

Forward     The indices of the batch and of the key/value head are left out.
            r runs over the R query heads that share this key/value head, t
            over queries, s and j over keys, i over the K numbers of a head.
            m_ts is 1 where query t sees key s, and 0 elsewhere.

            z_rts = scale Σ_i q_rti k_si
            u_rts = c tanh(z_rts / c)                   without softcap: z_rts
            a_rts = u_rts + bias_rts
            lse_rt = log Σ_s m_ts exp a_rts
            p_rts = m_ts exp(a_rts - lse_rt)
            y_rti = Σ_s p_rts v_si

            The code writes -∞ to the hidden entries of a, because exp(-∞) is
            0.  If a query sees no key, its y is 0 and it passes no gradient
            on.  Head h of the bias is r of key/value head g: h is g R + r.

Backward    y is linear in p and in v:

            dv_si = Σ_rt p_rts dy_rti
            dp_rts = Σ_i dy_rti v_si

            p is the softmax of a over the visible keys (see softmax.py).  The
            bracket is 1 where its condition holds, and 0 elsewhere:

            ∂p_rtj/∂a_rts = p_rtj ([j = s] - p_rts)
            δ_rt = Σ_s p_rts dp_rts
                 = Σ_s p_rts Σ_i dy_rti v_si
                 = Σ_i dy_rti y_rti                 so δ can be had without p
            da_rts = Σ_j dp_rtj ∂p_rtj/∂a_rts
                   = p_rts (dp_rts - δ_rt)

            a is the sum of u and the bias, so both have its gradient.  A bias
            with 1 for an axis has the sum over that axis:

            dbias_rts = da_rts
            du_rts = da_rts

            The derivative of tanh is 1 - tanh²:

            dz_rts = du_rts (1 - (u_rts / c)²)          without softcap: du_rts

            z is linear in q and in k:

            dq_rti = scale Σ_s dz_rts k_si
            dk_si = scale Σ_rt dz_rts q_rti

            k and v serve R query heads, so the sums in dk and dv run over r,
            too.  The code treats r and t as one axis of R T rows.

Saved       q, k, v, mask, segments, bias, y, lse.  p [T S] is recomputed from
            lse, so memory grows linearly with T and S.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit,
            or softcap is not positive.

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

            A bias of -∞ hides a key, too.  Its gradient is that of the scores,
            p (dp - δ) = 3/4 (4 - 5) for the first key:

            >>> hide = np.array([-np.inf, 0.0]).reshape(1, 1, 1, 2)
            >>> y, back = attention(q, k, v, bias=hide)
            >>> y.ravel().round(4)
            array([8.])
            >>> y, back = attention(q, k, v, bias=np.zeros((1, 1, 1, 2)))
            >>> *_, dbias = back(np.ones_like(y))
            >>> dbias.ravel().round(4)
            array([-0.75,  0.75])

            ALiBi (Press et al., 2022): the bias falls with the distance
            t' - s, by 2^(-8 h/H) in head h = 1 ... H.  Here all scores are 0
            and the values are unit vectors, so y is p:

            >>> H, T = 2, 3
            >>> distance = np.arange(T)[:, None] - np.arange(T)
            >>> slopes = 2.0 ** (-8 * np.arange(1, H + 1) / H)
            >>> alibi = -slopes[:, None, None] * distance            # [H T T]
            >>> q, k = np.zeros((1, H, 1, T, T)), np.zeros((1, H, T, T))
            >>> v = np.tile(np.eye(T), (1, H, 1, 1))
            >>> y, back = attention(q, k, v, bias=alibi[None], causal=True)
            >>> y[0, 0, 0].round(4)
            array([[1.    , 0.    , 0.    ],
                   [0.4844, 0.5156, 0.    ],
                   [0.3127, 0.3329, 0.3544]])

            T5 (Raffel et al., 2020): the scores are not scaled, and the bias
            is learned for each distance and head.  Its table w [N H] gets the
            gradient of a lookup, so embedding's backward pass follows:

            >>> from pyllama.ops import embedding
            >>> w = np.array([[0.0, 0.0], [-1.0, 0.0], [-2.0, -1.0]])
            >>> bias, w_back = embedding(np.abs(distance), w)        # [T T H]
            >>> y, back = attention(q, k, v, scale=1.0,
            ...                     bias=bias.transpose(2, 0, 1)[None])
            >>> *_, dbias = back(np.tile(np.eye(T), (1, H, 1, 1, 1)))
            >>> _, dw = w_back(dbias[0].transpose(1, 2, 0))
            >>> dw.round(4)
            array([[ 0.6896,  0.7102],
                   [-0.5698, -0.5789],
                   [-0.1198, -0.1312]])
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.softmax import log_sum_exp


def rows(x):
    """[B G R T K] -> [B G R*T K]: all queries of a key/value head go through one matrix product."""
    B, G, R, T, K = x.shape
    return x.reshape(B, G, R * T, K)


def visible(q, k, mask, segments, causal, window):
    """[B|1 T S]: which query sees which key."""
    T, S = q.shape[-2], k.shape[-2]
    place, s = np.arange(S - T, S, like=q)[:, None], np.arange(S, like=q)
    seen = (s <= place) if causal else (s == s)
    if window is not None:
        seen = seen & (s > place - window) & (s < place + window)
    seen = seen[None]
    if mask is not None:
        seen = seen & ((mask if mask.ndim == 3 else mask[:, None]) != 0)
    if segments is not None and S:
        seen = seen & (place >= 0) & (segments[:, np.maximum(place, 0)] == segments[:, None])
    return seen


def scores(q, k, scale, softcap):
    """u [B G R*T S]"""
    z = rows(q) @ k.swapaxes(-1, -2) * factor(q, scale)
    return z if softcap is None else softcap * np.tanh(z / softcap)


def factor(q, scale):
    return q.shape[-1] ** -0.5 if scale is None else scale


def by_head(x, q):
    """[B G R*T S] -> [B H T S]"""
    B, G, R, T, _ = q.shape
    return x.reshape(B, G * R, T, x.shape[-1])


def biased(u, bias, seen, q):
    """a [B G R*T S]"""
    a = by_head(u, q) if bias is None else by_head(u, q) + bias
    return np.where(seen[:, None], a, -np.inf).reshape(u.shape)


def forward(q, k, v, mask=None, segments=None, bias=None, *, causal=False, window=None, scale=None, softcap=None):
    if softcap is not None and not softcap > 0:
        raise ValueError(f"attention: softcap is {softcap}; it must be positive, or None")
    seen = visible(q, k, mask, segments, causal, window)
    a = biased(scores(q, k, scale, softcap), bias, seen, q)
    lse = log_sum_exp(a)
    y = (np.exp(a - lse) @ v).reshape(q.shape)
    return y, (q, k, v, mask, segments, bias, y, lse)


def backward(dy, q, k, v, mask, segments, bias, y, lse, *, causal=False, window=None, scale=None, softcap=None):
    seen, u = visible(q, k, mask, segments, causal, window), scores(q, k, scale, softcap)
    p = np.exp(biased(u, bias, seen, q) - lse)
    dv = p.swapaxes(-1, -2) @ rows(dy)
    dp = rows(dy) @ v.swapaxes(-1, -2)
    da = p * (dp - np.sum(rows(dy * y), axis=-1, keepdims=True))
    dz = da if softcap is None else da * (1 - (u / softcap) ** 2)
    dz = dz * factor(q, scale)
    dbias = None if bias is None else summed_like(bias, by_head(da, q))
    return (dz @ k).reshape(q.shape), dz.swapaxes(-1, -2) @ rows(q), dv, None, None, dbias


def summed_like(bias, da):
    """da [B H T S], summed over the axes that have length 1 in bias."""
    return da.sum(axis=tuple(axis for axis in (0, 1) if bias.shape[axis] == 1), keepdims=True)


attention = op("q[B G R T K], k[B G S K], v[B G S K], mask[B T? S]<2?, segments[B S]<3?, bias[B|1 G*R|1 T S]? "
               "-> y[B G R T K]", forward, backward, causal=[False, True], window=[None, 1, 2, 5],
               scale=[None, 0.5, -0.3, 0.0], softcap=[None, 3.0])
