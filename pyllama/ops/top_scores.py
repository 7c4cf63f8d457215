"""Some of a row's scores, and one score for all the others together.

Arrays      z [N V] in, scores; i [N K] in, K < V different integers from 0 to
            V-1; y [N K] out, r [N] out, in the precision of z.
Options     temperature=1.0: T > 0, at which the scores are compared.

Forward     y_nk = z_{n,i(n,k)}
            m_nv = Π_k (1 - [i_nk = v])                  1 if v is not chosen
            u_n = Σ_v m_nv exp(z_nv / T)
            r_n = T log u_n

            The softmax of y and r, divided by T, is that of z / T, with the
            probabilities of all words that are not chosen in one sum.  So
            kl_divergence.py compares two models by a teacher's K best words.
            It is a lower bound of the divergence over V words, because terms
            of the latter are merged (Cover & Thomas, 2006, theorem 2.7.1).

            r is 0 in a row in which all words are chosen.

Backward    o_nv = m_nv exp(z_nv / T) / u_n
            ∂r_n/∂z_nv = o_nv

            dz_nv = Σ_k [i_nk = v] dy_nk + o_nv dr_n

            o is the student's softmax over the other words, so the gradient
            of a divergence scales them alike: their proportions stay as the
            student has them, because the teacher's are not known.

Saved       i, o.

Raises      IndexError: an id outside 0 .. V-1.  TypeError: z not floating,
            i not integer.  ValueError: shapes do not fit.

Example     The words of scores log 2 and log 4 are merged: log 6.

            >>> import numpy as np
            >>> from pyllama.ops import top_scores
            >>> z, i = np.log([[2.0, 8.0, 4.0]]), np.array([[1]])
            >>> (y, r), back = top_scores(z, i)
            >>> np.exp(y).round(4), np.exp(r).round(4)
            (array([[8.]]), array([6.]))
            >>> dz, di = back((np.array([[5.0]]), np.array([3.0])))
            >>> dz.round(4)
            array([[1., 5., 2.]])
"""
import numpy as np

from pyllama.op import between, op
from pyllama.ops.embedding import embedding
from pyllama.ops.softmax import log_sum_exp
from pyllama.shapes import require_below


def forward(z, i, *, temperature=1.0):
    N, V = z.shape
    require_below(i, V)
    rows = np.arange(N, like=i)[:, None]
    others = z / temperature
    others[rows, i] = -np.inf
    lse = log_sum_exp(others)
    return (z[rows, i], temperature * lse[:, 0]), (i, np.exp(others - lse))


def backward(dy, i, o, *, temperature=1.0):
    dy, dr = dy
    N, V = o.shape
    places = np.arange(N, like=i)[:, None] * V + i
    chosen = embedding.backward(dy[:, :, None], places, o.reshape(-1, 1))[1]
    return chosen.reshape(N, V) + o * dr[:, None], None


top_scores = op("z[N V], i[N K]<V -> y[N K], r[N]", forward, backward, temperature=between(0.5, 4.0))
