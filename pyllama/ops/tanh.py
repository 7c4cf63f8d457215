"""Hyperbolic tangent, a unit that is odd and bounded (LeCun et al., 1998).

Forward     y = tanh x

Backward    tanh = sinh / cosh, so tanh' = (cosh² - sinh²) / cosh² = 1 - tanh²:       dx = dy (1 - y²)

Saved       y.
"""
import numpy as np

from pyllama.op import op


def forward(x):
    y = np.tanh(x)
    return y, (y,)


def backward(dy, y):
    return (dy * (1 - y * y),)


tanh = op("x[... F] -> y[... F]", forward, backward)
