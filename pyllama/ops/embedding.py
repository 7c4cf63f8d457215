"""Table lookup (Bengio et al., 2003): a token's vector is its row of the table.

Forward     y_btd = w_{ids(b,t) d}

Backward    Written as a product with the one-hot matrix O_nv = [ids_n = v] over the N = B T positions, y = O w is
            linear in w, so

            dw = Oᵀ dy        dw_vd = Σ_{n : ids_n = v} dy_nd

            a scatter-add: a token that occurs twice receives both rows.  ids is an integer and has no gradient.

Saved       ids, w (for its shape).
"""
import numpy as np

from pyllama.ids import require_below
from pyllama.op import op


def forward(ids, w):
    require_below(ids, len(w))
    return w[ids], (ids, w)


def backward(dy, ids, w):
    dw = np.zeros_like(w)
    np.add.at(dw, ids, dy)
    return None, dw


embedding = op("ids[B T]<V, w[V D] -> y[B T D]", forward, backward)
