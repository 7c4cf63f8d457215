"""Hyperbolic tangent, an odd and bounded unit (LeCun et al., 1998).

Arrays      x [... F] in; y [... F] out; float32 or float64.

Forward     y = tanh x

Backward    tanh x = sinh x / cosh x
            tanh'(x) = (cosh² x - sinh² x) / cosh² x
                     = 1 - tanh² x
            dx = dy (1 - y²)

Saved       y.

Raises      TypeError: x or dy not floating.

Example     tanh(log 2) is (2 - 1/2) / (2 + 1/2), that is 3/5.

            >>> import numpy as np
            >>> from pyllama.ops import tanh
            >>> y, back = tanh(np.log([1.0, 2.0]))
            >>> y.round(4)
            array([0. , 0.6])
            >>> dx, = back(np.ones(2))
            >>> dx.round(4)
            array([1.  , 0.64])
"""
import numpy as np

from pyllama.op import op


def forward(x):
    y = np.tanh(x)
    return y, (y,)


def backward(dy, y):
    return (dy * (1 - y * y),)


tanh = op("x[... F] -> y[... F]", forward, backward)
