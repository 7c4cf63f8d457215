"""Rectified linear unit (Nair & Hinton, 2010).

Arrays      x [... F] in; y [... F] out; float32 or float64.

Forward     y = max(x, 0)                                     NaN stays NaN

Backward    [x > 0] is 1 where x > 0 and 0 elsewhere.

            dx = [x > 0] dy

            At 0 every slope from 0 to 1 is a subgradient; we take 0.

Saved       x.

Raises      TypeError: x or dy not floating.

Example     Only the positive entry passes, and only its gradient.

            >>> import numpy as np
            >>> from pyllama.ops import relu
            >>> y, back = relu(np.array([-1.0, 0.0, 2.0]))
            >>> y
            array([0., 0., 2.])
            >>> dx, = back(np.array([3.0, 3.0, 3.0]))
            >>> dx
            array([0., 0., 3.])
"""
import numpy as np

from pyllama.op import op


def forward(x):
    return np.where(x.real <= 0, 0, x), (x,)                      # NaN is not <= 0, so it passes through


def backward(dy, x):
    return (np.where(x.real > 0, dy, 0),)


relu = op("x[... F] -> y[... F]", forward, backward)
