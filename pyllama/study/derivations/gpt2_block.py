"""A block of GPT-2: see block() in pyllama/models/gpt2.py.

Arrays      x [B T D] in, y [B T D] out.  The formulas leave B out.
            h counts the H heads, i the K numbers of a head.
            Matrices    Wq, Wk, Wv [D H K] side by side in attn.c_attn,
                        Wo [H K D] in attn.c_proj; Wm [D F] in mlp.c_fc,
                        Wy [F D] in mlp.c_proj: inputs first
            Biases      bq, bk, bv [H K], bo [D], bm [F], by [D]
            Norms       γ, β and γ', β' [D]: ln_1 and ln_2

Forward     The first norm, which subtracts the mean and adds a bias (see
            layer_norm):

            c_td = x_td - mean_e x_te
            ρ_t = (mean_d c_td² + ε)^-½
            m_td = c_td ρ_t
            n_td = γ_d m_td + β_d

            Causal attention.  Nothing is rotated: the positions were added to
            the embeddings.

            q_hti = Σ_d Wq_dhi n_td + bq_hi
            k_hti = Σ_d Wk_dhi n_td + bk_hi
            v_hti = Σ_d Wv_dhi n_td + bv_hi
            z_hts = Σ_i q_hti k_hsi / √K
            w_hts = [s ≤ t] exp(z_hts)
            p_hts = w_hts / Σ_s w_hts
            o_hti = Σ_s p_hts v_hsi
            a_td = Σ_hi Wo_hid o_hti + bo_d
            x'_td = x_td + a_td

            The second norm, and a network without a gate (see gelu):

            c'_td = x'_td - mean_e x'_te
            ρ'_t = (mean_d c'_td² + ε)^-½
            m'_td = c'_td ρ'_t
            n'_td = γ'_d m'_td + β'_d
            u_tf = Σ_d Wm_df n'_td + bm_f
            τ(ξ) = tanh(√(2/π) (ξ + 0.044715 ξ³))
            φ(ξ) = ½ ξ (1 + τ(ξ))
            g_tf = φ(u_tf)
            y_td = x'_td + Σ_f Wy_fd g_tf + by_d

Backward    The network:

            dg_tf = Σ_d Wy_fd dy_td
            dWy_fd = Σ_Bt g_tf dy_td
            dby_d = Σ_Bt dy_td
            τ'(ξ) = (1 - τ(ξ)²) √(2/π) (1 + 3 · 0.044715 ξ²)
            φ'(ξ) = ½ (1 + τ(ξ)) + ½ ξ τ'(ξ)
            du_tf = dg_tf φ'(u_tf)
            dWm_df = Σ_Bt n'_td du_tf
            dbm_f = Σ_Bt du_tf
            dn'_td = Σ_f Wm_df du_tf

            The second norm, and both ways out of x':

            dγ'_d = Σ_Bt dn'_td m'_td
            dβ'_d = Σ_Bt dn'_td
            dm'_td = γ'_d dn'_td
            η'_td = dm'_td - mean_e dm'_te - m'_td mean_e m'_te dm'_te
            dx'_td = dy_td + ρ'_t η'_td

            Attention:

            da_td = dx'_td
            dWo_hid = Σ_Bt o_hti da_td
            dbo_d = Σ_Bt da_td
            do_hti = Σ_d Wo_hid da_td
            dv_hsi = Σ_t p_hts do_hti
            dp_hts = Σ_i do_hti v_hsi
            dz_hts = p_hts (dp_hts - Σ_s p_hts dp_hts)
            dq_hti = Σ_s dz_hts k_hsi / √K
            dk_hsi = Σ_t dz_hts q_hti / √K
            dWq_dhi = Σ_Bt n_td dq_hti
            dWk_dhi = Σ_Bt n_td dk_hti
            dWv_dhi = Σ_Bt n_td dv_hti

            The biases.  That of the keys learns nothing:

            dbq_hi = Σ_Bt dq_hti
            dbv_hi = Σ_Bt dv_hti
            Σ_s dz_hts = 0
            dbk_hi = Σ_Bs dk_hsi = 0

            The first norm, and both ways out of x:

            dn_td = Σ_hi (Wq_dhi dq_hti + Wk_dhi dk_hti + Wv_dhi dv_hti)
            dγ_d = Σ_Bt dn_td m_td
            dβ_d = Σ_Bt dn_td
            dm_td = γ_d dn_td
            η_td = dm_td - mean_e dm_te - m_td mean_e m_te dm_te
            dx_td = dx'_td + ρ_t η_td
"""
import numpy as np

