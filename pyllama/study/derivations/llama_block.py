"""A block of LLaMA: see block() in pyllama/models/llama.py.

Arrays      x [B T D] in, y [B T D] out.  The formulas leave B out.
            g counts the G key/value heads, r the R queries of each of them,
            i and j the K numbers of a head, t and s the T positions.
            Matrices    Wq [G R K D], Wk, Wv [G K D], Wo [D G R K] in
                        self_attn: q_proj, k_proj, v_proj, o_proj;
                        Wa, Wu [F D], Wd [D F] in mlp: gate_proj, up_proj,
                        down_proj
            Norms       γ, γ' [D]: input_layernorm, post_attention_layernorm

Forward     The first norm (see rms_norm):

            ρ_t = (mean_d x_td² + ε)^-½
            m_td = x_td ρ_t
            n_td = γ_d m_td

            Queries, keys and values:

            q_grti = Σ_d Wq_grid n_td
            k_gti = Σ_d Wk_gid n_td
            v_gti = Σ_d Wv_gid n_td

            Rotation by position: the pair i, i + P turns by the angle
            t θ_i (see rope).  A is the matrix of this rotation.

            P = K / 2
            θ_i = base^(-(i - P [i ≥ P]) / P)
            A_tij = δ_ij cos(t θ_i) + ([i = j + P] - [j = i + P]) sin(t θ_i)
            q'_grti = Σ_j A_tij q_grtj
            k'_gti = Σ_j A_tij k_gtj

            Causal attention, and the first residual (see attention):

            z_grts = Σ_i q'_grti k'_gsi / √K
            b_grts = [s ≤ t] exp(z_grts)
            p_grts = b_grts / Σ_s b_grts
            o_grti = Σ_s p_grts v_gsi
            a_td = Σ_{g,r,i} Wo_dgri o_grti
            x'_td = x_td + a_td

            The second norm, the gated network and the second residual (see
            swiglu):

            ρ'_t = (mean_d x'_td² + ε)^-½
            m'_td = x'_td ρ'_t
            n'_td = γ'_d m'_td
            c_tf = Σ_d Wa_fd n'_td
            u_tf = Σ_d Wu_fd n'_td
            σ(w) = 1 / (1 + e^-w)
            h_tf = c_tf σ(c_tf) u_tf
            y_td = x'_td + Σ_f Wd_df h_tf

Backward    From the last line to the first.  The gated network:

            dh_tf = Σ_d Wd_df dy_td
            dWd_df = Σ_Bt dy_td h_tf
            dc_tf = dh_tf u_tf σ(c_tf) (1 + c_tf (1 - σ(c_tf)))
            du_tf = dh_tf c_tf σ(c_tf)
            dWa_fd = Σ_Bt dc_tf n'_td
            dWu_fd = Σ_Bt du_tf n'_td
            dn'_td = Σ_f (dc_tf Wa_fd + du_tf Wu_fd)

            The second norm, and both ways out of x':

            dγ'_d = Σ_Bt dn'_td m'_td
            dm'_td = γ'_d dn'_td
            dx'_td = dy_td + ρ'_t (dm'_td - m'_td mean_e m'_te dm'_te)

            Attention:

            da_td = dx'_td
            dWo_dgri = Σ_Bt da_td o_grti
            do_grti = Σ_d Wo_dgri da_td
            dv_gsi = Σ_rt p_grts do_grti
            dp_grts = Σ_i do_grti v_gsi
            dz_grts = p_grts (dp_grts - Σ_s p_grts dp_grts)
            dq'_grti = Σ_s dz_grts k'_gsi / √K
            dk'_gsi = Σ_rt dz_grts q'_grti / √K

            Rotation: the transpose, so that i is summed and not j.

            dq_grtj = Σ_i A_tij dq'_grti
            dk_gtj = Σ_i A_tij dk'_gti

            The three projections of n:

            dWq_grid = Σ_Bt dq_grti n_td
            dWk_gid = Σ_Bt dk_gti n_td
            dWv_gid = Σ_Bt dv_gti n_td
            dn_td = Σ_gi (Σ_r dq_grti Wq_grid + dk_gti Wk_gid + dv_gti Wv_gid)

            The first norm, and both ways out of x:

            dγ_d = Σ_Bt dn_td m_td
            dm_td = γ_d dn_td
            dx_td = dx'_td + ρ_t (dm_td - m_td mean_e m_te dm_te)
"""
import numpy as np

