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
             "One over the root mean square of a row: dividing by the size becomes a multiplication.",
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
             "With `u` for the sum in parentheses, the derivative of `u^-½` is `-½ u^-½ / u`, which is `-½ r³`; that "
             "of the mean square by `x_j` is `2 x_j / D`."),
        Step("dx_j = Σ_i g_i ∂(x_i r)/∂x_j",
             "`x_j` is in every `n_i` of its row, because `r` is: the chain rule sums over all of them."),
        Step("∂(x_i r)/∂x_j = δ_ij r + x_i ∂r/∂x_j",
             "The product rule: `x_i` itself moves where `i` is `j`, and `r` moves for every `i`.", extra=True),
        Step("= g_j r - r³ x_j (Σ_i g_i x_i) / D", "The sum over `i` of both terms."),
        Step("= r (g_j - n_j mean_i g_i n_i)",
             "One `r` of `r³` is taken out of the parentheses; the other two turn `x_j` into `n_j` and `x_i` "
             "into `n_i`.",
             "dx = r * (g - n * np.mean(g * n, axis=-1, keepdims=True))"),
        Step("dw_j = Σ_rows dy_j n_j",
             "`w_j` is in every row, so its gradient is a sum over rows.",
             "dw = np.sum(dy * n, axis=tuple(range(dy.ndim - 1)))"),
    ))
