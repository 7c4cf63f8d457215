"""Mean squared distance of two arrays of rows.

Source      Romero et al., 2015, equation 3, for the hidden states of two models

Arrays      x [N D], y [N D] in, float32 or float64; t [N] in, integers: the
            targets, of which only those that are ignore_index matter here;
            loss [] out, in the precision of x.
Options     ignore_index=-100: rows with this target do not count.
            count=None: C, the divisor; see cross_entropy.py.

Forward     c_n = [t_n ≠ ignore_index]                   1 if the row counts
            C = max(Σ_n c_n, 1)                          unless count is given
            l_n = mean_d (x_nd - y_nd)²
            loss = Σ_n c_n l_n / C

Backward    ∂l_n/∂x_nd = 2 (x_nd - y_nd) / D

            dx_nd = 2 (x_nd - y_nd) c_n dloss / (C D)
            dy_nd = -dx_nd

Saved       x, y, t.

Raises      TypeError: precisions differ, t not integer.
            ValueError: shapes do not fit.

Example     The differences are (1, 3), so the mean of their squares is 5.

            >>> import numpy as np
            >>> from pyllama.ops import squared_distance
            >>> x, y = np.array([[3.0, 4.0]]), np.array([[2.0, 1.0]])
            >>> loss, back = squared_distance(x, y, np.array([0]))
            >>> float(loss)
            5.0
            >>> dx, dy, dt = back(1.0)
            >>> dx
            array([[1., 3.]])
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.cross_entropy import denominator, valid


def forward(x, y, t, *, ignore_index=-100, count=None):
    row = np.mean((x - y) ** 2, axis=-1)
    return np.sum(np.where(valid(t, ignore_index), row, 0)) / denominator(x, t, ignore_index, count), (x, y, t)


def backward(dloss, x, y, t, *, ignore_index=-100, count=None):
    scale = 2 * dloss / (x.shape[-1] * denominator(x, t, ignore_index, count))
    dx = (x - y) * np.where(valid(t, ignore_index)[:, None], scale, 0)
    return dx, -dx, None


squared_distance = op("x[N D], y[N D], t[N]<2 -> loss[]", forward, backward, ignore_index=[-100, 0],
                      count=[None, 1, 7])
