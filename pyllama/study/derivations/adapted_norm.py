"""Row norms of an adapted matrix, step by step: see pyllama/ops/adapted_norm.py."""
from pyllama.study.derivation import Derivation, Step

RETURNED = "return g, b.T @ g, g @ a.T"

DERIVATION = Derivation(
    title="Row norms of an adapted matrix",
    module="pyllama.ops.adapted_norm",
    arrays={"w": "E D", "a": "R D", "b": "E R", "dn": "E"},
    letters={"e": "E", "d": "D", "r": "R"},
    sizes={"E": 2, "D": 2, "R": 2},
    implicit=(),
    constants={"ε": "eps"},
    steps=(
        Step("v_ed = w_ed + Σ_r b_er a_rd",
             "The update is a product of two thin matrices, which alone are trained.",
             "v = w + b @ a"),
        Step("n_e = (Σ_d v_ed² + ε)^½",
             "The length of each row: DoRA divides by it, and multiplies with a trained length instead.",
             "n = (np.sum(v * v, axis=-1) + eps) ** 0.5"),
        Step("∂n_e/∂v_ed = v_ed / n_e",
             "The derivative of `√x` is `½/√x`, and that of `v_ed²` is `2 v_ed`."),
        Step("g_ed = dn_e v_ed / n_e",
             "A row's gradient points along the row.",
             "g = h[:, None] * (w + b @ a)"),
        Step("dw_ed = g_ed",
             "`w_ed` is a term of `v_ed` by itself.",
             RETURNED),
        Step("da_rd = Σ_e b_er g_ed",
             "`a_rd` is in column `d` of every row, with the factor `b_er`.",
             RETURNED),
        Step("db_er = Σ_d g_ed a_rd",
             "`b_er` is in every `v_ed` of its row, with the factor `a_rd`.",
             RETURNED),
    ))
