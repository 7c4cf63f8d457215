"""KL divergence of two softmax distributions at a temperature, times T².

Source      Hinton et al., 2015, section 2

Arrays      a [N V], b [N V] in: the scores that two models give to V words;
            float32 or float64; t [N] in, integers: the targets, of which
            only those that are ignore_index matter here; loss [] out, in
            nats, in the precision of a.
Options     temperature=1.0: T > 0.  The larger it is, the more the loss says
            about words of small probability.
            ignore_index=-100: rows with this target do not count.
            count=None: C, the divisor; see cross_entropy.py.

Forward     p and q are the softmax of both models' scores, divided by T.

            lse_n = log Σ_v exp(a_nv / T)
            lse'_n = log Σ_v exp(b_nv / T)
            p_nv = exp(a_nv / T - lse_n)
            q_nv = exp(b_nv / T - lse'_n)
            r_nv = log p_nv - log q_nv
            l_n = Σ_v p_nv r_nv
            c_n = [t_n ≠ ignore_index]                   1 if the row counts
            C = max(Σ_n c_n, 1)                          unless count is given
            loss = T² Σ_n c_n l_n / C

            With the teacher's scores for a and the student's for b it is the
            forward divergence: the student spreads over all that the teacher
            may say.  Exchanged, it is the reverse one: the student says
            little that the teacher would not.

Backward    ∂l_n/∂b_nv = (q_nv - p_nv) / T
            ∂l_n/∂a_nv = p_nv (r_nv - l_n) / T

            db_nv = T² c_n ∂l_n/∂b_nv dloss / C
                  = T (q_nv - p_nv) c_n dloss / C
            da_nv = T² c_n ∂l_n/∂a_nv dloss / C
                  = T p_nv (r_nv - l_n) c_n dloss / C

            Where T² comes from: one 1/T is that of the derivative.  The other
            is in q - p, because for large T exp(u/T) is 1 + u/T, and so q is
            1/V + (b - mean b) / (V T).  With T², the gradient tends to
            (b - mean b - a + mean a) / V instead of 0, and the weight of the
            loss beside another one does not have to change with T.

Saved       p, q, r, l, t.

Raises      TypeError: precisions differ, t not integer.
            ValueError: shapes do not fit.

Example     p is (1/4, 3/4), q is (1/2, 1/2), so q - p is (1/4, -1/4).

            >>> import numpy as np
            >>> from pyllama.ops import kl_divergence
            >>> a, b = np.log([[1.0, 3.0]]), np.zeros((1, 2))
            >>> loss, back = kl_divergence(a, b, np.array([0]))
            >>> round(float(loss), 4)
            0.1308
            >>> da, db, dt = back(1.0)
            >>> db.round(4)
            array([[ 0.25, -0.25]])
            >>> da.round(4)
            array([[-0.206,  0.206]])

            Scores and a temperature that are twice as large have the same
            p and q, so the loss is four times as large:

            >>> loss, back = kl_divergence(2 * a, 2 * b, np.array([0]),
            ...                            temperature=2.0)
            >>> round(float(loss), 4)
            0.5232
"""
import numpy as np

from pyllama.op import between, op
from pyllama.ops.cross_entropy import denominator, valid
from pyllama.ops.softmax import log_sum_exp


def log_softmax(x):
    return x - log_sum_exp(x)


def forward(a, b, t, *, temperature=1.0, ignore_index=-100, count=None):
    log_p, log_q = log_softmax(a / temperature), log_softmax(b / temperature)
    p, q, r = np.exp(log_p), np.exp(log_q), log_p - log_q
    row = np.sum(p * r, axis=-1)
    scale = temperature ** 2 / denominator(a, t, ignore_index, count)
    return np.sum(np.where(valid(t, ignore_index), row, 0)) * scale, (p, q, r, row, t)


def backward(dloss, p, q, r, row, t, *, temperature=1.0, ignore_index=-100, count=None):
    scale = temperature * dloss / denominator(p, t, ignore_index, count)
    scale = np.where(valid(t, ignore_index)[:, None], scale, 0)
    return p * (r - row[:, None]) * scale, (q - p) * scale, None


kl_divergence = op("a[N V], b[N V], t[N]<V -> loss[]", forward, backward, temperature=between(0.5, 4.0),
                   ignore_index=[-100, 0], count=[None, 1, 7])
