"""RMSNorm, step by step: see pyllama/ops/rms_norm.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Root-mean-square normalization",
    module="pyllama.ops.rms_norm",
    letters={"i": "D", "j": "D"},
    sizes={"rows": 2, "D": 3},
    constants={"ε": "eps"},
    gradients={"g": "n"},
    steps=(
        Step("r = (mean_j x_j² + ε)^-½",
             "One over the root mean square of a row: dividing by the size becomes a multiplication.  So what comes "
             "next gets numbers of about one size, however large those of `x` are.",
             "r = (np.mean(x * x, axis=-1, keepdims=True) + eps) ** -0.5"),
        Step("n_j = x_j r",
             "The normalized row: its mean square is one, up to `ε`."),
        Step("y_j = w_j n_j",
             "Each column has a weight of its own.",
             "return w * x * r, (x, w, r)"),
        Step("g_j = w_j dy_j",
             "`n_j` reaches the loss through `y_j` alone, and `∂y_j/∂n_j` is `w_j`.",
             "n, g = x * r, w * dy"),
        Step("∂r/∂x_j = -½ r³ · 2 x_j / D = -r³ x_j / D",
             "With `u` for the sum in parentheses, the derivative of `u^-½` is `-½ u^-½ / u`.  That is `-½ r³`, "
             "because `u^-½` is `r` and `1/u` is `r²`.  Of the mean, the term of `j` alone moves: by `2 x_j / D`."),
        Step("∂(x_i r)/∂x_j = δ_ij r + x_i ∂r/∂x_j",
             "The product rule: `x_i` itself moves where `i` is `j`, so its derivative is `δ_ij`: 1 there, 0 "
             "elsewhere.  `r` moves for every `i`.", extra=True),
        Step("dx_j = Σ_i g_i ∂(x_i r)/∂x_j",
             "`x_j` is in every `n_i` of its row, because `r` is: the chain rule sums over all of them."),
        Step("= g_j r - r³ x_j (Σ_i g_i x_i) / D",
             "Both terms of the product rule: `δ_ij` leaves the term of `j`, and `∂r/∂x_j` is the same for every `i`."),
        Step("= r (g_j - n_j mean_i g_i n_i)",
             "One `r` of `r³` is taken out of the parentheses; the other two turn `x_j` into `n_j` and `x_i` "
             "into `n_i`.",
             "dx = r * (g - n * np.mean(g * n, axis=-1, keepdims=True))"),
        Step("dw_j = Σ_rows dy_j n_j",
             "`w_j` is in every row with the slope `n_j`, so its gradient is a sum over rows.",
             "dw = np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))"),
    ))
