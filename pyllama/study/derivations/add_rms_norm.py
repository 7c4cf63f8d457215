"""A residual sum and its RMS norm, step by step: see pyllama/ops/add_rms_norm.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Residual sum with root-mean-square normalization",
    module="pyllama.ops.add_rms_norm",
    letters={"i": "D", "j": "D"},
    sizes={"rows": 2, "D": 3},
    constants={"ε": "eps"},
    gradients={"g": "n", "h": "s"},
    steps=(
        Step("s_j = x_j + a_j", "The residual sum.  It is an output, because the next block adds to it.", "s = x + a"),
        Step("r = (mean_j s_j² + ε)^-½", "One over the root mean square of a row of `s`."),
        Step("n_j = s_j r", "The normalized row: its mean square is one, up to `ε`."),
        Step("y_j = w_j n_j", "Each column has a weight of its own.",
             "y, saved = rms_norm.forward(s, w, eps=eps)"),
        Step("g_j = w_j dy_j", "`n_j` reaches the loss through `y_j` alone, and `∂y_j/∂n_j` is `w_j`."),
        Step("Σ_i dy_i ∂y_i/∂s_j = r (g_j - n_j mean_i g_i n_i)",
             "What reaches `s` through `y`: the gradient that rms_norm derives for its input.",
             "dx, dw = rms_norm.backward(dy, s, w, r)", extra=True),
        Step("h_j = ds_j + r (g_j - n_j mean_i g_i n_i)",
             "A number that is used twice has the sum of both gradients; `ds` is that of the direct use.",
             "dx = ds + dx"),
        Step("dx_j = da_j = h_j", "Both slopes of a sum are 1.", "return dx, dx, dw"),
        Step("dw_j = Σ_rows dy_j n_j", "`w_j` is in every row, so its gradient is a sum over rows."),
    ))
