"""A residual sum and its RMS norm in one pass over memory.

Arrays      x [... D], a [... D], w [D] in; s [... D], y [... D] out;
            all float32 or all float64.  A row is one vector of length D.
Options     eps=1e-5: ε, as in rms_norm.

Forward     s_j = x_j + a_j
            r = (mean_j s_j² + ε)^-½                          one number per row
            n_j = s_j r
            y_j = w_j n_j

            This is rms_norm of s (see rms_norm.py).  Fused, each row of s is
            normalized while it is still in cache.

Backward    g_j = w_j dy_j                                the gradient of n_j

            s reaches the loss twice: directly and through y.  Its whole
            gradient h is the sum of the two parts, the second as in rms_norm:

            h_j = ds_j + r (g_j - n_j mean_i g_i n_i)

            The sum x + a hands that gradient to both terms unchanged:

            dx_j = da_j = h_j
            dw_j = Σ_rows dy_j n_j

Saved       s, w, r, as rms_norm saves them for the input s.  dx and da are
            the same array, which saves a copy: do not write into either.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     The mean square of s = (1, 7) is 25, so r is 1/5.

            >>> import numpy as np
            >>> from pyllama.ops import add_rms_norm
            >>> x, a = np.array([0.0, 3.0]), np.array([1.0, 4.0])
            >>> w = np.array([1.0, 2.0])
            >>> (s, y), back = add_rms_norm(x, a, w)
            >>> s
            array([1., 7.])
            >>> y.round(4)
            array([0.2, 2.8])
            >>> ds, dy = np.array([1.0, 0.0]), np.array([1.0, 0.0])
            >>> dx, da, dw = back((ds, dy))
            >>> dx.round(4)
            array([ 1.196, -0.028])
            >>> dw.round(4)
            array([0.2, 0. ])
"""
from pyllama.op import between, op
from pyllama.ops.rms_norm import rms_norm


def forward(x, a, w, *, eps=1e-5):
    s = x + a
    y, saved = rms_norm.forward(s, w, eps=eps)
    return (s, y), saved


def backward(dys, s, w, r, *, eps=1e-5):
    ds, dy = dys
    dx, dw = rms_norm.backward(dy, s, w, r)
    dx = ds + dx
    return dx, dx, dw


add_rms_norm = op("x[... D], a[... D], w[D] -> s[... D], y[... D]", forward, backward, weights=("w",),
                  eps=between(1e-3, 1.0))
