"""Rectified linear unit (Nair & Hinton, 2010).

Forward     y = max(x, 0)

Backward    y = x where x > 0 and 0 elsewhere, so dx = dy where x > 0 and 0 elsewhere.  At x = 0 every slope from 0 to 1
            is a subgradient; we take 0.

Saved       x.
"""
import numpy as np

from pyllama.op import op


def forward(x):
    return np.where(x.real <= 0, 0, x), (x,)                      # NaN is not <= 0: it passes, and shows


def backward(dy, x):
    return (np.where(x.real > 0, dy, 0),)


relu = op("x[... F] -> y[... F]", forward, backward)
