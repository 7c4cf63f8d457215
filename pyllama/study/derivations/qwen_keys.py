"""The keys of Qwen: a bias, and a norm on each head.  See self_attention() in pyllama/models/llama.py.

Arrays      x [B T D] in, y [B T G K] out.  The formulas leave B out.
            g counts the G key heads, i and j the K numbers of a head.
            W [G K D], b [G K]  k_proj, with a bias as in Qwen2;
            γ [K]               k_norm of Qwen3, one for all heads

Forward     Keys with a bias:

            k_tgi = Σ_d W_gid x_td + b_gi

            Each head's numbers are a row of their own (see rms_norm):

            ρ_tg = (mean_i k_tgi² + ε)^-½
            m_tgi = k_tgi ρ_tg
            n_tgi = γ_i m_tgi

            Rotation by position (see rope):

            P = K / 2
            θ_i = base^(-(i - P [i ≥ P]) / P)
            A_tij = δ_ij cos(t θ_i) + ([i = j + P] - [j = i + P]) sin(t θ_i)
            y_tgi = Σ_j A_tij n_tgj

Backward    Back through the rotation, by its transpose:

            dn_tgj = Σ_i A_tij dy_tgi

            All heads at all positions have the same weights γ:

            dγ_i = Σ_Btg dn_tgi m_tgi
            dm_tgi = γ_i dn_tgi

            The mean is one over a head:

            dk_tgi = ρ_tg (dm_tgi - m_tgi mean_j m_tgj dm_tgj)

            The bias and the matrix:

            db_gi = Σ_Bt dk_tgi
            dW_gid = Σ_Bt dk_tgi x_td
            dx_td = Σ_gi W_gid dk_tgi

            What a norm forgets, the gradient does not have: the length of a
            head's keys, up to ε.

            Σ_i dk_tgi k_tgi = ε ρ_tg² Σ_i dm_tgi m_tgi
"""
import numpy as np

from pyllama.models import llama
from pyllama.models.layers import merge_heads, project, split_heads
from pyllama.models.llama_config import Qwen3Config
from pyllama.ops import rope
from pyllama.study.derivation import Derivation, Step


def code(names: dict) -> dict:
    """Both passes of the keys, as self_attention has them."""
    (G, K, D), x = names["W"].shape, names["x"]
    c = Qwen3Config(hidden_size=D, num_attention_heads=G, num_key_value_heads=G, head_dim=K, num_hidden_layers=1,
                    rms_norm_eps=float(names["ε"]))
    k, k_back = project(x, {"weight": names["W"].reshape(-1, D), "bias": names["b"].ravel()})
    n, norm_back = llama.normalize_heads(split_heads(k, G), {"k_norm": {"weight": names["γ"]}}, "k_norm", c)
    y, turn_back = rope(n, base=float(names["base"]))
    dn, = turn_back(names["dy"].swapaxes(1, 2))
    dk, d_norm = norm_back(dn)
    dx, dp = k_back(merge_heads(dk))
    return {"y": y.swapaxes(1, 2), "dx": dx, "dγ": d_norm["k_norm"]["weight"], "db": dp["bias"].reshape(G, K),
            "dW": np.reshape(dp["weight"], (G, K, D))}


DERIVATION = Derivation(
    title="The keys of Qwen: a bias, and a norm on each head",
    source="pyllama.models.llama",
    symbols=False,
    arrays={"x": "B T D", "W": "G K D", "b": "G K", "γ": "K", "dy": "B T G K"},
    letters={"t": "T", "d": "D", "g": "G", "i": "K", "j": "K"},
    sizes={"B": 2, "T": 3, "D": 3, "G": 2, "K": 4},
    fixed=("K",),
    implicit=("B",),
    constants={"ε": "", "base": ""},
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("k_tgi = Σ_d W_gid x_td + b_gi", "LLaMA has no bias here.", 'k, k_back = project(x, p["k_proj"])'),
        Step("ρ_tg = (mean_i k_tgi² + ε)^-½",
             "However long queries and keys become in training, their scores stay bounded.",
             'k, norm_k_back = normalize_heads(split_heads(k, G), p, "k_norm", c)'),
        Step("m_tgi = k_tgi ρ_tg", "The normalized keys of a head."),
        Step("n_tgi = γ_i m_tgi", "The weights have the width of a head."),
        Step("P = K / 2", "The number of pairs in a head."),
        Step("θ_i = base^(-(i - P [i ≥ P]) / P)", "Both halves of a head have the same frequencies."),
        Step("A_tij = δ_ij cos(t θ_i) + ([i = j + P] - [j = i + P]) sin(t θ_i)",
             "The rotation of position `t`, as in llama_block."),
        Step("y_tgi = Σ_j A_tij n_tgj",
             "The bias turns, too.  So it adds something else to the score of each key, and softmax sees it; in GPT-2, "
             "where nothing turns, it does not.",
             "k, turn_k_back = rope(k, **turn)"),
        Step("dn_tgj = Σ_i A_tij dy_tgi", "`n_j` is in every `y_i` with the factor `A_ij`.", "dk, = turn_k_back(dk)"),
        Step("dγ_i = Σ_Btg dn_tgi m_tgi", "One `γ_i` is used by all heads at all positions of all texts.",
             "dk, d_k_norm = norm_k_back(dk)"),
        Step("dm_tgi = γ_i dn_tgi", "`m` reaches the loss through `n` alone."),
        Step("dk_tgi = ρ_tg (dm_tgi - m_tgi mean_j m_tgj dm_tgj)",
             "The backward pass of rms_norm.  No head mixes with another, because each has its own `ρ`."),
        Step("db_gi = Σ_Bt dk_tgi", "The bias is added at all positions, with the slope 1.",
             "dx_k, dwk = k_back(merge_heads(dk))"),
        Step("dW_gid = Σ_Bt dk_tgi x_td", "`k` is linear in `W`."),
        Step("dx_td = Σ_gi W_gid dk_tgi", "`x` is in the keys of all heads."),
        Step("Σ_i dk_tgi k_tgi = ε ρ_tg² Σ_i dm_tgi m_tgi",
             "Twice as long a key gives nearly the same `m`, so the gradient is nearly orthogonal to the key.  What is "
             "left comes from `ε` alone."),
    ))
