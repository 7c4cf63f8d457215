"""Hyperbolic tangent, step by step: see pyllama/ops/tanh.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="Hyperbolic tangent",
    module="pyllama.ops.tanh",
    sizes={"rows": 1, "F": 2},
    steps=(
        Step("y = tanh x", "`y` stays between -1 and 1, and is nearly `x` around 0.", "y = np.tanh(x)"),
        Step("sinh x = (e^x - e^-x) / 2", "The definition: the odd part of `e^x`.", extra=True),
        Step("cosh x = (e^x + e^-x) / 2", "The definition: the even part of `e^x`.", extra=True),
        Step("tanh x = sinh x / cosh x", "The definition of tanh."),
        Step("sinh'(x) = cosh x",
             "The derivative of `e^-x` is `-e^-x`, which turns the minus into a plus.", extra=True),
        Step("cosh'(x) = sinh x", "For the same reason the plus becomes a minus.", extra=True),
        Step("tanh'(x) = (cosh² x - sinh² x) / cosh² x",
             "The quotient rule: above, the slope of sinh times cosh, minus sinh times the slope of cosh."),
        Step("= 1 - tanh² x", "Each term divided by `cosh² x`."),
        Step("dx = dy (1 - y²)", "`tanh x` is `y`: the output alone is enough for the backward pass.",
             "return (dy * (1 - y * y),)"),
    ))
