"""Gaussian error linear unit (Hendrycks & Gimpel, 2016).

Arrays      x [... F] in; y [... F] out; float32 or float64.
Options     tanh=False: the exact function.  True: the paper's approximation
            with tanh, which GPT-2 uses; it differs by less than 5e-4.

Forward     Φ is the normal distribution function: Φ(x) is the probability
            that a normal number is below x.

            Φ(x) = ½ (1 + erf(x/√2))
            y = x Φ(x)
   tanh     c = 0.044715
            u = √(2/π) (x + c x³)
            t = tanh u
            y = ½ x (1 + t)

Backward    By the product rule, with the density φ:

            erf'(z) = 2/√π · exp(-z²)
            φ(x) = Φ'(x) = exp(-x²/2) / √(2π)
            dx = dy (Φ(x) + x φ(x))
   tanh     ∂t/∂u = 1 - t²
            ∂u/∂x = √(2/π) (1 + 3 c x²)
            dx = dy (½ (1 + t) + ½ x (1 - t²) ∂u/∂x)

Saved       x.  The functions are recomputed: to store and load their values
            would cost as much.

Raises      TypeError: x or dy not floating.

Example     Φ(1) is 0.8413, φ(1) is 0.2420.

            >>> import numpy as np
            >>> from pyllama.ops import gelu
            >>> x = np.array([-1.0, 0.0, 1.0])
            >>> y, back = gelu(x)
            >>> y.round(4) + 0.0
            array([-0.1587,  0.    ,  0.8413])
            >>> dx, = back(np.ones(3))
            >>> dx.round(4)
            array([-0.0833,  0.5   ,  1.0833])

            The approximation is close:

            >>> y, back = gelu(x, tanh=True)
            >>> y.round(4) + 0.0
            array([-0.1588,  0.    ,  0.8412])
            >>> dx, = back(np.ones(3))
            >>> dx.round(4)
            array([-0.083,  0.5  ,  1.083])
"""
import math

import numpy as np

from pyllama.erf import erf
from pyllama.op import op

C, ROOT = 0.044715, math.sqrt(2 / math.pi)


def forward(x, *, tanh=False):
    if tanh:
        return 0.5 * x * (1 + np.tanh(ROOT * (x + C * x * x * x))), (x,)
    return 0.5 * x * (1 + erf(x * 0.5 ** 0.5)), (x,)


def backward(dy, x, *, tanh=False):
    if tanh:
        t, du = np.tanh(ROOT * (x + C * x * x * x)), ROOT * (1 + 3 * C * x * x)
        return (dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du),)
    density = np.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5
    return (dy * (0.5 * (1 + erf(x * 0.5 ** 0.5)) + x * density),)


gelu = op("x[... F] -> y[... F]", forward, backward, tanh=[False, True])
