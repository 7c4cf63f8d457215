"""One step of an LSTM (Hochreiter & Schmidhuber, 1997) with a forget gate (Gers, Schmidhuber & Cummins, 2000).

Forward     a = [a_i a_f a_g a_o], in PyTorch's order, is the sum of what the input and the last output send the gates:

            i, f, o = σ(a_i), σ(a_f), σ(a_o)        g = tanh(a_g)
            c1 = f c + i g                          h = o t,   t = tanh(c1)

Backward    c1 leaves twice, as itself and through h, where ∂h/∂c1 = o (1 - t²).  Its whole gradient is

            δ = dc1 + dh o (1 - t²)                 and with σ' = σ (1 - σ), tanh' = 1 - tanh²

            da_i = δ g i (1 - i)        da_g = δ i (1 - g²)        dc = δ f
            da_f = δ c f (1 - f)        da_o = dh t o (1 - o)

            While f is near 1, dc is nearly δ: the error survives many steps.

Saved       c, i, f, g, o, t.   a and c alone would be five numbers instead of six, for five exponentials more.
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
