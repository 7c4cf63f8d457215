"""Affine map, the weight stored as (out, in): y = x wᵀ + b (backward: Rumelhart, Hinton & Williams, 1986).

Forward     y_ne = Σ_d x_nd w_ed + b_e                        n runs over all leading axes

Backward    ∂y_ne/∂x_nd = w_ed     ∂y_ne/∂w_ed = x_nd     ∂y_ne/∂b_e = 1,  hence

            dx_nd = Σ_e dy_ne w_ed          dx = dy w
            dw_ed = Σ_n dy_ne x_nd          dw = dyᵀ x
            db_e  = Σ_n dy_ne

Saved       x, w, b (is there a bias?).
"""
from pyllama.op import op


def forward(x, w, b=None):
    E, D = w.shape
    y = (x.reshape(-1, D) @ w.T).reshape(*x.shape[:-1], E)       # all leading axes in one product, not one for each
    return (y if b is None else y + b), (x, w, b)


def backward(dy, x, w, b):
    E, D = w.shape
    rows = dy.reshape(-1, E)
    return (rows @ w).reshape(x.shape), rows.T @ x.reshape(-1, D), None if b is None else rows.sum(axis=0)


linear = op("x[... D], w[E D], b[E]? -> y[... E]", forward, backward)
