"""SwiGLU gate (Shazeer, 2020, equation 5): y = silu(g) u,  silu(g) = g σ(g).

Forward     σ(g) = 1 / (1 + e^-g)          y = g σ u

Backward    σ' = e^-g / (1 + e^-g)² = σ (1 - σ),  so  silu'(g) = σ + g σ (1 - σ) = σ (1 + g (1 - σ)):

            dg = dy u σ (1 + g (1 - σ))        du = dy g σ

Saved       g, u.   σ is computed again: an exponential costs less than a store and a load.
"""
import numpy as np

from pyllama.op import op


def sigmoid(x):
    """1 / (1 + e^-x) with no exponent above 0, so that nothing overflows."""
    e = np.exp(np.where(x.real > 0, -x, x))
    return np.where(x.real > 0, 1, e) / (1 + e)


def forward(g, u):
    return g * sigmoid(g) * u, (g, u)


def backward(dy, g, u):
    s = sigmoid(g)
    return dy * u * s * (1 + g * (1 - s)), dy * g * s


swiglu = op("g[... F], u[... F] -> y[... F]", forward, backward)
