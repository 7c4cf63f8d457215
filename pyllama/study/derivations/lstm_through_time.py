"""Backpropagation through time, of an LSTM in one direction: see scan() in pyllama/models/lstm.py.

Arrays      x [B T E] in, y [B T D] out.  The formulas leave B out.
            W [K D E], b [K D]  from the input; U [K D D], b' [K D]  from the
            last output.  K counts the gates, in PyTorch's order: input,
            forget, candidate, output.  Before step 0, h and c are 0.

Forward     One step (see lstm_cell).  It begins with what the last one left:

            σ(u) = 1 / (1 + e^-u)
            a_tkd = Σ_e W_kde x_te + b_kd + Σ_j U_kdj h_{t-1,j} + b'_kd
            i_td = σ(a_t0d),   f_td = σ(a_t1d)
            g_td = tanh(a_t2d),   o_td = σ(a_t3d)
            c_td = f_td c_{t-1,d} + i_td g_td
            h_td = o_td tanh(c_td)
            y_td = h_td

Backward    From the last step to the first.  After the last step, all
            gradients are 0.  h is used twice, as an output and by the next
            step's gates:

            dh_td = dy_td + Σ_kj U_kjd da_{t+1,k,j}

            c is used twice, by h and by the next c:

            δ_td = dh_td o_td (1 - tanh²(c_td))
            dc_td = δ_td + f_{t+1,d} dc_{t+1,d}

            The gates:

            σ'(u) = σ(u) (1 - σ(u)),   tanh'(u) = 1 - tanh²(u)
            da_t0d = dc_td g_td i_td (1 - i_td)
            da_t1d = dc_td c_{t-1,d} f_td (1 - f_td)
            da_t2d = dc_td i_td (1 - g_td²)
            da_t3d = dh_td tanh(c_td) o_td (1 - o_td)

            All steps have the same weights:

            dW_kde = Σ_Bt da_tkd x_te
            db_kd = Σ_Bt da_tkd
            dU_kdj = Σ_Bt da_tkd h_{t-1,j}
            db'_kd = Σ_Bt da_tkd
            dx_te = Σ_kd W_kde da_tkd

            How far an error reaches back, for three steps:

            dc_0d = δ_0d + f_1d (δ_1d + f_2d δ_2d)
                  = δ_0d + f_1d δ_1d + f_1d f_2d δ_2d

            Only forget gates stand between a step and a later error.  While
            they are near 1, it comes through; without gates, a matrix would
            stand there in each step, and its powers vanish or explode.
"""
import numpy as np

from pyllama.models.lstm import scan
from pyllama.study.derivation import Derivation, Step

WEIGHTS = "W", "U", "b", "b'"                   # in the order of scan()


def code(names: dict) -> dict:
    """Both passes of the model's scan over all steps."""
    x = names["x"]
    weights = [names[name].reshape(-1, *names[name].shape[2:]) for name in WEIGHTS]
    y, back = scan(x, np.ones((*x.shape[:2], 1)), *weights)
    dx, *grads = back(names["dy"])
    return {"y": y, "dx": dx} | {f"d{name}": grad.reshape(names[name].shape)
                                 for name, grad in zip(WEIGHTS, grads, strict=True)}


DERIVATION = Derivation(
    title="Backpropagation through time, in an LSTM",
    source="pyllama.models.lstm",
    symbols=False,
    arrays={"x": "B T E", "dy": "B T D", "W": "K D E", "b": "K D", "U": "K D D", "b'": "K D"},
    letters={"t": "T", "k": "K", "d": "D", "j": "D", "e": "E"},
    sizes={"B": 2, "T": 3, "D": 2, "E": 2, "K": 4},
    fixed=("B", "T", "D", "K"),
    implicit=("B",),
    loss={"y": "dy"},
    code=code,
    steps=(
        Step("σ(u) = 1 / (1 + e^-u)", "The logistic function, between 0 and 1: how far a gate is open."),
        Step("a_tkd = Σ_e W_kde x_te + b_kd + Σ_j U_kdj h_{t-1,j} + b'_kd",
             "What the gates of step `t` see: its input, and the last output.",
             "(h, c), cell_back = lstm_cell(total(a[:, t], a_h), c)"),
        Step("i_td = σ(a_t0d), f_td = σ(a_t1d)", "How much is written, and how much is kept."),
        Step("g_td = tanh(a_t2d), o_td = σ(a_t3d)", "What would be written, and how much is shown."),
        Step("c_td = f_td c_{t-1,d} + i_td g_td", "The cell: a part of what it was, and a part of what is new."),
        Step("h_td = o_td tanh(c_td)", "What the cell shows, to the next step and to the outside."),
        Step("y_td = h_td", "The output is the state, so `h` has two uses.", "hs.append(h)"),

        Step("dh_td = dy_td + Σ_kj U_kjd da_{t+1,k,j}",
             "The two uses of `h_t` are the output of its own step, with the slope 1, and all gates of the next step, "
             "with the slopes `U`.  So the gradient of step `t + 1` comes first: backward in time.  "
             "In the code, present is 0 at padding.",
             "dh = times(total(dh, dy[:, t]), present[:, t])"),
        Step("δ_td = dh_td o_td (1 - tanh²(c_td))", "What `c_t` does through its own `h_t`, a part of its gradient."),
        Step("dc_td = δ_td + f_{t+1,d} dc_{t+1,d}",
             "And what it does through the next cell, which keeps the share `f_{t+1}` of it."),
        Step("σ'(u) = σ(u) (1 - σ(u)), tanh'(u) = 1 - tanh²(u)",
             "Both derivatives follow from the function's value, so no exponential is computed twice (see lstm_cell)."),
        Step("da_t0d = dc_td g_td i_td (1 - i_td)",
             "`i` is in `c` alone, with the slope `g`, and has itself the slope of `σ`, which is `i_td (1 - i_td)`."),
        Step("da_t1d = dc_td c_{t-1,d} f_td (1 - f_td)",
             "`f` is in `c` with the slope `c_{t-1}`, which is 0 in the first step: there is nothing to forget."),
        Step("da_t2d = dc_td i_td (1 - g_td²)", "`g` is in `c` with the slope `i`."),
        Step("da_t3d = dh_td tanh(c_td) o_td (1 - o_td)", "`o` is in `h` alone."),
        Step("dW_kde = Σ_Bt da_tkd x_te",
             "Imagine a copy of `W` for each step.  Each copy has the gradient `da_t x_t` of a linear map, and since "
             "all copies are the same matrix, they move together: their gradients add.",
             "dx, d_ih, db_ih = input_back(np.stack(das[::-toward], axis=1))"),
        Step("db_kd = Σ_Bt da_tkd", "The same, with the slope 1."),
        Step("dU_kdj = Σ_Bt da_tkd h_{t-1,j}", "The same for the copies of `U`, whose input is the last output.",
             "d_hh, db_hh = d_hh + dw, db_hh + db"),
        Step("db'_kd = Σ_Bt da_tkd", "PyTorch has two biases.  They are added, so their gradients are equal."),
        Step("dx_te = Σ_kd W_kde da_tkd", "An input is used in its own step alone."),
        Step("dc_0d = δ_0d + f_1d (δ_1d + f_2d δ_2d)",
             "For a text of three steps: the line of `dc` three times, each in the place of `dc` in the one before.  "
             "After the last step there is nothing."),
        Step("= δ_0d + f_1d δ_1d + f_1d f_2d δ_2d",
             "An error of step 2 reaches step 0 as a product of two gates.  Each `δ` has more paths within it, "
             "through `h` and `U`."),
    ))
