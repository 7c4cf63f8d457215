"""Table lookup: the vector of a token is its row (Bengio et al., 2003).

Arrays      ids [B T] in, integers from 0 to V-1; w [V D] in, y [B T D] out,
            float32 or float64.

Forward     y_btd = w_vd,   v = ids_bt

Backward    O has the ids as one-hot vectors: the bracket is 1 where its
            condition holds and 0 elsewhere.

            O_btv = [ids_bt = v]
            y_btd = Σ_v O_btv w_vd

            dw_vd = Σ_bt O_btv dy_btd
                  = Σ_{b,t : ids(b,t) = v} dy_btd

            This is a scatter-add: if a token occurs twice, its row of dw is
            the sum of both rows of dy.  ids are integers: no gradient.

Saved       ids (None if w is frozen), w (for its shape).

Raises      IndexError: an id outside 0 .. V-1.  ValueError: shapes do not fit.
            TypeError: ids not integer, w not floating.

Example     Token 2 occurs twice, token 1 never.

            >>> import numpy as np
            >>> from pyllama.ops import embedding
            >>> ids = np.array([[2, 0, 2]])
            >>> w = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
            >>> y, back = embedding(ids, w)
            >>> y
            array([[[5., 6.],
                    [1., 2.],
                    [5., 6.]]])
            >>> dids, dw = back(np.ones_like(y))
            >>> dw
            array([[1., 1.],
                   [0., 0.],
                   [2., 2.]])
            >>> dids is None
            True
"""
import numpy as np

from pyllama.op import op
from pyllama.shapes import require_below


def forward(ids, w):
    require_below(ids, len(w))
    return w[ids], (ids, w)


def backward(dy, ids, w):
    if ids is None:
        return None, None
    dw = np.zeros_like(w)
    np.add.at(dw, ids, dy)
    return None, dw


embedding = op("ids[B T]<V, w[V D] -> y[B T D]", forward, backward, weights=("w",), saved_for={"w": 0})