from pyllama import params
from pyllama.models import llama
from pyllama.models.llama_config import LlamaConfig
from pyllama.study.derivation import Derivation, Step

# The names of the derivation and those of the model.
NAMES = {"γ": "input_layernorm.weight", "γ'": "post_attention_layernorm.weight",
         "Wq": "self_attn.q_proj.weight", "Wk": "self_attn.k_proj.weight", "Wv": "self_attn.v_proj.weight",
         "Wo": "self_attn.o_proj.weight", "Wa": "mlp.gate_proj.weight", "Wu": "mlp.up_proj.weight",
         "Wd": "mlp.down_proj.weight"}
INTO_THE_STREAM = "Wo", "Wd"
SIZES = {"B": 2, "T": 2, "D": 2, "G": 2, "R": 2, "K": 4, "F": 3, "V": 3}


def config(**others) -> LlamaConfig:
    """The configuration of these sizes."""
    G, R, D, F, K, V = (SIZES[axis] for axis in "GRDFKV")
    return LlamaConfig(hidden_size=D, intermediate_size=F, num_attention_heads=G * R, num_key_value_heads=G,
                       head_dim=K, vocab_size=V, **others)


def as_matrix(name: str, w: np.ndarray) -> np.ndarray:
    """The array of the model: a matrix (out, in) has its heads in one axis."""
    if w.ndim == 1:
        return w
    return w.reshape(len(w), -1) if name in INTO_THE_STREAM else w.reshape(-1, w.shape[-1])


def code(names: dict) -> dict:
    """Both passes of the model's block."""
    c = config(rope_theta=float(names["base"]), rms_norm_eps=float(names["ε"]))
    layer = llama.init(c, dtype="float64")["model"]["layers"][0]
    p = params.named(layer, {ours: as_matrix(name, names[name]) for name, ours in NAMES.items()})
    y, back = llama.block(names["x"], p, c)
    dx, dp = back(names["dy"])
    grads = dict(params.leaves(dp))
    return {"y": y, "dx": dx} | {f"d{name}": grads[ours].reshape(names[name].shape) for name, ours in NAMES.items()}


