"""Layers that run several times, and a table as two factors: see through() and look_up() in pyllama/models/layers.py.

Arrays      ids [T], integers: the tokens; z [T V] out, the scores.
            m [L], integers: the layer whose weights each run has, in any
            order and any number of times.
            W [V E] is the table and P [D E] the projection; together they
            are the embeddings and the output matrix, W Pᵀ.
            M [G F D], N [G D F] are the matrices of G layers, which run L
            times in all.  The layer is the smallest with a residual; any
            other one shares in the same way.

Forward     Run l has the weights of layer m(l).  As matrices of its own:

            A_lfd = M_{m(l),f,d}
            C_ldf = N_{m(l),d,f}

            Both factors are used twice, to look up and to score:

            Wx_we = W_we
            Wz_we = W_we
            Px_de = P_de
            Pz_de = P_de

            u is what a run gets, y is what it passes on:

            r_te = Wx_{ids(t),e}
            u_ltd = y_{l-1,t,d} + [l = 0] Σ_e r_te Px_de
            a_ltf = Σ_d A_lfd u_ltd
            h_ltf = tanh a_ltf
            y_ltd = u_ltd + Σ_f C_ldf h_ltf

            The scores x (W Pᵀ)ᵀ, in the order that needs no [V D] matrix:

            s_te = Σ_d y_{L-1,t,d} Pz_de
            z_tw = Σ_e s_te Wz_we

Backward    The scores:

            dWz_we = Σ_t dz_tw s_te
            ds_te = Σ_w dz_tw Wz_we
            dPz_de = Σ_t ds_te y_{L-1,t,d}

            From run to run, the last one first:

            dy_ltd = du_{l+1,t,d} + [l = L - 1] Σ_e ds_te Pz_de
            dC_ldf = Σ_t dy_ltd h_ltf
            da_ltf = (1 - h_ltf²) Σ_d C_ldf dy_ltd
            dA_lfd = Σ_t da_ltf u_ltd
            du_ltd = dy_ltd + Σ_f A_lfd da_ltf

            The lookup:

            dPx_de = Σ_t du_0td r_te
            dr_te = Σ_d du_0td Px_de
            dWx_we = Σ_t [w = ids_t] dr_te

            Each weight gets the gradients of all of its uses:

            dM_gfd = Σ_l [g = m_l] dA_lfd
            dN_gdf = Σ_l [g = m_l] dC_ldf
            dW_we = dWx_we + dWz_we
            dP_de = dPx_de + dPz_de
"""
import numpy as np

from pyllama.models.layers import feed_forward, look_up, through, token_scores, with_head
from pyllama.study.derivation import Derivation, Step

SIZES = {"T": 3, "V": 4, "E": 2, "D": 3, "F": 2, "G": 2, "L": 4}


def run(u, layer, _):
    """One run of a layer, with its back."""
    a, feed_back = feed_forward(u, layer["M"], layer["N"], "tanh")

    def back(dy):
        du, d_in, d_out = feed_back(dy)
        return dy + du, {"M": d_in, "N": d_out}

    return u + a, back


def code(names: dict) -> dict:
    """Both passes of a model of such layers between a table and itself."""
    table = {"weight": names["W"], "projection": names["P"]}
    used = [*dict.fromkeys(names["m"].tolist())]                # m may leave a layer out, which no model stores
    layers = [{name: {"weight": names[name][g]} for name in "MN"} for g in used]
    share = [used.index(g) + 1 for g in names["m"]]
    x, look_up_back = look_up(names["ids"][None], table)
    y, layers_back = through(x, layers, run, share=share)
    z, score_back = token_scores(y, table)
    dy, d_head, _ = score_back(names["dz"][None])
    dx, d_layers, _ = layers_back(dy)
    d_table = look_up_back(dx)
    with_head({}, d_table, d_head, tied=True)
    grads = {f"d{name}": np.zeros_like(names[name]) for name in "MN"}
    for g, d_layer in zip(used, d_layers, strict=True):
        for name in "MN":
            grads[f"d{name}"][g] = d_layer[name]["weight"]
    return {"z": z[0], "dW": d_table["weight"], "dP": d_table["projection"], **grads}


