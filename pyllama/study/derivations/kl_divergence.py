"""KL divergence at a temperature, step by step: see pyllama/ops/kl_divergence.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="KL divergence of two softmax distributions",
    module="pyllama.ops.kl_divergence",
    arrays={"a": "N V", "b": "N V", "t": "N", "dloss": ""},
    letters={"n": "N", "v": "V"},
    sizes={"N": 2, "V": 3},
    implicit=(),
    integers={"t": "V"},
    constants={"T": "temperature"},
    options={"ignore_index": 2},
    steps=(
        Step("lse_n = log Σ_v exp(a_nv / T)",
             "The logarithm of the number that normalizes the teacher's row at temperature `T`.",
             "log_p, log_q = log_softmax(a / temperature), log_softmax(b / temperature)"),
        Step("lse'_n = log Σ_v exp(b_nv / T)",
             "The same of the student's row."),
        Step("p_nv = exp(a_nv / T - lse_n)",
             "The teacher's probability of `v`.  A temperature above 1 makes the probabilities more alike."),
        Step("q_nv = exp(b_nv / T - lse'_n)",
             "The student's."),
        Step("r_nv = log p_nv - log q_nv",
             "How much more likely `v` is for the teacher, as a logarithm.",
             "p, q, r = np.exp(log_p), np.exp(log_q), log_p - log_q"),
        Step("l_n = Σ_v p_nv r_nv",
             "The divergence of a row: the mean of `r` over words that the teacher says.  It is 0 if both agree, and "
             "positive otherwise.",
             "row = np.sum(p * r, axis=-1)"),
        Step("c_n = [t_n ≠ ignore_index]",
             "Padding has no target."),
        Step("C = max(Σ_n c_n, 1)",
             "The loss is a mean over the rows that count, as cross-entropy is, so that both can be mixed.",
             "scale = temperature ** 2 / denominator(a, t, ignore_index, count)"),
        Step("loss = T² Σ_n c_n l_n / C",
             "Only rows that count add to the sum.  The second line for `db` says what `T²` is for.",
             "return np.sum(np.where(valid(t, ignore_index), row, 0)) * scale, (p, q, r, row, t)"),
        Step("∂lse'_n/∂b_nv = q_nv / T",
             "As in softmax, and `1/T` is the derivative of `b_nv / T`.", extra=True),
        Step("∂l_n/∂b_nv = (Σ_u p_nu) q_nv / T - p_nv / T",
             "In `l_n`, `-log q_nu` is `lse'_n - b_nu / T`.  The first is in every term, with the weight `p_nu`; "
             "`b_nv` is in one of them.", extra=True),
        Step("∂l_n/∂b_nv = (q_nv - p_nv) / T",
             "The teacher's probabilities add up to 1."),
        Step("∂p_nv/∂a_nv = p_nv (1 - p_nv) / T",
             "Softmax again: the derivative at its own score.", extra=True),
        Step("∂l_n/∂a_nv = p_nv (r_nv - l_n) / T",
             "Each `p_nu` moves by `p_nu ([u = v] - p_nv) / T`.  With the weights `r_nu`, the bracket leaves "
             "`p_nv r_nv`, and the other terms add up to `p_nv l_n`.  The `log p_nu` within `r_nu` move too, but by "
             "amounts whose mean over `p` is 0."),
        Step("db_nv = T² c_n ∂l_n/∂b_nv dloss / C",
             "A score is in the divergence of its own row alone."),
        Step("= T (q_nv - p_nv) c_n dloss / C",
             "The derivative from above: one `T` of `T²` undoes its `1/T`.  For large `T`, `q - p` is itself about "
             "`1/T` times a number that does not depend on `T`, which the other `T` undoes.",
             "return p * (r - row[:, None]) * scale, (q - p) * scale, None"),
        Step("da_nv = T² c_n ∂l_n/∂a_nv dloss / C",
             "The same for the other scores.  It is the student's gradient if the models are exchanged: the reverse "
             "divergence."),
        Step("= T p_nv (r_nv - l_n) c_n dloss / C",
             "With the derivative from above."),
    ))
