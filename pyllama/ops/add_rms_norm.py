"""The residual sum and its root-mean-square normalisation in one pass: the two are read and written together.

Forward     s = x + a,   y = rms_norm(s, w)                                    see rms_norm.py

Backward    s leaves twice, as itself and through y, so its gradient is a sum; and it is a sum, so that gradient is
            also the one of both its addends:

            dx = da = ds + (rms_norm's dx for dy)              dw = rms_norm's dw for dy

Saved       s, w, r, as rms_norm saves them for its input s.   dx and da are one array: a copy would cost as much
            memory traffic as reading ds does, and only a caller who writes into one of them could tell.
"""
from pyllama.op import between, op
from pyllama.ops.rms_norm import rms_norm


def forward(x, a, w, *, eps=1e-5):
    s = x + a
    y, saved = rms_norm.forward(s, w, eps=eps)
    return (s, y), saved


def backward(dys, s, w, r, *, eps=1e-5):
    ds, dy = dys
    dx, dw = rms_norm.backward(dy, s, w, r)
    dx = ds + dx
    return dx, dx, dw


add_rms_norm = op("x[... D], a[... D], w[D] -> s[... D], y[... D]", forward, backward, eps=between(1e-3, 1.0))
