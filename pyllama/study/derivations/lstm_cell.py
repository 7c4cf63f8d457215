"""One step of an LSTM, step by step: see pyllama/ops/lstm_cell.py."""
import numpy as np

from pyllama.ops import lstm_cell
from pyllama.study.derivation import Derivation, Step

GATES = "ifgo"                                              # their order in a
DA = "da = [d * g * i * (1 - i), d * c * f * (1 - f), d * i * (1 - g * g), dh * t * o * (1 - o)]"


def code(names):
    """Both passes of the op: it has the four gates in one array."""
    a = np.concatenate([names[f"a_{gate}"] for gate in GATES], axis=-1)
    (h, c1), back = lstm_cell(a, names["c"])
    da, dc = back((names["dh"], names["dc1"]))
    each = np.split(da, 4, axis=-1)
    return {"h": h, "c1": c1, "dc": dc} | {f"da_{gate}": d for gate, d in zip(GATES, each, strict=True)}


DERIVATION = Derivation(
    title="One step of an LSTM",
    module="pyllama.ops.lstm_cell",
    arrays={f"a_{gate}": "N D" for gate in GATES} | {"c": "N D", "dh": "N D", "dc1": "N D"},
    sizes={"N": 1, "D": 2},
    implicit=("N", "D"),
    loss={"h": "dh", "c1": "dc1"},
    gradients={"δ": "c1"},
    code=code,
    steps=(
        Step("σ(x) = 1 / (1 + e^-x)",
             "An LSTM reads a text token by token, and hands on two vectors: a cell state `c` and an output `h`.  The "
             "sigmoid goes from 0 to 1: a gate between closed and open."),
        Step("i = σ(a_i)", "How much of the candidate `g` is written.",
             "i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)"),
        Step("f = σ(a_f)", "How much of the old cell state is kept."),
        Step("o = σ(a_o)", "How much of the cell state is shown."),
        Step("g = tanh(a_g)", "The candidate, between -1 and 1."),
        Step("c1 = f c + i g", "The cell keeps part of the old state and adds part of the candidate.",
             "c1 = f * c + i * g"),
        Step("t = tanh(c1)", "`c1` may grow beyond 1; what the cell shows stays between -1 and 1.", "t = np.tanh(c1)"),
        Step("h = o t", "The output gate opens the view.", "return (o * t, c1), (c, i, f, g, o, t)"),
        Step("σ'(x) = σ(x) (1 - σ(x)),   tanh'(x) = 1 - tanh² x",
             "Derived in swiglu and tanh.  So the values of the gates are enough for the backward pass."),
        Step("∂h/∂c1 = o (1 - t²)", "`c1` is in `h` through `t` alone, and `t` is `tanh(c1)`."),
        Step("δ = dc1 + dh o (1 - t²)",
             "`c1` is an output and is in `h`, too: the gradients of both uses add up.  `dc1` is what comes in for the "
             "output, and `δ` is the whole gradient.",
             "d = dc1 + dh * o * (1 - t * t)"),
        Step("∂c1/∂a_i = g i (1 - i)",
             "`g` times the slope of `i`.  The other three gates do not move.", extra=True),
        Step("da_i = δ g i (1 - i)",
             "`a_i` reaches the loss through `c1` alone, and `δ` is the whole gradient of `c1`.", DA),
        Step("da_f = δ c f (1 - f)", "The same, with `f` times `c`.", DA),
        Step("da_g = δ i (1 - g²)", "The same, with `g` times `i`; `g` has the slope of tanh.", DA),
        Step("da_o = dh t o (1 - o)", "`o` is in `h` but not in `c1`: `dh` takes the place of `δ`.", DA),
        Step("dc = δ f",
             "`c` is in `c1` with the factor `f`.  So a step back in time multiplies by a gate, not by a matrix.",
             "return np.concatenate(da, axis=-1), d * f"),
    ))
