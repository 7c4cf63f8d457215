"""Attention of a decoder's layers to an encoder's memory: see pyllama/models/transformer_layers.py.

Arrays      x [B T D], m [B S D] in, y [B T D] out: the target, the memory.
            The formulas leave B out.
            Wq, Wk, Wv [L H K D], Wo [L D H K]: q_proj, k_proj, v_proj and
            out_proj of L layers with H heads of width K.
            The rest of a decoder's layer is left out: masks, norms, biases,
            self-attention and the feed-forward network.

Forward     Each layer has its own keys and values of the same memory:

            k_lhsi = Σ_d Wk_lhid m_sd
            v_lhsi = Σ_d Wv_lhid m_sd

            u is what a layer gets, w is what it passes on:

            u_ltd = w_{l-1,t,d} + [l = 0] x_td
            q_lhti = Σ_d Wq_lhid u_ltd
            z_lhts = Σ_i q_lhti k_lhsi / √K
            p_lhts = exp(z_lhts) / Σ_s exp(z_lhts)
            o_lhti = Σ_s p_lhts v_lhsi
            w_ltd = u_ltd + Σ_hi Wo_ldhi o_lhti
            y_td = w_{L-1,t,d}

Backward    From the last layer to the first.  A layer's output is what the
            next layer gets, and that of the last layer is y:

            dw_ltd = du_{l+1,t,d} + [l = L - 1] dy_td

            Attention (see attention):

            do_lhti = Σ_d Wo_ldhi dw_ltd
            dp_lhts = Σ_i do_lhti v_lhsi
            dz_lhts = p_lhts (dp_lhts - Σ_s p_lhts dp_lhts)

            To the target: along the residual, and through the queries.

            dq_lhti = Σ_s dz_lhts k_lhsi / √K
            du_ltd = dw_ltd + Σ_hi Wq_lhid dq_lhti
            dx_td = du_0td

            To the memory: through the keys and the values of each layer.

            dk_lhsi = Σ_t dz_lhts q_lhti / √K
            dv_lhsi = Σ_t p_lhts do_lhti
            c_lsd = Σ_hi (Wk_lhid dk_lhsi + Wv_lhid dv_lhsi)
            dm_sd = Σ_l c_lsd

            Of the matrices, each in its own layer:

            dWo_ldhi = Σ_Bt dw_ltd o_lhti
            dWq_lhid = Σ_Bt dq_lhti u_ltd
            dWk_lhid = Σ_Bs dk_lhsi m_sd
            dWv_lhid = Σ_Bs dv_lhsi m_sd
"""
import numpy as np

from pyllama.models.layers import through
from pyllama.models.transformer_layers import cross_attention
from pyllama.study.derivation import Derivation, Step

NAMES = {"Wq": "q_proj", "Wk": "k_proj", "Wv": "v_proj", "Wo": "out_proj"}


def as_matrix(name: str, w: np.ndarray) -> np.ndarray:
    """The matrix (out, in) of one layer: the heads are in one axis."""
    return w.reshape(len(w), -1) if name == "Wo" else w.reshape(-1, w.shape[-1])


def code(names: dict) -> dict:
    """Both passes of all layers' cross_attention and residuals; the memory's gradients add as in transformer.decode."""
    memory, heads = names["m"], names["Wq"].shape[1]
    layers = [{ours: {"weight": as_matrix(name, names[name][number])} for name, ours in NAMES.items()}
              for number in range(len(names["Wq"]))]

    def run(u, layer, _):
        a, attention_back = cross_attention(u, memory, layer, heads)

        def back(dw):
            du, dmemory, dp = attention_back(dw)
            return dw + du, dmemory, dp

        return u + a, back

    y, back = through(names["x"], layers, run)
    dx, grads, dmemories = back(names["dy"])
    return {"y": y, "dx": dx, "dm": sum(dmemories)} | {
        f"d{name}": np.stack([dp[ours]["weight"] for dp in grads]).reshape(names[name].shape)
        for name, ours in NAMES.items()}


