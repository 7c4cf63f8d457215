"""Cross-entropy, step by step: see pyllama/ops/cross_entropy.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Cross-entropy of softmax with integer targets",
    module="pyllama.ops.cross_entropy",
    arrays={"z": "N V", "t": "N", "dloss": ""},
    letters={"n": "N", "v": "V"},
    sizes={"N": 2, "V": 3},
    implicit=(),
    integers={"t": "V"},
    constants={"α": "label_smoothing", "ζ": "z_loss"},
    options={"ignore_index": 2},
    steps=(
        Step("lse_n = log Σ_v exp z_nv",
             "The logarithm of the number that normalizes the row.",
             "lse = log_sum_exp(z)"),
        Step("p_nv = exp(z_nv - lse_n)",
             "The probability that the model gives to `v`: its share of `Σ_v exp z_nv`."),
        Step("log p_nv = z_nv - lse_n",
             "The logarithm undoes exp.  So `log p_nv` needs no `p_nv`, which may be too small for a float."),
        Step("q_nv = (1 - α) [v = t_n] + α/V",
             "What the model should say.  The target gets `1 - α`, and all `V` words share the rest, so that the model "
             "need not be quite sure."),
        Step("Σ_v q_nv = 1",
             "The bracket is 1 for one `v` alone, and `V` times `α/V` is `α`.", extra=True),
        Step("l_n = -Σ_v q_nv log p_nv + ζ lse_n²",
             "The cross-entropy of `q` and `p`: without `α` it is `-log p_nv` of the target, which is 0 if the model "
             "is sure of it.  The last term is least where `lse_n` is 0."),
        Step("= lse_n Σ_v q_nv - Σ_v q_nv z_nv + ζ lse_n²",
             "`log p_nv` is `z_nv - lse_n`, and `lse_n` is the same for all `v`.", extra=True),
        Step("= lse_n - (1 - α) z_{n,t(n)} - α mean_v z_nv + ζ lse_n²",
             "`Σ_v q_nv` is 1.  In `Σ_v q_nv z_nv`, the bracket leaves the score of the target, and `α/V` makes a "
             "mean.",
             "row = lse[:, 0] - (1 - label_smoothing) * target + z_loss * lse[:, 0] ** 2"),
        Step("c_n = [t_n ≠ ignore_index]",
             "Padding has no target.",
             "return t != ignore_index"),
        Step("C = max(Σ_n c_n, 1)",
             "The loss is a mean over the rows that count.  It is 0, and not 0/0, if none does.",
             "return np.maximum(valid(t, ignore_index).sum() if count is None else count, 1)"),
        Step("loss = Σ_n c_n l_n / C",
             "Only rows that count add to the sum."),
        Step("∂lse_n/∂z_nv = p_nv",
             "As in softmax: the derivative of `log u` is `1/u`, and only the term of `v` moves: its share of the sum "
             "is `p_nv`."),
        Step("∂l_n/∂z_nv = (1 + 2 ζ lse_n) ∂lse_n/∂z_nv - (1 - α) [v = t_n] - α/V",
             "Term by term of the last line for `l_n`: `lse_n²` has the derivative `2 lse_n ∂lse_n/∂z_nv`, "
             "`z_{n,t(n)}` moves if `v` is the target, and the mean moves by `1/V`.", extra=True),
        Step("∂l_n/∂z_nv = (1 + 2 ζ lse_n) p_nv - q_nv",
             "The last two terms are `-q_nv`.  Without `ζ` the derivative is `p_nv - q_nv`: it vanishes if the model "
             "is right."),
        Step("dz_nv = c_n ∂l_n/∂z_nv dloss / C",
             "A score is in the `l_n` of its own row alone, which is in the loss with the factor `c_n / C`.  `dloss` "
             "is 1 unless something follows the loss, such as a factor.",
             "return np.where(counts[:, None], dz, 0) * (dloss / denominator(z, t, ignore_index, count)), None"),
        Step("= ((1 + 2 ζ lse_n) p_nv - q_nv) c_n dloss / C",
             "The derivative from above.  The code subtracts `α/V` everywhere, and `1 - α` from the entry of the "
             "target.",
             "dz[np.arange(len(t), like=t), np.where(counts, t, 0)] -= 1 - label_smoothing"),
    ))
