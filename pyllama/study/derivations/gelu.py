"""GELU, exact and with tanh, step by step: see pyllama/ops/gelu.py."""
from pyllama.study.derivation import Derivation, Step

MODULE = "pyllama.ops.gelu"
SIZES = {"rows": 1, "F": 2}

EXACT = Derivation(
    title="Gaussian error linear unit",
    module=MODULE,
    sizes=SIZES,
    steps=(
        Step("Φ(x) = ½ (1 + erf(x/√2))",
             "erf goes from -1 to 1; moved and halved it goes from 0 to 1, as a probability does."),
        Step("y = x Φ(x)",
             "ReLU multiplies `x` by 0 or 1.  GELU multiplies it by the probability that a normal number is smaller.",
             "return 0.5 * x * (1 + erf(x * 0.5 ** 0.5)), (x,)"),
        Step("erf'(z) = 2/√π · exp(-z²)",
             "`erf(z)` is defined as the integral of this function from 0 to `z`."),
        Step("φ(x) = Φ'(x) = exp(-x²/2) / √(2π)",
             "The chain rule, with `x/√2` for `z`: `z²` is `x²/2`, and `½ · 2/√π · 1/√2` is `1/√(2π)`.",
             "density = np.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5"),
        Step("dx = dy (Φ(x) + x φ(x))",
             "The product rule for `x Φ(x)`.  Each `y` depends on one `x` alone, so there is no sum.",
             "return (dy * (0.5 * (1 + erf(x * 0.5 ** 0.5)) + x * density),)"),
    ))

TANH = Derivation(
    title="Gaussian error linear unit, approximated",
    module=MODULE,
    case="tanh",
    options={"tanh": True},
    sizes=SIZES,
    steps=(
        Step("c = 0.044715", "The paper's constant: with it `tanh u` stays close to `erf(x/√2)`.",
             "C, ROOT = 0.044715, math.sqrt(2 / math.pi)"),
        Step("u = √(2/π) (x + c x³)",
             "At 0, `tanh u` has the slope of `erf(x/√2)`, which is `√(2/π)`; the cubic term bends `u`."),
        Step("t = tanh u", "tanh takes the place of erf.",
             "t, du = np.tanh(ROOT * (x + C * x * x * x)), ROOT * (1 + 3 * C * x * x)"),
        Step("y = ½ x (1 + t)", "`x Φ(x)`, with `t` for `erf(x/√2)`.",
             "return 0.5 * x * (1 + np.tanh(ROOT * (x + C * x * x * x))), (x,)"),
        Step("∂t/∂u = 1 - t²", "See tanh, which derives it from sinh and cosh."),
        Step("∂u/∂x = √(2/π) (1 + 3 c x²)", "`u` is a polynomial: the derivative of `x³` is `3 x²`.",
             "t, du = np.tanh(ROOT * (x + C * x * x * x)), ROOT * (1 + 3 * C * x * x)"),
        Step("∂t/∂x = (1 - t²) ∂u/∂x", "The chain rule: `x` moves `t` through `u`.", extra=True),
        Step("dx = dy (½ (1 + t) + ½ x (1 - t²) ∂u/∂x)", "The product rule for `½ x (1 + t)`.",
             "return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du),)"),
    ))

DERIVATION = EXACT, TANH
