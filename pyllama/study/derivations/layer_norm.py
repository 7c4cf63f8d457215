"""LayerNorm, step by step: see pyllama/ops/layer_norm.py."""
from pyllama.study.derivation import Derivation, Step

DX = "dx = r * (g - np.mean(g, axis=-1, keepdims=True) - n * np.mean(g * n, axis=-1, keepdims=True))"
RETURNED = "return dx, np.sum(dy * n, axis=rows), np.sum(dy, axis=rows)"

DERIVATION = Derivation(
    title="Layer normalization",
    module="pyllama.ops.layer_norm",
    letters={"i": "D", "j": "D"},
    sizes={"rows": 1, "D": 3},
    constants={"ε": "eps"},
    gradients={"g": "n"},
    steps=(
        Step("c_j = x_j - mean_i x_i", "The row is centered: its mean becomes 0.",
             "c = x - np.mean(x, axis=-1, keepdims=True)"),
        Step("r = (mean_j c_j² + ε)^-½",
             "The mean square of a centered row is its variance, so `r` is one over the standard deviation.",
             "r = (np.mean(c * c, axis=-1, keepdims=True) + eps) ** -0.5"),
        Step("n_j = c_j r", "The normalized row: its mean is 0 and its variance 1, up to `ε`.", "n = c * r"),
        Step("y_j = w_j n_j + b_j", "Each column has a scale and a shift of its own.", "return w * n + b, (n, w, r)"),
        Step("g_j = w_j dy_j", "`n_j` reaches the loss through `y_j` alone, and `∂y_j/∂n_j` is `w_j`.",
             "g, rows = w * dy, tuple(range(dy.ndim - 1))"),
        Step("∂r/∂c_j = -r³ c_j / D",
             "With `u` for the sum in parentheses, the derivative of `u^-½` is `-½ u^-½ / u`.  That is `-½ r³`, "
             "because `u^-½` is `r` and `1/u` is `r²`.  Of the mean, the term of `j` alone moves: by `2 c_j / D`."),
        Step("∂(c_i r)/∂c_j = δ_ij r + c_i ∂r/∂c_j",
             "The product rule: `c_i` itself moves where `i` is `j`, so its derivative is `δ_ij`: 1 there, 0 "
             "elsewhere.  `r` moves for every `i`.", extra=True),
        Step("r³ c_i c_j = r n_i n_j", "One `r` of `r³` goes to `c_i` and one to `c_j`.", extra=True),
        Step("dc_j = Σ_i g_i ∂(c_i r)/∂c_j",
             "`c_j` is in every `n_i` of its row, because `r` is: the chain rule sums over all of them."),
        Step("= g_j r - r³ c_j (Σ_i g_i c_i) / D",
             "Both terms of the product rule: `δ_ij` leaves the term of `j`, and `∂r/∂c_j` is the same for every `i`."),
        Step("= r (g_j - n_j mean_i g_i n_i)",
             "`r³ c_i c_j` is `r n_i n_j`, as above; a sum divided by D is a mean."),
        Step("∂c_i/∂x_j = δ_ij - 1/D",
             "`x_j` is in `c_j` itself and, with the weight `1/D`, in the mean, which every `c_i` subtracts."),
        Step("dx_j = Σ_i dc_i ∂c_i/∂x_j = dc_j - mean_i dc_i",
             "`x_j` is in every `c_i` of its row.  Of the sum, `δ_ij` leaves `dc_j`; the rest is `Σ_i dc_i / D`."),
        Step("mean_i n_i = 0", "`n` is a centered row times `r`.", extra=True),
        Step("mean_i dc_i = r mean_i g_i",
             "The second term of `dc` has `n` times one number for the whole row, and the mean of `n` is 0."),
        Step("dx_j = r (g_j - mean_i g_i - n_j mean_i g_i n_i)", "`dc_j` minus its mean, with `r` in front.", DX),
        Step("dw_j = Σ_rows dy_j n_j",
             "`w_j` is in every row with the slope `n_j`, so its gradient is a sum over rows.", RETURNED),
        Step("db_j = Σ_rows dy_j", "`b_j` is added in every row, with the slope 1.", RETURNED),
    ))
