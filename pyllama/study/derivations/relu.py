"""ReLU, step by step: see pyllama/ops/relu.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Rectified linear unit",
    module="pyllama.ops.relu",
    sizes={"rows": 2, "F": 4},
    steps=(
        Step("y = max(x, 0)", "Positive numbers pass; negative ones become 0.",
             "return np.where(x.real <= 0, 0, x), (x,)"),
        Step("∂y/∂x = [x > 0]",
             "On the right of 0, `y` is `x`, with the slope 1.  On the left it is 0, with the slope 0.",
             extra=True),
        Step("dx = [x > 0] dy", "`dy` passes unchanged where `x` has passed.",
             "return (np.where(x.real > 0, dy, 0),)"),
    ))
