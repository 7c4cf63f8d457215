"""GloVe's weighted squared error (Pennington, Socher & Manning, 2014, equation 8), as a mean over N word pairs.

Forward     e_n  = w_{i(n)} · v_{j(n)} + a_{i(n)} + b_{j(n)} - y_n        y = log of how often word j stands near i
            loss = mean_n f_n e_n²                                        f = how much the pair counts

Backward    With h_n = 2 f_n e_n dloss / N  =  ∂loss/∂e_n:

            dw_p = Σ_{n : i(n) = p} h_n v_{j(n)}      da_p = Σ_{n : i(n) = p} h_n      dy_n = -h_n
            dv_q = Σ_{n : j(n) = q} h_n w_{i(n)}      db_q = Σ_{n : j(n) = q} h_n      df_n = e_n² dloss / N

Saved       w, v, i, j, f, e.
"""
import numpy as np

from pyllama.ids import require_below
from pyllama.op import op


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


glove = op("w[V D], v[V D], a[V], b[V], i[N]<V, j[N]<V, y[N 1], f[N 1] -> loss[]", forward, backward)
