"""Softmax over keys that come block by block: see csrc/cpu/attention.c.

Sources     Milakov & Gimelshein, 2018; Dao et al., 2022

Arrays      a [T N C], the scores of T queries and N blocks of C keys;
            v [N C K], the values; y [T K] out.  The formulas leave T out.

Forward     All keys at once, as in ops/attention.py:

            lse = log Σ_nc exp(a_nc)
            p_nc = exp(a_nc - lse)
            y_i = Σ_nc p_nc v_nci

            Block after block.  h is the highest score of a block, m that of
            all blocks so far:

            h_n = max_c a_nc
            m_n = [n = 0] h_n + [n > 0] max(m_{n-1}, h_n)

            Before the numbers of a block are added, the sums so far shrink
            by the factor f:

            f_n = exp(m_{n-1} - m_n)
            l_n = f_n l_{n-1} + Σ_c exp(a_nc - m_n)
            u_ni = f_n u_{n-1,i} + Σ_c exp(a_nc - m_n) v_nci

            Then they are the sums over all keys so far, as if m_n had been
            known from the beginning:

            exp(z - m_{n-1}) f_n = exp(z - m_n)
            l_n = Σ_{j,c : j ≤ n} exp(a_jc - m_n)
            u_ni = Σ_{j,c : j ≤ n} exp(a_jc - m_n) v_jci

            After the last block:

            m_{N-1} = max_nc a_nc
            max_nc exp(a_nc - m_{N-1}) = 1
            m_{N-1} + log l_{N-1} = lse
            u_{N-1,i} / l_{N-1} = y_i

            Or each block for itself, and joined at the end:

            λ_n = log Σ_c exp(a_nc)
            w_ni = Σ_c exp(a_nc - λ_n) v_nci
            log Σ_n exp(λ_n) = lse
            Σ_n exp(λ_n - lse) w_ni = y_i

Backward    m does not count:

            ∂(u_{N-1,i} / l_{N-1})/∂m_n = 0
            ∂(u_{N-1,i} / l_{N-1})/∂a_nc = p_nc (v_nci - y_i)

            So the backward pass is that of attention, and needs lse alone to
            compute the weights of any block again:

            da_nc = p_nc Σ_i dy_i (v_nci - y_i)
            dv_nci = Σ_T p_nc dy_i
"""
import numpy as np

from pyllama.ops import attention
from pyllama.study.derivation import Derivation, Step


def code(names: dict) -> dict:
    """Both passes of the op, by its kernel if there is one.  Its scores are a: the keys are unit vectors."""
    a, v = names["a"].reshape(len(names["a"]), -1), names["v"].reshape(-1, names["v"].shape[-1])
    keys, width = len(v), v.shape[1]

    def wide(x):
        return np.pad(x, ((0, 0), (0, keys - width)))           # the op's values are as wide as its keys

    y, back = attention(a[None, None, None], np.eye(keys)[None, None], wide(v)[None, None], scale=1.0)
    da, _, dv = back(wide(names["dy"])[None, None, None])
    return {"y": y[0, 0, 0, :, :width], "da": da.reshape(names["a"].shape),
            "dv": dv[0, 0, :, :width].reshape(names["v"].shape)}