DERIVATION = Derivation(
    title="Layers that run several times, and a table as two factors",
    source="pyllama.models.layers",
    symbols=False,
    arrays={"ids": "T", "m": "L", "W": "V E", "P": "D E", "M": "G F D", "N": "G D F", "dz": "T V"},
    letters={"t": "T", "w": "V", "e": "E", "d": "D", "f": "F", "g": "G", "l": "L"},
    sizes=SIZES,
    fixed=tuple(SIZES),
    implicit=(),
    integers={"ids": "V", "m": "G"},
    loss={"z": "dz"},
    code=code,
    steps=(
        Step("A_lfd = M_{m(l),f,d}", "The run's own matrix, which is that of its layer.",
             "x, layer_back = run(x, layers[place], i)"),
        Step("C_ldf = N_{m(l),d,f}", "The same for the second matrix."),
        Step("Wx_we = W_we", "The rows that are looked up.", 'y, embedding_back = embedding(ids, p["weight"])'),
        Step("Wz_we = W_we", "The rows that score."),
        Step("Px_de = P_de", "From the table's width to the model's.", 'y, project_back = linear(y, p["projection"])'),
        Step("Pz_de = P_de", "And back."),
        Step("r_te = Wx_{ids(t),e}", "A row of `E` numbers for each token."),
        Step("u_ltd = y_{l-1,t,d} + [l = 0] Σ_e r_te Px_de",
             "The first run gets the projected rows, every other one what the run before it passes on."),
        Step("a_ltf = Σ_d A_lfd u_ltd", "Every run reads another input, so the same weights give another output."),
        Step("h_ltf = tanh a_ltf", "The activation."),
        Step("y_ltd = u_ltd + Σ_f C_ldf h_ltf", "The residual."),
        Step("s_te = Σ_d y_{L-1,t,d} Pz_de", "The output, at the width of the table.",
             'y, project_back = linear(x, table["projection"].T)'),
        Step("z_tw = Σ_e s_te Wz_we", "`E` products for each score instead of `D`."),

        Step("dWz_we = Σ_t dz_tw s_te", "`z` is linear in `Wz`.", "dy, d_others = project_back(dz)"),
        Step("ds_te = Σ_w dz_tw Wz_we", "`s` is in the scores of all words."),
        Step("dPz_de = Σ_t ds_te y_{L-1,t,d}", "`s` is linear in `Pz`: this is the backward pass of a product with "
             "`Pᵀ`, so it is turned.", 'return dx, d_others | {"projection": d_projection.T}'),
        Step("dy_ltd = du_{l+1,t,d} + [l = L - 1] Σ_e ds_te Pz_de",
             "What a run passes on has one use: the next run, or the scores."),
        Step("dC_ldf = Σ_t dy_ltd h_ltf", "`y` is linear in the run's own matrix."),
        Step("da_ltf = (1 - h_ltf²) Σ_d C_ldf dy_ltd", "Through the tanh (see tanh)."),
        Step("dA_lfd = Σ_t da_ltf u_ltd", "The same for the first matrix, with the input that this run read."),
        Step("du_ltd = dy_ltd + Σ_f A_lfd da_ltf", "The residual and the branch.",
             "dx, *other, d_layer = layer_back(dx)"),
        Step("dPx_de = Σ_t du_0td r_te", "The first input is linear in `Px`."),
        Step("dr_te = Σ_d du_0td Px_de", "And in the rows."),
        Step("dWx_we = Σ_t [w = ids_t] dr_te", "A row is read wherever its token stands (see embedding).",
             'return {"weight": embedding_back(de)[1], "projection": d_projection}'),
        Step("dM_gfd = Σ_l [g = m_l] dA_lfd",
             "The slope of a run's matrix by its layer's is 1, and 0 by any other one's.  So the gradients of its "
             "runs add, as those of one matrix at several positions do.",
             "d_layers[place] = summed(d_layers[place], d_layer) if place in d_layers else d_layer"),
        Step("dN_gdf = Σ_l [g = m_l] dC_ldf", "The same."),
        Step("dW_we = dWx_we + dWz_we", "Both uses of the table.", "d_table |= summed(d_table, d_head)"),
        Step("dP_de = dPx_de + dPz_de", "And both of the projection: whoever ties the table alone and forgets it loses "
             "half of its gradient."),
    ))
