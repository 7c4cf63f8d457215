"""A residual branch of BERT, whose norm comes last: see residual() and feed_forward() in pyllama/models/layers.py.

Arrays      x [B T D] in, y [B T D] out.  The formulas leave B out.
            Matrices    Wm [F D] in intermediate.dense, Wy [D F] in
                        output.dense
            Biases      bm [F], by [D]
            Norm        γ, β [D]: output.LayerNorm

Forward     The branch (see gelu):

            u_tf = Σ_d Wm_fd x_td + bm_f
            Φ(ξ) = ½ (1 + erf(ξ/√2))
            g_tf = u_tf Φ(u_tf)
            a_td = Σ_f Wy_df g_tf + by_d

            The residual, and then the norm of the sum (see layer_norm):

            s_td = x_td + a_td
            c_td = s_td - mean_e s_te
            ρ_t = (mean_d c_td² + ε)^-½
            m_td = c_td ρ_t
            y_td = γ_d m_td + β_d

Backward    The norm comes first now, and the gradient of the residual passes
            through it, too:

            dγ_d = Σ_Bt dy_td m_td
            dβ_d = Σ_Bt dy_td
            dm_td = γ_d dy_td
            ds_td = ρ_t (dm_td - mean_e dm_te - m_td mean_e m_te dm_te)
            Σ_d ds_td = 0

            The branch:

            da_td = ds_td
            dWy_df = Σ_Bt da_td g_tf
            dby_d = Σ_Bt da_td
            dg_tf = Σ_d Wy_df da_td
            Φ'(ξ) = exp(-ξ²/2) / √(2π)
            du_tf = dg_tf (Φ(u_tf) + u_tf Φ'(u_tf))
            dWm_fd = Σ_Bt du_tf x_td
            dbm_f = Σ_Bt du_tf
            dx_td = ds_td + Σ_f Wm_fd du_tf
"""
from pyllama.models.layers import feed_forward, residual
from pyllama.rng import NO_DRAW
from pyllama.study.derivation import Derivation, Step


def code(names: dict) -> dict:
    """Both passes of the branch, as bert.block has it."""
    inner, outer = ({"weight": names[f"W{one}"], "bias": names[f"b{one}"]} for one in "my")
    y, back = residual(lambda n: feed_forward(n, inner, outer, "gelu"), names["x"],
                       {"weight": names["γ"], "bias": names["β"]}, eps=float(names["ε"]), norm_first=False, rate=0.0,
                       draw=NO_DRAW)
    dx, d_norm, d_inner, d_outer = back(names["dy"])
    return {"y": y, "dx": dx, "dγ": d_norm["weight"], "dβ": d_norm["bias"], "dWm": d_inner["weight"],
            "dbm": d_inner["bias"], "dWy": d_outer["weight"], "dby": d_outer["bias"]}


DERIVATION = Derivation(
    title="A residual branch of BERT, whose norm comes last",
    source="pyllama.models.layers",
    symbols=False,
    arrays={"x": "B T D", "dy": "B T D", "Wm": "F D", "bm": "F", "Wy": "D F", "by": "D", "γ": "D", "β": "D"},
    letters={"t": "T", "d": "D", "e": "D", "f": "F"},
    sizes={"B": 2, "T": 2, "D": 3, "F": 4},
    implicit=("B",),
    constants={"ε": ""},
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("u_tf = Σ_d Wm_fd x_td + bm_f", "The branch reads the stream as it is: the branch before has "
             "normalized it.", "h, in_back = project(x, p_in)"),
        Step("Φ(ξ) = ½ (1 + erf(ξ/√2))", "The probability that a normal number is below `ξ`."),
        Step("g_tf = u_tf Φ(u_tf)", "GELU, exactly; GPT-2 has an approximation.",
             "h, activation_back = ACTIVATIONS[activation](h)"),
        Step("a_td = Σ_f Wy_df g_tf + by_d", "Back to the width of the stream.", "y, out_back = project(h, p_out)"),
        Step("s_td = x_td + a_td", "The residual.", "z = total(x, y)"),
        Step("c_td = s_td - mean_e s_te", "Without its mean.", "z, norm_back = layer_normalize(z, p, eps)"),
        Step("ρ_t = (mean_d c_td² + ε)^-½", "One over the standard deviation."),
        Step("m_td = c_td ρ_t", "The normalized sum, before its weights."),
        Step("y_td = γ_d m_td + β_d", "What the next branch reads always has the same size."),
        Step("dγ_d = Σ_Bt dy_td m_td", "`y` is linear in `γ`.", "dz, d_norm = norm_back(dz)"),
        Step("dβ_d = Σ_Bt dy_td", "And in `β`, with the slope 1."),
        Step("dm_td = γ_d dy_td", "`m` is in `y` with the factor `γ`."),
        Step("ds_td = ρ_t (dm_td - mean_e dm_te - m_td mean_e m_te dm_te)",
             "The backward pass of layer_norm.  In a block with the norm first, `dy` itself would be here, and `ρ` "
             "would scale the branch alone.  So with the norm last, no path leads past the norms: the gradient is "
             "multiplied by a `ρ` in each branch, which is why such models need a warmup (Xiong et al., 2020)."),
        Step("Σ_d ds_td = 0", "Adding the same number to a whole row changes nothing, because the norm subtracts the "
             "mean: the row's gradient has no such part."),
        Step("da_td = ds_td", "`s` is the sum of `x` and `a`."),
        Step("dWy_df = Σ_Bt da_td g_tf", "`a` is linear in `Wy`, at all positions.", "dh, d_out = out_back(dy)"),
        Step("dby_d = Σ_Bt da_td", "And in its bias, with the slope 1."),
        Step("dg_tf = Σ_d Wy_df da_td", "`g_tf` is in every column of its position."),
        Step("Φ'(ξ) = exp(-ξ²/2) / √(2π)", "The density of a normal number (see gelu)."),
        Step("du_tf = dg_tf (Φ(u_tf) + u_tf Φ'(u_tf))", "The product rule for `u Φ(u)`.",
             "dx, d_in = in_back(*activation_back(dh))"),
        Step("dWm_fd = Σ_Bt du_tf x_td", "`u` is linear in `Wm`."),
        Step("dbm_f = Σ_Bt du_tf", "And in its bias."),
        Step("dx_td = ds_td + Σ_f Wm_fd du_tf", "`x` has two uses, the residual and the branch, and their gradients "
             "add.", "return total(dz, dn), d_norm, *d_f"),
    ))