DERIVATION = Derivation(
    title="Softmax over keys that come block by block",
    source="pyllama.ops.attention",
    arrays={"a": "T N C", "v": "N C K", "dy": "T K"},
    letters={"n": "N", "j": "N", "c": "C", "i": "K"},
    sizes={"T": 1, "N": 2, "C": 2, "K": 1},
    implicit=("T",),
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("lse = log Σ_nc exp(a_nc)", "One number for each query, from which every weight follows.",
             "lse = log_sum_exp(a)"),
        Step("p_nc = exp(a_nc - lse)", "The share of a key in the sum.", "p = np.exp(biased(u, bias, seen, q) - lse)"),
        Step("y_i = Σ_nc p_nc v_nci", "The mean of the values.  Computed like this, all scores of a query are in "
             "memory at once.", "y = (np.exp(a - lse) @ v).reshape(q.shape)"),
        Step("h_n = max_c a_nc",
             "The highest score of block `n` of the keys.  A block fits into the cache, and so does what follows."),
        Step("m_n = [n = 0] h_n + [n > 0] max(m_{n-1}, h_n)",
             "The highest score so far, which can only rise.  Before the first block there is no score."),
        Step("f_n = exp(m_{n-1} - m_n)",
             "1 where the block does not raise the maximum, else below 1, so nothing overflows.  In block 0 there is "
             "no sum that it could shrink; the kernel has -∞ for the maximum before it, and 0 for `f_0`."),
        Step("l_n = f_n l_{n-1} + Σ_c exp(a_nc - m_n)", "The sum of the weights so far, not yet divided."),
        Step("u_ni = f_n u_{n-1,i} + Σ_c exp(a_nc - m_n) v_nci", "The sum of the values so far, with these weights."),
        Step("exp(z - m_{n-1}) f_n = exp(z - m_n)",
             "A product of exponentials adds the exponents, and `m_{n-1}` cancels.  So one factor changes the maximum "
             "that was subtracted from every score `z` so far."),
        Step("l_n = Σ_{j,c : j ≤ n} exp(a_jc - m_n)",
             "By induction: in block 0 it is the line of `l`.  If it holds for `n - 1`, the line above moves each term "
             "from `m_{n-1}` to `m_n`, and the terms of block `n` are added."),
        Step("u_ni = Σ_{j,c : j ≤ n} exp(a_jc - m_n) v_jci", "The same, with a value behind each term."),
        Step("m_{N-1} = max_nc a_nc", "The highest score of the blocks is the highest of all."),
        Step("max_nc exp(a_nc - m_{N-1}) = 1",
             "So `l` is at least 1 at the end: the quotient below never divides by 0, however low all scores are."),
        Step("m_{N-1} + log l_{N-1} = lse", "`exp(m)` times the sum of `exp(a - m)` is the sum of `exp(a)`."),
        Step("u_{N-1,i} / l_{N-1} = y_i", "The factor `exp(-m)` is above and below the fraction, and cancels."),
        Step("λ_n = log Σ_c exp(a_nc)", "What `lse` would be if there were no keys but those of block `n`."),
        Step("w_ni = Σ_c exp(a_nc - λ_n) v_nci", "And what `y` would be then."),
        Step("log Σ_n exp(λ_n) = lse", "`exp(λ_n)` is the sum of its block, and a sum of these sums is the whole."),
        Step("Σ_n exp(λ_n - lse) w_ni = y_i",
             "`exp(λ_n - lse) exp(a_nc - λ_n)` is `p_nc`.  So this is a mean of means, and each block counts with its "
             "share.  So blocks may be computed in any order, and by different threads."),
        Step("∂(u_{N-1,i} / l_{N-1})/∂m_n = 0",
             "Whatever is subtracted from all scores cancels in the quotient.  So the kernel may treat the maximum as "
             "a constant, though it depends on the scores."),
        Step("∂(u_{N-1,i} / l_{N-1})/∂a_nc = p_nc (v_nci - y_i)",
             "The score `a_nc` moves its own weight by `p_nc`, and every weight by `-p_nc` times itself (see softmax): "
             "by `p_nc v_nci - p_nc y_i` together.  All factors `f` are gone."),
        Step("da_nc = p_nc Σ_i dy_i (v_nci - y_i)", "The chain rule over the numbers of `y`.",
             "da = p * (dp - np.sum(rows(dy * y), axis=-1, keepdims=True))"),
        Step("dv_nci = Σ_T p_nc dy_i", "A value is in the mean of every query.", "dv = p.swapaxes(-1, -2) @ rows(dy)"),
    ))
