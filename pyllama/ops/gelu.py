"""Gaussian error linear unit (Hendrycks & Gimpel, 2016), exact or with their tanh approximation.

Forward     y = x Φ(x),   Φ(x) = ½ (1 + erf(x/√2))                             the normal distribution function
   tanh     y = ½ x (1 + t),   t = tanh u,   u = √(2/π) (x + c x³),   c = 0.044715

Backward    erf'(z) = 2/√π · exp(-z²), so Φ' = φ(x) = exp(-x²/2) / √(2π);  tanh' = 1 - tanh².  By the product rule

            dx = dy (Φ + x φ)
   tanh     dx = dy (½ (1 + t) + ½ x (1 - t²) u'),   u' = √(2/π) (1 + 3 c x²)

Saved       x.   The functions are computed again: a store and a load of y-sized arrays cost as much.
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
