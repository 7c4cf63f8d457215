"""SwiGLU gate, y = silu(g) u (Shazeer, 2020, equation 5).

Arrays      g [... F], u [... F] in: the gate and the values; y [... F] out;
            all float32 or all float64.

Forward     σ(g) = 1 / (1 + e^-g)
            silu(g) = g σ(g)
            y = g σ(g) u

Backward    σ'(g) = e^-g / (1 + e^-g)²
                  = σ (1 - σ)
            silu'(g) = σ + g σ (1 - σ)
                     = σ (1 + g (1 - σ))

            dg = dy u σ (1 + g (1 - σ))
            du = dy g σ

Saved       g, u.  σ is recomputed: an exponential costs less than a store and
            a load.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     σ(0) is 1/2 and σ(log 3) is 3/4.

            >>> import numpy as np
            >>> from pyllama.ops import swiglu
            >>> g, u = np.log([1.0, 3.0]), np.array([2.0, 4.0])
            >>> y, back = swiglu(g, u)
            >>> y.round(4)
            array([0.    , 3.2958])
            >>> dg, du = back(np.ones(2))
            >>> dg.round(4)
            array([1.   , 3.824])
            >>> du.round(4)
            array([0.   , 0.824])
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
