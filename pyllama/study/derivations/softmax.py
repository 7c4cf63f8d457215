"""Softmax, step by step: see pyllama/ops/softmax.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Softmax over the last axis",
    module="pyllama.ops.softmax",
    letters={"i": "D", "j": "D"},
    sizes={"rows": 2, "D": 3},
    steps=(
        Step("m = max_j x_j",
             "The largest entry of a row.",
             "m = np.max(x.real, axis=-1, keepdims=True)"),
        Step("[x_j ≤ m] = 1", "So in the next line no exponent is above 0, and nothing overflows.", extra=True),
        Step("lse = m + log Σ_j exp(x_j - m)",
             "The logarithm of a sum of exponentials, which the next line shows.  What follows holds for any `m`, not "
             "only for the largest entry.",
             "return m + np.log(np.where(total == 0, 1, total))"),
        Step("lse = log Σ_j exp x_j",
             "`exp(x_j - m)` is `exp x_j / exp m`.  The logarithm of `1/exp m` is `-m`, and the `m` in front cancels "
             "it.",
             extra=True),
        Step("∂lse/∂m = 0",
             "`m` is not in the line above.  So it counts as a constant below, though it depends on `x`.",
             extra=True),
        Step("y_j = exp(x_j - lse)", "Each entry's share of `Σ_j exp(x_j)`, because `exp(lse)` is that sum.",
             "y = np.exp(x - log_sum_exp(x))"),
        Step("log y_i = x_i - lse", "The logarithm of the line above."),
        Step("∂lse/∂x_j = exp(x_j - m) / Σ_i exp(x_i - m)",
             "The derivative of `log u` is `1/u`, and of the sum only the term of `j` moves.", extra=True),
        Step("∂lse/∂x_j = y_j", "The same quotient: `exp(x_j - m)` divided by `exp(lse - m)`."),
        Step("∂y_i/∂x_j = y_i (δ_ij - y_j)",
             "The derivative of `log y_i` is that of `y_i` divided by `y_i`.  By the lines above it is `δ_ij - y_j`: "
             "`x_i` moves where `i` is `j`, where `δ_ij` is 1, and `lse` moves by `y_j`."),
        Step("dx_j = Σ_i dy_i y_i (δ_ij - y_j)",
             "`x_j` is in every `y_i` of its row: the chain rule sums over all of them."),
        Step("= y_j (dy_j - Σ_i dy_i y_i)", "`δ_ij` leaves one term of the sum; `y_j` is common to all.",
             "return (y * (dy - np.sum(dy * y, axis=-1, keepdims=True)),)"),
    ))