from pyllama import params
from pyllama.models import gpt2
from pyllama.study.derivation import Derivation, Step

# The names of the derivation and those of the model; c_attn, which has three of them, is apart.
NAMES = {"γ": "ln_1.weight", "β": "ln_1.bias", "γ'": "ln_2.weight", "β'": "ln_2.bias", "Wo": "attn.c_proj.weight",
         "bo": "attn.c_proj.bias", "Wm": "mlp.c_fc.weight", "bm": "mlp.c_fc.bias", "Wy": "mlp.c_proj.weight",
         "by": "mlp.c_proj.bias"}
PROJECTED = {"weight": ("Wq", "Wk", "Wv"), "bias": ("bq", "bk", "bv")}
SIZES = {"B": 2, "T": 3, "D": 4, "H": 2, "K": 2, "F": 3}


def in_model(name: str, a: np.ndarray) -> np.ndarray:
    """The array of the model: its heads are in one axis."""
    if name == "Wo":
        return a.reshape(-1, a.shape[-1])
    return a.reshape(*a.shape[:-2], -1) if name in (*PROJECTED["weight"], *PROJECTED["bias"]) else a


def code(names: dict) -> dict:
    """Both passes of the model's block."""
    c = gpt2.GPT2Config(n_embd=SIZES["D"], n_head=SIZES["H"], n_inner=SIZES["F"], n_layer=1, vocab_size=1,
                        layer_norm_epsilon=float(names["ε"]))
    given = {theirs: in_model(name, names[name]) for name, theirs in NAMES.items()}
    given |= {f"attn.c_attn.{leaf}": np.concatenate([in_model(name, names[name]) for name in those], axis=-1)
              for leaf, those in PROJECTED.items()}
    p = params.named(gpt2.init(c, dtype="float64")["transformer"]["h"][0], given)
    y, back = gpt2.block(names["x"], p, c)
    dx, dp = back(names["dy"])
    grads = dict(params.leaves(dp))
    found = {name: grads[theirs] for name, theirs in NAMES.items()}
    for leaf, those in PROJECTED.items():
        found |= zip(those, np.split(grads[f"attn.c_attn.{leaf}"], 3, axis=-1), strict=True)
    return {"y": y, "dx": dx} | {f"d{name}": grad.reshape(names[name].shape) for name, grad in found.items()}


