"""Dropout (Srivastava et al., 2014), scaled in training so that evaluation leaves x alone.

Forward     m_i ∈ {0, 1},  P(m_i = 1) = 1 - rate           y = m x / (1 - rate),   E[y] = x

Backward    y is linear in x and m does not depend on it:  dx = m dy / (1 - rate)

Saved       nothing: m is drawn again from the key.  The draw depends on the key and the shape alone (pyllama/rng.py),
            not on the precision, the device or what was drawn before, so recomputation and resuming repeat it.
"""
import numpy as np

from pyllama.op import between, op
from pyllama.rng import generator


def scale(x, rate, key):
    """m / (1 - rate), in the precision of x."""
    keep = generator(*key).random(x.shape, dtype=np.float32) >= rate
    return np.asarray(keep / (1 - rate), dtype=x.real.dtype, like=x)


def forward(x, *, rate=0.1, key=(0,)):
    return x * scale(x, rate, key), ()


def backward(dy, *, rate=0.1, key=(0,)):
    return (dy * scale(dy, rate, key),)


dropout = op("x[... D] -> y[... D]", forward, backward,
             rate=between(0.0, 0.9), key=[(0,), (7, "residual", 3, 1)])