DERIVATION = Derivation(
    title="A block of LLaMA: attention and a gated network around a residual stream",
    source="pyllama.models.llama",
    symbols=False,
    arrays={"x": "B T D", "dy": "B T D", "γ": "D", "γ'": "D", "Wq": "G R K D", "Wk": "G K D", "Wv": "G K D",
            "Wo": "D G R K", "Wa": "F D", "Wu": "F D", "Wd": "D F"},
    letters={"t": "T", "s": "T", "d": "D", "e": "D", "g": "G", "r": "R", "i": "K", "j": "K", "f": "F"},
    sizes=SIZES,
    fixed=tuple(SIZES),
    implicit=("B",),
    constants={"ε": "", "base": ""},
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("ρ_t = (mean_d x_td² + ε)^-½",
             "Each position is normalized by itself (see rms_norm): attention sees its direction and not its length.",
             'n, norm1_back = rms_normalize(x, p["input_layernorm"], c)'),
        Step("m_td = x_td ρ_t", "The normalized vector, before its weights."),
        Step("n_td = γ_d m_td", "Each column has a weight of its own."),
        Step("q_grti = Σ_d Wq_grid n_td",
             "What a position looks for.  The rows of one matrix are the queries of all heads.",
             'q, q_back = project(x, p["q_proj"])'),
        Step("k_gti = Σ_d Wk_gid n_td", "What a position offers: one key for the `R` queries of a group.",
             'k, k_back = project(x, p["k_proj"])'),
        Step("v_gti = Σ_d Wv_gid n_td", "What it hands over to the queries that choose it.",
             'v, v_back = project(x, p["v_proj"])'),
        Step("P = K / 2", "The number of pairs in a head."),
        Step("θ_i = base^(-(i - P [i ≥ P]) / P)",
             "The frequencies of rope.  Numbers `i` and `i + P` are a pair, so both halves of a head have the same "
             "ones."),
        Step("A_tij = δ_ij cos(t θ_i) + ([i = j + P] - [j = i + P]) sin(t θ_i)",
             "The turn of rope as a matrix.  With `a` and `b` for a pair and `φ` for its angle, it makes `a cos φ - b "
             "sin φ` of `a`, and `a sin φ + b cos φ` of `b`, which is `P` columns further."),
        Step("q'_grti = Σ_j A_tij q_grtj", "A query turns by the angle of its position.",
             "q, turn_q_back = rope(q, **turn)"),
        Step("k'_gti = Σ_j A_tij k_gtj", "And so does a key, so their product depends on the distance alone.",
             "k, turn_k_back = rope(k, **turn)"),
        Step("z_grts = Σ_i q'_grti k'_gsi / √K", "How well a key fits a query."),
        Step("b_grts = [s ≤ t] exp(z_grts)", "No position sees a later one."),
        Step("p_grts = b_grts / Σ_s b_grts", "Softmax over the keys that are seen."),
        Step("o_grti = Σ_s p_grts v_gsi", "A mean of values, with the weights `p`."),
        Step("a_td = Σ_{g,r,i} Wo_dgri o_grti", "One matrix brings all heads back to the width of the stream.",
             'y, o_back = project(merge_heads(y.reshape(B, H, T, K)), p["o_proj"])'),
        Step("x'_td = x_td + a_td",
             "The residual: what attention computes is added to `x`, and does not replace it.  The sums from block to "
             "block are called the stream, and what is added to it is a branch."),
        Step("ρ'_t = (mean_d x'_td² + ε)^-½", "The second norm is the first one again, with other weights.",
             '(y, n), norm2_back = add_and_normalize(x, a, p["post_attention_layernorm"], c)'),
        Step("m'_td = x'_td ρ'_t", "As above."),
        Step("n'_td = γ'_d m'_td", "As above."),
        Step("c_tf = Σ_d Wa_fd n'_td", "The gate, before its nonlinearity.",
             'g, gate_back = project(x, p["gate_proj"])'),
        Step("u_tf = Σ_d Wu_fd n'_td", "The numbers that the gate lets through.",
             'u, up_back = project(x, p["up_proj"])'),
        Step("σ(w) = 1 / (1 + e^-w)", "The logistic function, between 0 and 1."),
        Step("h_tf = c_tf σ(c_tf) u_tf", "A smooth gate times the numbers.", "h, swiglu_back = swiglu(g, u)"),
        Step("y_td = x'_td + Σ_f Wd_df h_tf", "Back to the width of the stream, and the second residual.",
             "z = total(y, f)"),

        Step("dh_tf = Σ_d Wd_df dy_td", "`h_tf` is in every column of its position with the weight `Wd_df`.",
             'y, down_back = project(h, p["down_proj"])'),
        Step("dWd_df = Σ_Bt dy_td h_tf",
             "One weight is used at all positions of all sequences, so its gradient is a sum over them.  The same for "
             "every weight below."),
        Step("dc_tf = dh_tf u_tf σ(c_tf) (1 + c_tf (1 - σ(c_tf)))",
             "The derivative of `c σ(c)` is `σ + c σ (1 - σ)`, by the product rule (see swiglu).",
             "dg, du = swiglu_back(dh)"),
        Step("du_tf = dh_tf c_tf σ(c_tf)", "`h` is linear in `u`."),
        Step("dWa_fd = Σ_Bt dc_tf n'_td", "`c` is linear in `Wa`, with the slope `n'`."),
        Step("dWu_fd = Σ_Bt du_tf n'_td", "The same for `u`."),
        Step("dn'_td = Σ_f (dc_tf Wa_fd + du_tf Wu_fd)",
             "`n'` has two uses, the gate and the numbers.  By the chain rule their gradients add.",
             'return total(dx_g, dx_u), {"gate_proj": d_gate, "up_proj": d_up, "down_proj": d_down}'),
        Step("dγ'_d = Σ_Bt dn'_td m'_td", "`n'` is linear in `γ'`."),
        Step("dm'_td = γ'_d dn'_td", "`m'` reaches the loss through `n'` alone."),
        Step("dx'_td = dy_td + ρ'_t (dm'_td - m'_td mean_e m'_te dm'_te)",
             "`x'` has two uses.  In the residual its slope is 1, so `dy` comes through unchanged: however deep the "
             "model, this path neither shrinks nor grows.  The other path is the backward pass of the norm (see "
             "rms_norm).",
             "dx, da, d_norm2 = norm2_back(dz, dn)"),
        Step("da_td = dx'_td", "`x'` is the sum of `x` and `a`: both slopes are 1."),
        Step("dWo_dgri = Σ_Bt da_td o_grti", "`a` is linear in `Wo`."),
        Step("do_grti = Σ_d Wo_dgri da_td", "`a` is linear in `o`, too: each head gets its part of the gradient.",
             "dy, do = o_back(dy)"),
        Step("dv_gsi = Σ_rt p_grts do_grti",
             "A value is used by every query that sees it, of all positions `t` and of the `R` heads that share it.",
             "dq, dk, dv, *_ = attention_back(split_heads(dy, H).reshape(B, G, -1, T, K))"),
        Step("dp_grts = Σ_i do_grti v_gsi", "`o` is linear in `p`."),
        Step("dz_grts = p_grts (dp_grts - Σ_s p_grts dp_grts)",
             "The backward pass of softmax (see softmax).  Where `t` does not see `s`, `p` is 0, and so is `dz`."),
        Step("dq'_grti = Σ_s dz_grts k'_gsi / √K", "A query is in the scores of all its keys."),
        Step("dk'_gsi = Σ_rt dz_grts q'_grti / √K", "A key is in the scores of all queries of the `R` heads."),
        Step("dq_grtj = Σ_i A_tij dq'_grti",
             "`q_j` is in every `q'_i`, with the slope `A_ij`.  A sum over the first index is the transpose, which "
             "turns back by the same angle.",
             "dq, = turn_q_back(dq.reshape(B, H, T, K))"),
        Step("dk_gtj = Σ_i A_tij dk'_gti", "The same for keys.", "dk, = turn_k_back(dk)"),
        Step("dWq_grid = Σ_Bt dq_grti n_td", "`q` is linear in `Wq`.", "dx_q, dwq = q_back(merge_heads(dq))"),
        Step("dWk_gid = Σ_Bt dk_gti n_td", "`k` is linear in `Wk`.", "dx_k, dwk = k_back(merge_heads(dk))"),
        Step("dWv_gid = Σ_Bt dv_gti n_td", "`v` is linear in `Wv`.", "dx_v, dwv = v_back(merge_heads(dv))"),
        Step("dn_td = Σ_gi (Σ_r dq_grti Wq_grid + dk_gti Wk_gid + dv_gti Wv_gid)",
             "`n` has three uses, as queries, keys and values, and their gradients add.",
             'dx = total(dx_q, dx_k, dx_v)'),
        Step("dγ_d = Σ_Bt dn_td m_td", "As for the second norm."),
        Step("dm_td = γ_d dn_td", "As for the second norm."),
        Step("dx_td = dx'_td + ρ_t (dm_td - m_td mean_e m_te dm_te)",
             "The residual again: what comes through unchanged, and what comes through the branch.",
             "dn, d_attention = attention_back(drop_a_back(da))"),
    ))
