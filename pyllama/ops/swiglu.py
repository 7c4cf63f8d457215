"""SwiGLU gate, y = silu(g) u (Shazeer, 2020, equation 5).

Arrays      g [... F], u [... F] in: the gate and the values; y [... F] out;
            all float32 or all float64.

Forward     σ(x) = 1 / (1 + e^-x)
            silu(x) = x σ(x)
            s = σ(g)
            y = silu(g) u = g s u

Backward    σ'(x) = e^-x / (1 + e^-x)²
                  = σ(x) (1 - σ(x))
            ∂s/∂g = s (1 - s)
            silu'(g) = s + g s (1 - s)
                     = s (1 + g (1 - s))

            dg = dy u s (1 + g (1 - s))
            du = dy g s

Saved       g, u.  s is recomputed: an exponential costs less than a store and
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
