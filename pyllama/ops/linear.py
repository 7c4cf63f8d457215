"""Affine map, y = x wᵀ + b (backward: Rumelhart, Hinton & Williams, 1986).

Arrays      x [... D], w [E D], b [E] in, b optional; y [... E] out; all
            float32 or all float64.  w is stored as (out, in).

Forward     n runs over all leading axes of x.

            y_ne = Σ_d x_nd w_ed + b_e

Backward    ∂y_ne/∂x_nd = w_ed
            ∂y_ne/∂w_ed = x_nd
            ∂y_ne/∂b_e = 1

            dx_nd = Σ_e dy_ne w_ed
            dw_ed = Σ_n dy_ne x_nd
            db_e = Σ_n dy_ne

            As matrices, with the leading axes as rows:

            dx = dy w
            dw = dyᵀ x

Saved       x (None if w is frozen), w, b (None if there is no bias).

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     y is (1·3 + 2·4 + 10, 1·5 + 2·6 + 20).

            >>> import numpy as np
            >>> from pyllama.ops import linear
            >>> x, w = np.array([1.0, 2.0]), np.array([[3.0, 4.0], [5.0, 6.0]])
            >>> y, back = linear(x, w, np.array([10.0, 20.0]))
            >>> y
            array([21., 37.])
            >>> dx, dw, db = back(np.array([1.0, 0.0]))
            >>> dx
            array([3., 4.])
            >>> dw
            array([[1., 2.],
                   [0., 0.]])
            >>> db
            array([1., 0.])

            Without a bias there are two gradients:

            >>> y, back = linear(x, w)
            >>> y
            array([11., 17.])
            >>> len(back(y))
            2
"""
from pyllama.op import op


def forward(x, w, b=None):
    E, D = w.shape
    y = (x.reshape(-1, D) @ w.T).reshape(*x.shape[:-1], E)       # one product for all leading axes together
    return (y if b is None else y + b), (x, w, b)


def backward(dy, x, w, b):
    E, D = w.shape
    rows = dy.reshape(-1, E)
    dx = (rows @ w).reshape(*dy.shape[:-1], D)
    dw = None if x is None else rows.T @ x.reshape(-1, D)
    return dx, dw, None if b is None else rows.sum(axis=0)


linear = op("x[... D], w[E D], b[E]? -> y[... E]", forward, backward, weights=("w", "b"),
            saved_for={"w": 0})
