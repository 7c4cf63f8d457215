"""Dropout, scaled in training so that evaluation uses x as it is.

Source      Srivastava et al., 2014

Arrays      x [... D] in; y [... D] out; float32 or float64.
Options     rate=0.1: the probability, in [0, 1), that a number is dropped.
            key=(0,): integers and words that name the random stream, such as
            (seed, "residual", step, layer).
            start=0: the index of x's first number in the array that x is a
            part of.

Forward     u_i is drawn from the uniform distribution on [0, 1).

            m_i = [u_i ≥ rate]                      1 if so, otherwise 0
            P(m_i = 1) = 1 - rate
            y_i = m_i x_i / (1 - rate)

            The scale makes the expected value of y equal to x.  It is the sum
            of both values, each times its probability:

            (1 - rate) x_i / (1 - rate) + rate · 0 = x_i

Backward    y is linear in x, and m does not depend on x:

            dx_i = m_i dy_i / (1 - rate)

Saved       Nothing: m is drawn again.  Each number has its own place in the
            stream (see pyllama/rng.py), counted from `start`.  So m does not
            depend on the precision, the device, earlier draws, or how a batch
            is split.  Recomputation and resumed runs draw the same m.

Raises      TypeError: x or dy not floating.

Example     With rate 1/2 the numbers that are kept are doubled.

            >>> import numpy as np
            >>> from pyllama.ops import dropout
            >>> x = np.array([1.0, 2.0, 3.0, 4.0])
            >>> y, back = dropout(x, rate=0.5, key=(7, "residual"))
            >>> y
            array([0., 4., 0., 8.])
            >>> dx, = back(np.ones(4))
            >>> dx
            array([0., 2., 0., 2.])

            The second half, drawn by itself, gets the same m:

            >>> half, _ = dropout(x[2:], rate=0.5, key=(7, "residual"),
            ...                   start=2)
            >>> half
            array([0., 8.])
"""
import numpy as np

from pyllama.op import between, op
from pyllama.rng import generator

BLOCK = 8                                                   # float32 numbers for each value of Philox's counter


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
