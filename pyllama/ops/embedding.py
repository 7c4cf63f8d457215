"""Table lookup (Bengio et al., 2003): a token's vector is its row of the table.

Forward     y_btd = w_{ids(b,t) d}

Backward    Written as a product with the one-hot matrix O_nv = [ids_n = v] over the N = B T positions, y = O w is
            linear in w, so

            dw = Oᵀ dy        dw_vd = Σ_{n : ids_n = v} dy_nd

            a scatter-add: a token that occurs twice receives both rows.  ids is an integer and has no gradient.

Saved       ids, w (for its shape).
"""
import numpy as np

from pyllama.op import op


def require_below(ids, bound, what="token id"):
    """IndexError that names the first id outside 0 .. bound-1: NumPy would wrap negative ones silently."""
    wrong = ids[(ids < 0) | (ids >= bound)]
    if wrong.size:
        raise IndexError(f"{what} {int(wrong[0])} is outside the vocabulary of {bound} (0 to {bound - 1})")


def forward(ids, w):
    require_below(ids, len(w))
    return w[ids], (ids, w)


def backward(dy, ids, w):
    dw = np.zeros_like(w)
    np.add.at(dw, ids, dy)
    return None, dw


embedding = op("ids[B T]<V, w[V D] -> y[B T D]", forward, backward)