DERIVATION = Derivation(
    title="A block of GPT-2: biases, norms with a mean, and GELU",
    source="pyllama.models.gpt2",
    symbols=False,
    arrays={"x": "B T D", "dy": "B T D", "γ": "D", "β": "D", "γ'": "D", "β'": "D", "Wq": "D H K", "Wk": "D H K",
            "Wv": "D H K", "bq": "H K", "bk": "H K", "bv": "H K", "Wo": "H K D", "bo": "D", "Wm": "D F", "bm": "F",
            "Wy": "F D", "by": "D"},
    letters={"t": "T", "s": "T", "d": "D", "e": "D", "h": "H", "i": "K", "f": "F"},
    sizes=SIZES,
    fixed=tuple(SIZES),
    implicit=("B",),
    constants={"ε": ""},
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("c_td = x_td - mean_e x_te", "The norm of LLaMA leaves this out."),
        Step("ρ_t = (mean_d c_td² + ε)^-½", "One over the standard deviation of a position."),
        Step("m_td = c_td ρ_t", "The normalized vector, before its weights."),
        Step("n_td = γ_d m_td + β_d", "A scale and a shift for each column."),
        Step("q_hti = Σ_d Wq_dhi n_td + bq_hi",
             "One product makes queries, keys and values; here they are apart.  Matrices are stored with the inputs "
             "first.", 'qkv, in_back = convolve(x, p["c_attn"])'),
        Step("k_hti = Σ_d Wk_dhi n_td + bk_hi", "A key for each head: no heads share one."),
        Step("v_hti = Σ_d Wv_dhi n_td + bv_hi", "The values."),
        Step("z_hts = Σ_i q_hti k_hsi / √K", "How well a key fits a query."),
        Step("w_hts = [s ≤ t] exp(z_hts)", "No position sees a later one.",
             "y, attention_back = multi_head(*np.split(qkv, 3, axis=-1), c.n_head, mask=mask, segments=segments, "
             "causal=True,"),
        Step("p_hts = w_hts / Σ_s w_hts", "Softmax over the keys that are seen."),
        Step("o_hti = Σ_s p_hts v_hsi", "A mean of values, with the weights `p`."),
        Step("a_td = Σ_hi Wo_hid o_hti + bo_d", "All heads, back in the width of the stream.",
             'y, out_back = convolve(y, p["c_proj"])'),
        Step("x'_td = x_td + a_td", "The residual: the norm is inside of the branch, and the sum is not normalized.",
             'branch = {"eps": c.layer_norm_epsilon, "norm_first": True, "rate": c.resid_pdrop}'),
        Step("c'_td = x'_td - mean_e x'_te", "The second norm is the first one again, with other weights."),
        Step("ρ'_t = (mean_d c'_td² + ε)^-½", "As above."),
        Step("m'_td = c'_td ρ'_t", "As above."),
        Step("n'_td = γ'_d m'_td + β'_d", "As above."),
        Step("u_tf = Σ_d Wm_df n'_td + bm_f", "To the wider layer: one matrix, where LLaMA has a gate and a second "
             "one."),
        Step("τ(ξ) = tanh(√(2/π) (ξ + 0.044715 ξ³))",
             "The approximation of erf that GPT-2 was trained with (see gelu)."),
        Step("φ(ξ) = ½ ξ (1 + τ(ξ))", "GELU: near `ξ` for large numbers, near 0 for very negative ones."),
        Step("g_tf = φ(u_tf)", "Each number by itself."),
        Step("y_td = x'_td + Σ_f Wy_fd g_tf + by_d", "Back to the width of the stream, and the second residual.",
             "z, feed_back = residual(lambda n: feed_forward(n, *p[\"mlp\"].values(), c.activation_function, "
             "convolve),"),

        Step("dg_tf = Σ_d Wy_fd dy_td", "`g_tf` is in every column of its position with the weight `Wy_fd`."),
        Step("dWy_fd = Σ_Bt g_tf dy_td", "A weight is used at all positions of all sequences, so its gradient is a "
             "sum over them.", 'return dx, {"weight": dw.T, "bias": db}'),
        Step("dby_d = Σ_Bt dy_td", "A bias is added at all positions, with the slope 1.  The same for each bias "
             "below."),
        Step("τ'(ξ) = (1 - τ(ξ)²) √(2/π) (1 + 3 · 0.044715 ξ²)", "The chain rule: the slope of tanh is 1 - tanh², "
             "and the rest is the slope of the polynomial."),
        Step("φ'(ξ) = ½ (1 + τ(ξ)) + ½ ξ τ'(ξ)", "The product rule for `½ ξ (1 + τ(ξ))`."),
        Step("du_tf = dg_tf φ'(u_tf)", "Each `g` depends on one `u` alone, so there is no sum."),
        Step("dWm_df = Σ_Bt n'_td du_tf", "`u` is linear in `Wm`, with the slope `n'`."),
        Step("dbm_f = Σ_Bt du_tf", "The slope is 1."),
        Step("dn'_td = Σ_f Wm_df du_tf", "`n'` has a single use, where LLaMA's has two."),
        Step("dγ'_d = Σ_Bt dn'_td m'_td", "`n'` is linear in `γ'`."),
        Step("dβ'_d = Σ_Bt dn'_td", "And in `β'`, with the slope 1."),
        Step("dm'_td = γ'_d dn'_td", "`m'` reaches the loss through `n'` alone."),
        Step("η'_td = dm'_td - mean_e dm'_te - m'_td mean_e m'_te dm'_te",
             "The backward pass of the norm (see layer_norm), without its factor `ρ'`.  The first mean is there "
             "because the forward pass subtracted one; RMSNorm has the second one only."),
        Step("dx'_td = dy_td + ρ'_t η'_td",
             "`x'` has two uses, the residual and the branch.  In the residual its slope is 1, so `dy` comes through "
             "unchanged.", "dy, d_norm2, *d_mlp = feed_back(dz)"),
        Step("da_td = dx'_td", "`x'` is the sum of `x` and `a`."),
        Step("dWo_hid = Σ_Bt o_hti da_td", "`a` is linear in `Wo`."),
        Step("dbo_d = Σ_Bt da_td", "And in its bias."),
        Step("do_hti = Σ_d Wo_hid da_td", "Each head gets its part.", "dy, d_out = out_back(dy)"),
        Step("dv_hsi = Σ_t p_hts do_hti", "A value is in the means of all queries that see it."),
        Step("dp_hts = Σ_i do_hti v_hsi", "`o` is linear in `p`."),
        Step("dz_hts = p_hts (dp_hts - Σ_s p_hts dp_hts)", "The backward pass of softmax (see softmax)."),
        Step("dq_hti = Σ_s dz_hts k_hsi / √K", "A query is in the scores of all its keys."),
        Step("dk_hsi = Σ_t dz_hts q_hti / √K", "A key is in the scores of all its queries."),
        Step("dWq_dhi = Σ_Bt n_td dq_hti", "`q` is linear in `Wq`.",
             "dx, d_in = in_back(np.concatenate(attention_back(dy), axis=-1))"),
        Step("dWk_dhi = Σ_Bt n_td dk_hti", "`k` is linear in `Wk`."),
        Step("dWv_dhi = Σ_Bt n_td dv_hti", "`v` is linear in `Wv`."),
        Step("dbq_hi = Σ_Bt dq_hti", "The slope is 1."),
        Step("dbv_hi = Σ_Bt dv_hti", "The slope is 1."),
        Step("Σ_s dz_hts = 0",
             "The weights of a query always sum to 1, so moving all its scores together changes nothing: their "
             "gradients cancel."),
        Step("dbk_hi = Σ_Bs dk_hsi = 0",
             "In `Σ_s dk_hsi` the sum over `s` reaches `dz` alone, which is the line above.  A bias of the keys adds "
             "`Σ_i q_hti bk_hi` to all scores of a query alike, and softmax does not see it.  In floating point its "
             "gradient is not 0 but rounding."),
        Step("dn_td = Σ_hi (Wq_dhi dq_hti + Wk_dhi dk_hti + Wv_dhi dv_hti)",
             "`n` has three uses, and their gradients add."),
        Step("dγ_d = Σ_Bt dn_td m_td", "As for the second norm."),
        Step("dβ_d = Σ_Bt dn_td", "As for the second norm."),
        Step("dm_td = γ_d dn_td", "As for the second norm."),
        Step("η_td = dm_td - mean_e dm_te - m_td mean_e m_te dm_te", "As for the second norm."),
        Step("dx_td = dx'_td + ρ_t η_td", "The residual again: what comes through unchanged, and what comes through "
             "the branch.", "dx, d_norm1, d_attention = attention_back(dy)"),
    ))
