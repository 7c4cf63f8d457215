"""The projection to logits and its cross-entropy, step by step: see pyllama/ops/linear_cross_entropy.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Output projection and cross-entropy, in chunks of rows",
    module="pyllama.ops.linear_cross_entropy",
    arrays={"x": "N D", "w": "V D", "t": "N", "dloss": ""},
    letters={"n": "N", "d": "D", "v": "V"},
    sizes={"N": 2, "D": 2, "V": 3},
    implicit=(),
    integers={"t": "V"},
    options={"chunk": 1},
    steps=(
        Step("z_nv = Σ_d x_nd w_vd",
             "The logit of a word is the inner product of its vector and the row.",
             "part, saved = cross_entropy.forward(x[rows] @ w.T, t[rows], **options)"),
        Step("lse_n = log Σ_v exp z_nv",
             "The logarithm of the number that normalizes the probabilities of a row."),
        Step("loss = Σ_n (lse_n - z_{n,t(n)}) / N",
             "The mean of the targets' `-log p`, since `log p` is `z - lse`."),
        Step("dz_nv = (exp(z_nv - lse_n) - [v = t_n]) dloss / N",
             "`z_nv` is in `lse_n`, whose derivative is the probability of `v`, and in the second term if `v` is the "
             "target.  No other row of `z` is in it: each chunk of rows has its `dz` at once.",
             "dz, _ = cross_entropy.backward(1, *saved, **options)"),
        Step("dx_nd = Σ_v dz_nv w_vd",
             "`x_nd` is in all logits of its row.",
             "loss, dx[rows] = loss + part, dz @ w"),
        Step("dw_vd = Σ_n dz_nv x_nd",
             "`w_vd` is in the logit of its word for every row.  The sum over rows is the sum of the chunks' sums.",
             "dw += dz.T @ x[rows]"),
    ))
