"""BERT's classifier, which reads the first token: see pool() and score() in pyllama/models/bert.py.

Arrays      x [B T D] in, the last layer's output; label [B], integers;
            loss [] out.  b counts the texts, c the C classes.
            Wp [D D], bp [D] in pooler.dense; Wc [C D], bc [C] in classifier

Forward     The vector of the first token, [CLS], through a layer with tanh:

            u_bj = Σ_d Wp_jd x_b0d + bp_j
            y_bj = tanh(u_bj)

            Scores of the classes, and their cross-entropy:

            z_bc = Σ_j Wc_cj y_bj + bc_c
            lse_b = log Σ_c exp(z_bc)
            loss = mean_b (lse_b - z_{b,label(b)})

Backward    From the loss to the scores (see cross_entropy), and to the layer:

            dz_bc = (exp(z_bc - lse_b) - [c = label_b]) dloss / B
            dWc_cj = Σ_b dz_bc y_bj
            dbc_c = Σ_b dz_bc
            dy_bj = Σ_c Wc_cj dz_bc
            du_bj = dy_bj (1 - y_bj²)
            dWp_jd = Σ_b du_bj x_b0d
            dbp_j = Σ_b du_bj

            To the first token.  The others get nothing here:

            dx_btd = [t = 0] Σ_j Wp_jd du_bj
            Σ_c dbc_c = 0
"""
from pyllama.models import bert
from pyllama.models.layers import class_loss
from pyllama.study.derivation import Derivation, Step


def code(names: dict) -> dict:
    """Both passes of the model's head, and of its loss."""
    C, D = names["Wc"].shape
    c = bert.BertConfig(hidden_size=D, num_attention_heads=1, head="classification", num_labels=C)
    p = {"bert": {"pooler": {"dense": {"weight": names["Wp"], "bias": names["bp"]}}},
         "classifier": {"weight": names["Wc"], "bias": names["bc"]}}
    z, score_back = bert.score(names["x"], p, c)
    value, loss_back = class_loss(z, names["label"])
    dx, d_head, d_pooler = score_back(loss_back(float(names["dloss"]))[0])
    dense, classifier = d_pooler["pooler"]["dense"], d_head["classifier"]
    return {"loss": value, "dx": dx, "dWp": dense["weight"], "dbp": dense["bias"], "dWc": classifier["weight"],
            "dbc": classifier["bias"]}


DERIVATION = Derivation(
    title="BERT's classifier, which reads the first token",
    source="pyllama.models.bert",
    symbols=False,
    arrays={"x": "B T D", "label": "B", "Wp": "D D", "bp": "D", "Wc": "C D", "bc": "C", "dloss": ""},
    letters={"b": "B", "t": "T", "d": "D", "j": "D", "c": "C"},
    sizes={"B": 2, "T": 3, "D": 3, "C": 3},
    implicit=(),
    integers={"label": "C"},
    loss={"loss": "dloss"},
    code=code,
    steps=(
        Step("u_bj = Σ_d Wp_jd x_b0d + bp_j",
             "Attention has brought to the first token what it needs of all others.  So it stands for the whole text.",
             "x, first_back = first(x)"),
        Step("y_bj = tanh(u_bj)", "The pooler's nonlinearity.", "y, tanh_back = tanh(x)"),
        Step("z_bc = Σ_j Wc_cj y_bj + bc_c", "A score for each class.", "z, head_back = project(x, p[name])"),
        Step("lse_b = log Σ_c exp(z_bc)", "The logarithm of the sum by which softmax divides."),
        Step("loss = mean_b (lse_b - z_{b,label(b)})", "Minus the log-probability of the right class."),
        Step("dz_bc = (exp(z_bc - lse_b) - [c = label_b]) dloss / B", "The probability of a class, minus 1 for the "
             "right one; the mean divides by `B`."),
        Step("dWc_cj = Σ_b dz_bc y_bj", "`z` is linear in `Wc`, for each text.", "dx, d_head = head_back(dz)"),
        Step("dbc_c = Σ_b dz_bc", "And in its bias."),
        Step("dy_bj = Σ_c Wc_cj dz_bc", "`y_bj` is in the scores of all classes."),
        Step("du_bj = dy_bj (1 - y_bj²)", "The slope of tanh, from its value (see tanh).",
             "dx, d_dense = dense_back(*tanh_back(dy))"),
        Step("dWp_jd = Σ_b du_bj x_b0d", "`u` is linear in `Wp`, with the slope `x`."),
        Step("dbp_j = Σ_b du_bj", "And in its bias."),
        Step("dx_btd = [t = 0] Σ_j Wp_jd du_bj",
             "Only the first token was read.  The other tokens learn through the attention of the layers below, which "
             "brought them to the first one.", 'return first_back(dx), {"dense": d_dense}'),
        Step("Σ_c dbc_c = 0", "The probabilities of a text sum to 1, and so do the right ones: their differences "
             "cancel."),
    ))