DERIVATION = Derivation(
    title="Attention to a memory that all layers read",
    source="pyllama.models.transformer_layers",
    symbols=False,
    arrays={"x": "B T D", "m": "B S D", "dy": "B T D", "Wq": "L H K D", "Wk": "L H K D", "Wv": "L H K D",
            "Wo": "L D H K"},
    letters={"t": "T", "s": "S", "d": "D", "h": "H", "i": "K", "l": "L"},
    sizes={"B": 2, "T": 2, "S": 3, "D": 2, "H": 2, "K": 2, "L": 2},
    fixed=("B", "T", "S", "D", "H", "K", "L"),
    implicit=("B",),
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("k_lhsi = Σ_d Wk_lhid m_sd", "What each position of the source offers to this layer.",
             'k, k_back = project(memory, p["k_proj"])'),
        Step("v_lhsi = Σ_d Wv_lhid m_sd", "And what it hands over.  Neither depends on the target.",
             'v, v_back = project(memory, p["v_proj"])'),
        Step("u_ltd = w_{l-1,t,d} + [l = 0] x_td", "The first layer gets the target, every other one what the layer "
             "before it passes on."),
        Step("q_lhti = Σ_d Wq_lhid u_ltd", "Only the queries come from the target.",
             'q, q_back = project(x, p["q_proj"])'),
        Step("z_lhts = Σ_i q_lhti k_lhsi / √K", "How well a position of the source fits one of the target."),
        Step("p_lhts = exp(z_lhts) / Σ_s exp(z_lhts)", "Softmax over the whole source: no position is hidden."),
        Step("o_lhti = Σ_s p_lhts v_lhsi", "A mean of the source's values.",
             "y, heads_back = multi_head(q, *kv, H, **options)"),
        Step("w_ltd = u_ltd + Σ_hi Wo_ldhi o_lhti", "The residual: attention adds to what the layer got.",
             'y, out_back = project(y, p["out_proj"])'),
        Step("y_td = w_{L-1,t,d}", "The output of the last layer."),

        Step("dw_ltd = du_{l+1,t,d} + [l = L - 1] dy_td",
             "What a layer passes on has a single use: the next layer, or the output."),
        Step("do_lhti = Σ_d Wo_ldhi dw_ltd", "`w` is linear in `o`.", "dy, d_out = out_back(dy)"),
        Step("dp_lhts = Σ_i do_lhti v_lhsi", "`o` is linear in `p`."),
        Step("dz_lhts = p_lhts (dp_lhts - Σ_s p_lhts dp_lhts)", "The backward pass of softmax (see softmax).",
             "dq, *dkv = heads_back(dy)"),
        Step("dq_lhti = Σ_s dz_lhts k_lhsi / √K", "A query is in the scores of all positions of the source."),
        Step("du_ltd = dw_ltd + Σ_hi Wq_lhid dq_lhti",
             "`u` has two uses: the residual, with the slope 1, and the queries.",
             "dx, d_q = q_back(dq)"),
        Step("dx_td = du_0td", "The target enters in the first layer, with the slope 1."),
        Step("dk_lhsi = Σ_t dz_lhts q_lhti / √K", "A key is in the scores of all positions of the target."),
        Step("dv_lhsi = Σ_t p_lhts do_lhti", "A value is in the means of all positions of the target."),
        Step("c_lsd = Σ_hi (Wk_lhid dk_lhsi + Wv_lhid dv_lhsi)",
             "What one layer contributes.  Within it, the memory has two uses, so two gradients add.",
             "return total(dm_k, dm_v), {\"k_proj\": d_k, \"v_proj\": d_v}"),
        Step("dm_sd = Σ_l c_lsd",
             "All layers read the same memory: it has as many uses as there are layers, and the gradients of all uses "
             "add.  Only with this sum does the encoder's backward pass begin."),
        Step("dWo_ldhi = Σ_Bt dw_ltd o_lhti",
             "A weight is used at all positions of all sequences, but in its own layer alone."),
        Step("dWq_lhid = Σ_Bt dq_lhti u_ltd", "The same; the queries run over the target."),
        Step("dWk_lhid = Σ_Bs dk_lhsi m_sd", "The keys run over the source."),
        Step("dWv_lhid = Σ_Bs dv_lhsi m_sd", "And the values."),
    ))
