"""The scores of chosen words and of all others, step by step: see pyllama/ops/top_scores.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Scores of chosen words, and one for all others",
    module="pyllama.ops.top_scores",
    letters={"n": "N", "k": "K", "v": "V"},
    sizes={"N": 2, "V": 4, "K": 2},
    implicit=(),
    integers={"i": "V"},
    constants={"T": "temperature"},
    steps=(
        Step("y_nk = z_{n,i(n,k)}",
             "The scores of the chosen words, in their order.",
             "return (z[rows, i], temperature * lse[:, 0]), (i, np.exp(others - lse))"),
        Step("m_nv = Π_k (1 - [i_nk = v])",
             "A word that is chosen makes one factor 0.",
             "others[rows, i] = -np.inf"),
        Step("u_n = Σ_v m_nv exp(z_nv / T)",
             "What the other words add to the denominator of the softmax at temperature `T`."),
        Step("r_n = T log u_n",
             "The score that one word would need to add as much: `exp(r_n / T)` is `u_n`.",
             "lse = log_sum_exp(others)"),
        Step("o_nv = m_nv exp(z_nv / T) / u_n",
             "The share of each of the other words: they add up to 1."),
        Step("∂r_n/∂z_nv = o_nv",
             "The derivative of `T log u` is `T/u`, and that of `u_n` is `m_nv exp(z_nv / T) / T`."),
        Step("dz_nv = Σ_k [i_nk = v] dy_nk + o_nv dr_n",
             "A chosen word is in one `y`, another one in `r`: one of the two terms is 0.",
             "return chosen.reshape(N, V) + o * dr[:, None], None"),
    ))
