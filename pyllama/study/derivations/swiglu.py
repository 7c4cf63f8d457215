"""SwiGLU, step by step: see pyllama/ops/swiglu.py."""
from pyllama.study.derivation import Derivation, Step

DERIVATION = Derivation(
    title="SwiGLU gate",
    module="pyllama.ops.swiglu",
    sizes={"rows": 1, "F": 2},
    steps=(
        Step("σ(x) = 1 / (1 + e^-x)",
             "A smooth step from 0 to 1.  The code's sigmoid() is the same function, with no exponent above 0."),
        Step("silu(x) = x σ(x)", "Nearly `x` for large `x`, nearly 0 for very negative ones."),
        Step("s = σ(g)", "The sigmoid of the gate has a name, because both gradients need it.",
             "s = sigmoid(g)"),
        Step("y = silu(g) u = g s u", "The gate decides how much of `u` passes.",
             "return g * sigmoid(g) * u, (g, u)"),
        Step("1 - σ(x) = e^-x / (1 + e^-x)", "Over the common denominator, `1 + e^-x - 1` is left above.", extra=True),
        Step("σ'(x) = e^-x / (1 + e^-x)²",
             "The derivative of `1/v` is `-1/v²`, and that of `1 + e^-x` is `-e^-x`: both signs cancel."),
        Step("= σ(x) (1 - σ(x))",
             "One factor `1 / (1 + e^-x)` is `σ(x)`; the other, with `e^-x` above, is `1 - σ(x)`."),
        Step("∂s/∂g = s (1 - s)",
             "The line above, with `g` for `x`: the backward pass needs no other exponential than that of `s`."),
        Step("silu'(g) = s + g s (1 - s)", "The product rule for `g σ(g)`: `g` moves, and `σ(g)` moves."),
        Step("= s (1 + g (1 - s))", "`s` is common to both terms."),
        Step("dg = dy u s (1 + g (1 - s))", "`y` is `silu(g) u`, and `u` does not depend on `g`.",
             "return dy * u * s * (1 + g * (1 - s)), dy * g * s"),
        Step("du = dy g s", "`y` is linear in `u`, with the factor `g s`.",
             "return dy * u * s * (1 + g * (1 - s)), dy * g * s"),
    ))
