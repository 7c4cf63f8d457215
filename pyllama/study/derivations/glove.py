"""GloVe's loss, step by step: see pyllama/ops/glove.py."""
from pyllama.ops import glove
from pyllama.study.derivation import Derivation, Step


def passes(names):
    """What both passes compute; the op's y and f are columns."""
    w, v, a, b, i, j = (names[name] for name in "wvabij")
    loss, saved = glove.forward(w, v, a, b, i, j, names["y"][:, None], names["f"][:, None])
    dw, dv, da, db, _, _, dy, df = glove.backward(names["dloss"], *saved)
    return {"loss": loss, "dw": dw, "dv": dv, "da": da, "db": db, "dy": dy[:, 0], "df": df[:, 0]}


DERIVATION = Derivation(
    title="GloVe's weighted squared error",
    module="pyllama.ops.glove",
    arrays={"w": "V D", "v": "V D", "a": "V", "b": "V", "i": "N", "j": "N", "y": "N", "f": "N", "dloss": ""},
    letters={"n": "N", "d": "D", "p": "V", "q": "V"},
    sizes={"N": 3, "D": 2, "V": 2},
    implicit=(),
    integers={"i": "V", "j": "V"},
    gradients={"h": "e"},
    code=passes,
    steps=(
        Step("e_n = w_{i(n)} · v_{j(n)} + a_{i(n)} + b_{j(n)} - y_n",
             "How far the model's logarithm of the count is from the true one.  Each word has a vector and a bias as "
             "word, and others as context.",
             'e = (np.einsum("nd,nd->n", w[i], v[j]) + a[i] + b[j])[:, None] - y'),
        Step("loss = Σ_n f_n e_n² / N",
             "Frequent pairs have a larger weight.",
             "return np.sum(f * e * e) / max(len(e), 1), (w, v, i, j, f, e)"),
        Step("h_n = ∂loss/∂e_n dloss",
             "Everything but `f` reaches the loss through the errors `e`, so their gradient is computed once."),
        Step("= 2 f_n e_n dloss / N",
             "Only the term of `n` has `e_n`, and the derivative of `e_n²` is `2 e_n`.",
             "h = 2 * f * e * share"),
        Step("∂e_n/∂w_pd = [i(n) = p] v_{j(n),d}",
             "`e_n` has the vector of word `i(n)` alone; in the inner product, `v_{j(n),d}` is beside its number `d`."),
        Step("dw_pd = Σ_n h_n ∂e_n/∂w_pd",
             "A word may be in many pairs: the chain rule sums over them.", extra=True),
        Step("dw_pd = Σ_{n : i(n) = p} h_n v_{j(n),d}",
             "The bracket leaves the pairs whose first word is `p`.",
             "np.add.at(place, at, addend)"),
        Step("dv_qd = Σ_{n : j(n) = q} h_n w_{i(n),d}",
             "The same with the roles of word and context exchanged.",
             "(dv, j, h * w[i])"),
        Step("da_p = Σ_{n : i(n) = p} h_n",
             "The bias of `i(n)` is in `e_n` with the factor 1.",
             "(da, i, h[:, 0])"),
        Step("db_q = Σ_{n : j(n) = q} h_n",
             "So is that of `j(n)`.",
             "(db, j, h[:, 0])"),
        Step("dy_n = -h_n",
             "`y_n` is in `e_n` with the factor -1.",
             "return dw, dv, da, db, None, None, -h, e * e * share"),
        Step("df_n = e_n² dloss / N",
             "The loss is linear in `f_n`.",
             "return dw, dv, da, db, None, None, -h, e * e * share"),
    ))
