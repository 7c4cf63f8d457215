"""An LSTM that classifies texts, from the states to the loss: see pyllama/models/lstm.py.

Arrays      f, r [B T D] in, what both directions put out (see
            lstm_through_time); last, label [B], integers: the position of a
            text's last token, its class; loss [] out.
            b counts the texts, c the C classes.
            Wf, Wr [C D], the two halves of classifier.weight; β [C]

Forward     The forward direction has read the whole text at its last token,
            and the reverse direction at its first one:

            z_bc = Σ_d Wf_cd f_{b,last(b),d} + Σ_d Wr_cd r_b0d + β_c
            lse_b = log Σ_c exp(z_bc)
            loss = mean_b (lse_b - z_{b,label(b)})

Backward    From the loss to the scores (see cross_entropy):

            dz_bc = (exp(z_bc - lse_b) - [c = label_b]) dloss / B
            dWf_cd = Σ_b dz_bc f_{b,last(b),d}
            dWr_cd = Σ_b dz_bc r_b0d
            dβ_c = Σ_b dz_bc

            To one state of each direction.  All others get their gradients
            through time, and those of padding none:

            df_btd = [t = last_b] Σ_c dz_bc Wf_cd
            dr_btd = [t = 0] Σ_c dz_bc Wr_cd
"""
import numpy as np

from pyllama.models.layers import class_loss
from pyllama.models.lstm import LstmConfig, classify, last_states
from pyllama.study.derivation import Derivation, Step


def code(names: dict) -> dict:
    """Both passes from the states to the loss; the first D columns are the forward direction's."""
    f, D = names["f"], names["f"].shape[-1]
    c = LstmConfig(hidden_size=D, num_labels=len(names["β"]))
    present = np.arange(f.shape[1]) <= names["last"][:, None]
    y, states_back = last_states(np.concatenate([f, names["r"]], axis=-1), present, c)
    z, classify_back = classify(y, {"weight": np.concatenate([names["Wf"], names["Wr"]], axis=1),
                                    "bias": names["β"]}, c)
    value, loss_back = class_loss(z, names["label"])
    dy, dp = classify_back(loss_back(float(names["dloss"]))[0])
    dx, dw = states_back(dy), dp["weight"]
    return {"loss": value, "df": dx[..., :D], "dr": dx[..., D:], "dWf": dw[:, :D], "dWr": dw[:, D:],
            "dβ": dp["bias"]}


DERIVATION = Derivation(
    title="An LSTM that classifies texts, from its last states to the loss",
    source="pyllama.models.lstm",
    symbols=False,
    arrays={"f": "B T D", "r": "B T D", "last": "B", "label": "B", "Wf": "C D", "Wr": "C D", "β": "C", "dloss": ""},
    letters={"b": "B", "t": "T", "d": "D", "c": "C"},
    sizes={"B": 3, "T": 3, "D": 2, "C": 3},
    implicit=(),
    integers={"last": "T", "label": "C"},
    loss={"loss": "dloss"},
    code=code,
    steps=(
        Step("z_bc = Σ_d Wf_cd f_{b,last(b),d} + Σ_d Wr_cd r_b0d + β_c",
             "Two states, side by side, through one matrix.  Behind the last token there may be padding, so its "
             "position differs from text to text.",
             "return np.concatenate([x[rows, last, :D], x[:, 0, D:]], axis=-1), back"),
        Step("lse_b = log Σ_c exp(z_bc)", "The logarithm of the sum by which softmax divides."),
        Step("loss = mean_b (lse_b - z_{b,label(b)})", "Minus the log-probability of the right class.",
             "value, loss_back = class_loss(z.reshape(-1, c.num_labels), labels.reshape(-1), count=count, **options)"),
        Step("dz_bc = (exp(z_bc - lse_b) - [c = label_b]) dloss / B", "The probability of a class, minus 1 for the "
             "right one; the mean divides by `B`."),
        Step("dWf_cd = Σ_b dz_bc f_{b,last(b),d}", "`z` is linear in `Wf`, for each text.",
             "dx, d_classifier = classify_back(dz)"),
        Step("dWr_cd = Σ_b dz_bc r_b0d", "And in `Wr`."),
        Step("dβ_c = Σ_b dz_bc", "And in the bias."),
        Step("df_btd = [t = last_b] Σ_c dz_bc Wf_cd",
             "A single state was read.  The steps before it are in the loss only because it remembers them: their "
             "gradients come through the gates, a step at a time.",
             "dx[rows, last, :D], dx[:, 0, D:] = dy[:, :D], dy[:, D:]"),
        Step("dr_btd = [t = 0] Σ_c dz_bc Wr_cd", "The reverse direction ends at the first token."),
    ))
