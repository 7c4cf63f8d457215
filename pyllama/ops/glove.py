"""GloVe's weighted squared error (Pennington, Socher & Manning, 2014, eq. 8).

Arrays      w [V D], v [V D] in: word and context vectors; a [V], b [V] in:
            their biases; i [N], j [N] in: N pairs of words, integers from 0
            to V-1; y [N 1] in: log of how often j occurs near i; f [N 1] in:
            the weight of the pair; loss [] out.  All but i and j are float32,
            or all float64.

Forward     n runs over pairs, d over the numbers of a vector.  The paper's
            sum is divided by N:

            e_n = w_{i(n)} · v_{j(n)} + a_{i(n)} + b_{j(n)} - y_n
            loss = Σ_n f_n e_n² / N

Backward    h_n = ∂loss/∂e_n dloss                       the gradient of e_n
                = 2 f_n e_n dloss / N

            p and q run over words.  A bracket is 1 where its condition holds
            and 0 elsewhere.

            ∂e_n/∂w_pd = [i(n) = p] v_{j(n),d}
            dw_pd = Σ_{n : i(n) = p} h_n v_{j(n),d}
            dv_qd = Σ_{n : j(n) = q} h_n w_{i(n),d}
            da_p = Σ_{n : i(n) = p} h_n
            db_q = Σ_{n : j(n) = q} h_n
            dy_n = -h_n
            df_n = e_n² dloss / N

Saved       w, v, i, j, f, e.

Raises      IndexError: an id outside 0 .. V-1.  ValueError: shapes do not fit.
            TypeError: precisions differ, i or j not integer.

Example     One pair, words 1 and 0: e = 2 · 3 + 0 + 0 - 5.

            >>> import numpy as np
            >>> from pyllama.ops import glove
            >>> w, v = np.array([[1.0], [2.0]]), np.array([[3.0], [1.0]])
            >>> a, b = np.zeros(2), np.zeros(2)
            >>> i, j = np.array([1]), np.array([0])
            >>> y, f = np.array([[5.0]]), np.array([[0.5]])
            >>> loss, back = glove(w, v, a, b, i, j, y, f)
            >>> float(loss)
            0.5
            >>> dw, dv, da, db, di, dj, dy, df = back(1.0)
            >>> dw, dv
            (array([[0.],
                   [3.]]), array([[2.],
                   [0.]]))
            >>> da, db
            (array([0., 1.]), array([1., 0.]))
            >>> dy, df
            (array([[-1.]]), array([[1.]]))
"""
import numpy as np

from pyllama.op import op
from pyllama.shapes import require_below


def forward(w, v, a, b, i, j, y, f):
    require_below(i, len(w))
    require_below(j, len(v))
    e = (np.einsum("nd,nd->n", w[i], v[j]) + a[i] + b[j])[:, None] - y
    return np.sum(f * e * e) / max(len(e), 1), (w, v, i, j, f, e)


def backward(dloss, w, v, i, j, f, e):
    share = dloss / max(len(e), 1)
    h = 2 * f * e * share
    dw, dv = np.zeros_like(w), np.zeros_like(v)
    da, db = np.zeros_like(w, shape=len(w)), np.zeros_like(v, shape=len(v))
    for place, at, addend in ((dw, i, h * v[j]), (dv, j, h * w[i]), (da, i, h[:, 0]), (db, j, h[:, 0])):
        np.add.at(place, at, addend)
    return dw, dv, da, db, None, None, -h, e * e * share


glove = op("w[V D], v[V D], a[V], b[V], i[N]<V, j[N]<V, y[N 1], f[N 1] -> loss[]", forward, backward,
           weights=("w", "v", "a", "b"))
