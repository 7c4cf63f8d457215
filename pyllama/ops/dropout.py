"""Dropout (Srivastava et al., 2014), scaled in training so that evaluation leaves x alone.

Forward     m_i ∈ {0, 1},  P(m_i = 1) = 1 - rate           y = m x / (1 - rate),   E[y] = x

Backward    y is linear in x and m does not depend on it:  dx = m dy / (1 - rate)

Saved       nothing: m is drawn again.  Number i of the array that x is a part of, from number `start` on, has its own
            place in the key's stream (pyllama/rng.py).  So m depends neither on precision, device and what was drawn
            before nor on how a batch is cut into parts; recomputation and resuming repeat it.
"""
import numpy as np

from pyllama.op import between, op
from pyllama.rng import generator

BLOCK = 8                                                   # float32 numbers that Philox makes of one counter value


def scale(x, rate, key, start):
    """m / (1 - rate), in the precision of x."""
    rng = generator(*key)
    rng.bit_generator.advance(start // BLOCK)
    keep = rng.random(start % BLOCK + x.size, dtype=np.float32)[start % BLOCK:].reshape(x.shape) >= rate
    return np.asarray(keep / (1 - rate), dtype=x.real.dtype, like=x)


def forward(x, *, rate=0.1, key=(0,), start=0):
    return x * scale(x, rate, key, start), ()


def backward(dy, *, rate=0.1, key=(0,), start=0):
    return (dy * scale(dy, rate, key, start),)


dropout = op("x[... D] -> y[... D]", forward, backward,
             rate=between(0.0, 0.9), key=[(0,), (7, "residual", 3, 1)], start=between(0, 99))
