"""Cosine distance: how far two rows point in different directions.

Source      Sanh et al., 2019, for the hidden states of two models

Arrays      x [N D], y [N D] in, float32 or float64; t [N] in, integers: the
            targets, of which only those that are ignore_index matter here;
            loss [] out, from 0 to 2, in the precision of x.
Options     eps=1e-12: ε, so that a row of zeros has the cosine 0.
            ignore_index=-100: rows with this target do not count.
            count=None: C, the divisor; see cross_entropy.py.

Forward     a_n = (Σ_d x_nd² + ε)^-½
            b_n = (Σ_d y_nd² + ε)^-½
            s_n = a_n b_n Σ_d x_nd y_nd                  the cosine
            c_n = [t_n ≠ ignore_index]                   1 if the row counts
            C = max(Σ_n c_n, 1)                          unless count is given
            loss = Σ_n c_n (1 - s_n) / C

Backward    ∂a_n/∂x_nd = -a_n³ x_nd
            ∂s_n/∂x_nd = a_n (b_n y_nd - s_n a_n x_nd)
            ∂s_n/∂y_nd = b_n (a_n x_nd - s_n b_n y_nd)

            dx_nd = -c_n ∂s_n/∂x_nd dloss / C
            dy_nd = -c_n ∂s_n/∂y_nd dloss / C

            dx is orthogonal to x, up to ε: lengths are left as they are.

Saved       x, y, t, a, b, s.

Raises      TypeError: precisions differ, t not integer.
            ValueError: shapes do not fit.

Example     (3, 4) and (4, 3), both of length 5, have the cosine 24/25.

            >>> import numpy as np
            >>> from pyllama.ops import cosine_distance
            >>> x, y = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
            >>> loss, back = cosine_distance(x, y, np.array([0]))
            >>> round(float(loss), 4)
            0.04
            >>> dx, dy, dt = back(1.0)
            >>> dx.round(4)
            array([[-0.0448,  0.0336]])
"""
import numpy as np

from pyllama.op import between, op
from pyllama.ops.cross_entropy import denominator, valid


def one_over_length(x, eps):
    return (np.sum(x * x, axis=-1) + eps) ** -0.5


def forward(x, y, t, *, eps=1e-12, ignore_index=-100, count=None):
    a, b = one_over_length(x, eps), one_over_length(y, eps)
    s = a * b * np.sum(x * y, axis=-1)
    distance = np.where(valid(t, ignore_index), 1 - s, 0)
    return np.sum(distance) / denominator(x, t, ignore_index, count), (x, y, t, a, b, s)


def backward(dloss, x, y, t, a, b, s, *, ignore_index=-100, count=None, **options):
    scale = np.where(valid(t, ignore_index)[:, None], -dloss / denominator(x, t, ignore_index, count), 0)
    u, v, s = x * a[:, None], y * b[:, None], s[:, None]
    return (v - s * u) * a[:, None] * scale, (u - s * v) * b[:, None] * scale, None


cosine_distance = op("x[N D], y[N D], t[N]<2 -> loss[]", forward, backward, eps=between(1e-6, 0.1),
                     ignore_index=[-100, 0], count=[None, 1, 7])
