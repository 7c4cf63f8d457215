"""One step of an LSTM with a forget gate.

Sources     Hochreiter & Schmidhuber, 1997; Gers, Schmidhuber & Cummins, 2000

Arrays      a [N 4*D] in: what input and last output send to the gates, in
            PyTorch's order a_i a_f a_g a_o, D numbers each; c [N D] in: the
            last cell state; h [N D] out: the output; c1 [N D] out: the new
            cell state.  All float32 or all float64.

Forward     σ(x) = 1 / (1 + e^-x)
            i = σ(a_i)                                    the input gate
            f = σ(a_f)                                    the forget gate
            o = σ(a_o)                                    the output gate
            g = tanh(a_g)
            c1 = f c + i g
            t = tanh(c1)
            h = o t

Backward    c1 reaches the loss twice: directly and through h.  Its whole
            gradient is δ.

            σ'(x) = σ(x) (1 - σ(x)),   tanh'(x) = 1 - tanh² x
            ∂h/∂c1 = o (1 - t²)
            δ = dc1 + dh o (1 - t²)
            da_i = δ g i (1 - i)
            da_f = δ c f (1 - f)
            da_g = δ i (1 - g²)
            da_o = dh t o (1 - o)
            dc = δ f

            While f is near 1, dc is close to δ: the error signal survives
            many steps.

Saved       c, i, f, g, o, t.  To save only a and c would take five numbers
            instead of six, and five more exponentials.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     With a = 0 the gates are half open: i = f = o = 1/2, and g = 0.

            >>> import numpy as np
            >>> from pyllama.ops import lstm_cell
            >>> a, c = np.zeros((1, 4)), np.array([[1.0]])
            >>> (h, c1), back = lstm_cell(a, c)
            >>> c1
            array([[0.5]])
            >>> h.round(4)                                  # tanh(0.5) / 2
            array([[0.2311]])
            >>> dh, dc1 = np.array([[0.0]]), np.array([[1.0]])
            >>> da, dc = back((dh, dc1))                    # δ = 1
            >>> da + 0.0
            array([[0.  , 0.25, 0.5 , 0.  ]])
            >>> dc
            array([[0.5]])
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.swiglu import sigmoid


def forward(a, c):
    i, f, g, o = np.split(a, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c1 = f * c + i * g
    t = np.tanh(c1)
    return (o * t, c1), (c, i, f, g, o, t)


def backward(dys, c, i, f, g, o, t):
    dh, dc1 = dys
    d = dc1 + dh * o * (1 - t * t)
    da = [d * g * i * (1 - i), d * c * f * (1 - f), d * i * (1 - g * g), dh * t * o * (1 - o)]
    return np.concatenate(da, axis=-1), d * f


lstm_cell = op("a[N 4*D], c[N D] -> h[N D], c1[N D]", forward, backward)
