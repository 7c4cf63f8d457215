"""Layer normalization (Ba, Kiros & Hinton, 2016).

Arrays      x [... D], w [D], b [D] in; y [... D] out; all float32 or all
            float64.  A row is one vector of length D.
Options     eps=1e-5: ε, which keeps a constant row from dividing by zero.

Forward     c_j = x_j - mean_i x_i
            r = (mean_j c_j² + ε)^-½                          one number per row
            n_j = c_j r
            y_j = w_j n_j + b_j

Backward    g_j = w_j dy_j                                the gradient of n_j

            First the gradient of c, as in rms_norm:

            ∂r/∂c_j = -r³ c_j / D
            dc_j = Σ_i g_i ∂(c_i r)/∂c_j
                 = g_j r - r³ c_j (Σ_i g_i c_i) / D
                 = r (g_j - n_j mean_i g_i n_i)

            Then that of x.  The matrix of c's derivatives is symmetric, so
            its transpose subtracts a mean, too:

            ∂c_i/∂x_j = δ_ij - 1/D
            dx_j = Σ_i dc_i ∂c_i/∂x_j = dc_j - mean_i dc_i

            The mean of n is zero, so only g contributes to the mean of dc:

            mean_i dc_i = r mean_i g_i
            dx_j = r (g_j - mean_i g_i - n_j mean_i g_i n_i)
            dw_j = Σ_rows dy_j n_j
            db_j = Σ_rows dy_j

Saved       n, w, r.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     The mean of x is 2 and its variance 1, so r is 1 (up to ε).

            >>> import numpy as np
            >>> from pyllama.ops import layer_norm
            >>> x = np.array([1.0, 1.0, 3.0, 3.0])
            >>> w, b = np.ones(4), np.array([0.0, 0.0, 0.0, 5.0])
            >>> y, back = layer_norm(x, w, b)
            >>> y.round(4)
            array([-1., -1.,  1.,  6.])
            >>> dx, dw, db = back(np.array([1.0, 0.0, 0.0, 0.0]))
            >>> dx.round(4) + 0.0
            array([ 0.5, -0.5,  0. ,  0. ])
            >>> dw.round(4) + 0.0
            array([-1.,  0.,  0.,  0.])
            >>> db
            array([1., 0., 0., 0.])
"""
import numpy as np

from pyllama.op import between, op


def forward(x, w, b, *, eps=1e-5):
    c = x - np.mean(x, axis=-1, keepdims=True)
    r = (np.mean(c * c, axis=-1, keepdims=True) + eps) ** -0.5
    n = c * r
    return w * n + b, (n, w, r)


def backward(dy, n, w, r, *, eps=1e-5):
    g, rows = w * dy, tuple(range(dy.ndim - 1))
    dx = r * (g - np.mean(g, axis=-1, keepdims=True) - n * np.mean(g * n, axis=-1, keepdims=True))
    return dx, np.sum(dy * n, axis=rows), np.sum(dy, axis=rows)


layer_norm = op("x[... D], w[D], b[D] -> y[... D]", forward, backward, weights=("w", "b"), eps=between(1e-3, 1.0))
