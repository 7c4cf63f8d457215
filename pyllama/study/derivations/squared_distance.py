"""The mean squared distance of two rows, step by step: see pyllama/ops/squared_distance.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Mean squared distance",
    module="pyllama.ops.squared_distance",
    arrays={"x": "N D", "y": "N D", "t": "N", "dloss": ""},
    letters={"n": "N", "d": "D"},
    sizes={"N": 2, "D": 2},
    implicit=(),
    integers={"t": "D"},
    options={"ignore_index": 2},
    steps=(
        Step("c_n = [t_n ≠ ignore_index]",
             "Padding has no target."),
        Step("C = max(Σ_n c_n, 1)",
             "The loss is a mean over the rows that count."),
        Step("l_n = mean_d (x_nd - y_nd)²",
             "How far the rows are from each other.",
             "row = np.mean((x - y) ** 2, axis=-1)"),
        Step("loss = Σ_n c_n l_n / C",
             "Only rows that count add to the sum."),
        Step("∂l_n/∂x_nd = 2 (x_nd - y_nd) / D",
             "Of the mean, the term of `d` alone moves: by twice the difference."),
        Step("dx_nd = 2 (x_nd - y_nd) c_n dloss / (C D)",
             "The rows count as in the loss.",
             "scale = 2 * dloss / (x.shape[-1] * denominator(x, t, ignore_index, count))"),
        Step("dy_nd = -dx_nd",
             "The difference has the other sign in `y`.",
             "return dx, -dx, None"),
    ))
