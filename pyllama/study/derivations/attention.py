"""Attention, step by step: see pyllama/ops/attention.py."""
import itertools
from fractions import Fraction

import numpy as np

from pyllama.ops import attention
from pyllama.study.derivation import Derivation, Step


def passes(names):
    """What both passes compute; the op's bias has one axis of G R heads."""
    q, k, v, dy, bias = (names[name] for name in ("q", "k", "v", "dy", "bias"))
    B, G, R, T, S = bias.shape
    options = {"scale": names["scale"], "softcap": names["c"], "causal": True, "window": int(names["window"])}
    y, saved = attention.forward(q, k, v, None, names["segments"], bias.reshape(B, G * R, T, S), **options)
    dq, dk, dv, _, _, dbias = attention.backward(dy, *saved, **options)
    return {"y": y, "dq": dq, "dk": dk, "dv": dv, "dbias": dbias.reshape(bias.shape)}


def query_without_a_key():
    """What is wrong where the first query sees no key, in words; "" if nothing is."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.normal(size=(1, 1, *([1] if name in "qy" else []), 2, 3)) for name in "qkvy")
    y, saved = attention.forward(q, k, v, np.array([[[0, 0], [1, 1]]]))
    found = attention.backward(dy, *saved)
    dy[..., 0, :] = 7
    others = attention.backward(dy, *saved)
    if y[..., 0, :].any():
        return "y is not 0"
    if found[0][..., 0, :].any():
        return "dq is not 0"
    same = all(np.array_equal(one, other) for one, other in zip(found[:3], others[:3], strict=True))
    return "" if same else "its dy reaches a gradient"


def mean_square_of_a_score():
    """What is wrong with it for numbers that are 1 or -1 by chance, all independent; "" if nothing is."""
    for K in (1, 2, 3):
        signs = list(itertools.product((-1, 1), repeat=2 * K))
        total = sum(sum(q * k for q, k in zip(one[:K], one[K:], strict=True)) ** 2 for one in signs)
        if total != K * len(signs):
            return f"it is {Fraction(total, len(signs))} for K = {K}"
    return ""


DERIVATION = Derivation(
    title="Attention of R query heads that share keys and values",
    module="pyllama.ops.attention",
    arrays={"q": "B G R T K", "k": "B G S K", "v": "B G S K", "bias": "B G R T S", "segments": "B S",
            "dy": "B G R T K"},
    letters={"r": "R", "t": "T", "s": "S", "j": "S", "i": "K"},
    sizes={"B": 1, "G": 1, "R": 2, "T": 2, "S": 3, "K": 1, "documents": 2},
    fixed=("T", "S"),
    implicit=("B", "G"),
    integers={"segments": "documents"},
    constants={"scale": "scale", "c": "softcap"},
    options={"window": 2},
    loss={"y": "dy"},
    code=passes,
    steps=(
        Step("m_ts = [s ≤ t + S - T] [s > t + S - T - window] [segments_s = segments_{t + S - T}]",
             "An example: the last keys of the same document, up to the query's own.  What follows holds for any `m` "
             "by which each query sees a key.",
             "seen = seen & (s > place - window) & (s < place + window)", extra=True),
        Step("z_rts = scale Σ_i q_rti k_si",
             "The score: how well query and key match.",
             "z = rows(q) @ k.swapaxes(-1, -2) * factor(q, scale)"),
        Step("E[(Σ_i q_rti k_si)²] = K",
             "E is the mean over random numbers.  If they are independent, of mean 0 and mean square 1, products of "
             "different ones vanish in the mean, and `K` squares stay.  So with the scale `1/√K` scores have mean "
             "square 1, however wide a head is.",
             extra=True, check=mean_square_of_a_score),
        Step("u_rts = c tanh(z_rts / c)",
             "Near 0 this is close to `z`; no score is beyond `c`.",
             "return z if softcap is None else softcap * np.tanh(z / softcap)"),
        Step("a_rts = u_rts + bias_rts",
             "What the place of a key says about it is added to the score.",
             "a = by_head(u, q) if bias is None else by_head(u, q) + bias"),
        Step("lse_rt = log Σ_s m_ts exp a_rts",
             "Only visible keys are in the sum.",
             "lse = log_sum_exp(a)"),
        Step("p_rts = m_ts exp(a_rts - lse_rt)",
             "The weight of a key is its share of that sum.",
             "p = np.exp(biased(u, bias, seen, q) - lse)"),
        Step("Σ_s p_rts = 1",
             "The shares of a query are the whole.", extra=True),
        Step("y_rti = Σ_s p_rts v_si",
             "The mean of the values, with these weights.",
             "y = (np.exp(a - lse) @ v).reshape(q.shape)"),
        Step("dv_si = Σ_rt p_rts dy_rti",
             "`v_si` is in `y_rti` with the factor `p_rts`, for each query `t` of each head `r`: the chain rule sums "
             "over both.",
             "dv = p.swapaxes(-1, -2) @ rows(dy)"),
        Step("dp_rts = Σ_i dy_rti v_si",
             "`p_rts` is in all numbers `i` of one `y`, each time with the factor `v_si`.",
             "dp = rows(dy) @ v.swapaxes(-1, -2)"),
        Step("∂p_rtj/∂a_rts = m_tj exp(a_rtj - lse_rt) ([j = s] - ∂lse_rt/∂a_rts)",
             "The derivative of exp is exp.  In the exponent, `a_rtj` moves if `j` is `s`, and `lse_rt` moves for "
             "every `j`.",
             extra=True),
        Step("∂lse_rt/∂a_rts = p_rts",
             "As in softmax: the derivative of `log u` is `1/u`, and only the term of `s` moves: its share of the sum "
             "is `p_rts`.",
             extra=True),
        Step("∂p_rtj/∂a_rts = p_rtj ([j = s] - p_rts)",
             "The two lines above, put together."),
        Step("δ_rt = Σ_s p_rts dp_rts",
             "The mean of `dp` under the weights `p`, which will appear in `da`.  It is not the `δ_ij` of other "
             "pages."),
        Step("= Σ_s p_rts Σ_i dy_rti v_si",
             "`dp_rts` written out."),
        Step("= Σ_i dy_rti y_rti",
             "The sum over `s` first: `Σ_s p_rts v_si` is `y_rti`.  So `da` can be computed for a few keys at a time, "
             "without the other weights of the row.",
             "np.sum(rows(dy * y), axis=-1, keepdims=True)"),
        Step("da_rts = Σ_j dp_rtj ∂p_rtj/∂a_rts",
             "One score changes all weights of its query: the chain rule sums over the keys, here with the index `j`."),
        Step("= p_rts (dp_rts - δ_rt)",
             "The bracket leaves `dp_rts p_rts`.  What is subtracted is `p_rts` times `Σ_j dp_rtj p_rtj`, which is "
             "`δ_rt`.",
             "da = p * (dp - np.sum(rows(dy * y), axis=-1, keepdims=True))"),
        Step("(1 - m_ts) da_rts = 0",
             "The weight of a hidden key is 0 for all scores, so no gradient reaches its score.", extra=True),
        Step("dbias_rts = da_rts",
             "The bias is in `a` with the factor 1.",
             "dbias = None if bias is None else summed_like(bias, by_head(da, q))"),
        Step("du_rts = da_rts",
             "So is `u`."),
        Step("dz_rts = du_rts (1 - (u_rts / c)²)",
             "The derivative of `tanh x` is `1 - tanh² x`.  The `c` before it and the `1/c` within cancel, and "
             "`tanh(z/c)` is `u/c`.",
             "dz = da if softcap is None else da * (1 - (u / softcap) ** 2)"),
        Step("dq_rti = scale Σ_s dz_rts k_si",
             "`q_rti` is in the scores of its query for all keys `s`.",
             "return (dz @ k).reshape(q.shape), dz.swapaxes(-1, -2) @ rows(q), dv, None, None, dbias"),
        Step("dk_si = scale Σ_rt dz_rts q_rti",
             "`k_si` is in the scores of its key for all queries `t` of all heads `r`.",
             "return (dz @ k).reshape(q.shape), dz.swapaxes(-1, -2) @ rows(q), dv, None, None, dbias"),
        Step("y_rti = 0, dq_rti = 0 if query t sees no key",
             "All its scores are -∞ and the code sets its `lse_rt` to 0, so all its weights are 0, and with them every"
             " term above that has one.", extra=True, check=query_without_a_key),
    ))
