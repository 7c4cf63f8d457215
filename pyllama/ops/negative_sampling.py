"""Negative sampling: tell the word that was seen from K random ones.

Source      Mikolov et al., 2013, equation 4

Arrays      x [N D], w [V D] in: the vectors of N contexts and of V words, both
            float32 or both float64; t [N] in: the word seen in each context;
            negatives [N K] in: K words drawn for it; integers from 0 to V-1.
            loss [] out, in nats, in the precision of x.

Forward     z is the score of the word that was seen, z' that of a word drawn.

            s_nk = negatives_nk
            z_n = x_n · w_{t(n)}
            z'_nk = x_n · w_{s(n,k)}

            softplus(u) = log(1 + e^u)
            σ(u) = 1 / (1 + e^(-u))
            softplus(-u) = -log σ(u)

            loss = Σ_n (softplus(-z_n) + Σ_k softplus(z'_nk)) / N

            The loss is large where the word seen has a low score, or a word
            drawn has a high one.  A negative that happens to equal t_n counts
            as well: the expectation is over all words.

            The code has both kinds in one array: column 0 of its s is t, and
            column 0 of its u is -z.  The others are the negatives and z'.

Backward    softplus'(u) = σ(u)

            dz_n = -σ(-z_n) dloss / N
            dz'_nk = σ(z'_nk) dloss / N

            A bracket is 1 where its condition holds and 0 elsewhere.

            ∂z_n/∂x_nd = w_{t(n),d}
            ∂z_n/∂w_vd = [t_n = v] x_nd

            dx_nd = dz_n w_{t(n),d} + Σ_k dz'_nk w_{s(n,k),d}
            dw_vd = Σ_n ([t_n = v] dz_n + Σ_k [s_nk = v] dz'_nk) x_nd

Saved       x, w, s, u.  The rows w_s are gathered again: they hold D times as
            many numbers as u.

Raises      IndexError: a word outside 0 .. V-1.  ValueError: shapes do not
            fit.  TypeError: precisions differ, t or negatives not integer.

Example     Word 0 is seen, word 1 is drawn.  z is log 3 and z' is 0, so the
            loss is log 4/3 + log 2, dz is -1/4 and dz' is 1/2.

            >>> import numpy as np
            >>> from pyllama.ops import negative_sampling
            >>> x, w = np.array([[1.0]]), np.log([[3.0], [1.0]])
            >>> t, negatives = np.array([0]), np.array([[1]])
            >>> loss, back = negative_sampling(x, w, t, negatives)
            >>> round(float(loss), 4)
            0.9808
            >>> dx, dw, _, _ = back(1.0)
            >>> dx.round(4)
            array([[-0.2747]])
            >>> dw.round(4)
            array([[-0.25],
                   [ 0.5 ]])
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.embedding import embedding
from pyllama.ops.swiglu import sigmoid
from pyllama.shapes import require_below


def softplus(u):
    """log(1 + e^u) with no exponent above 0, so that nothing overflows."""
    return np.where(u.real > 0, u, 0) + np.log1p(np.exp(np.where(u.real > 0, -u, u)))


def turned(z):
    """z with the sign of column 0, the words seen, flipped."""
    return np.where(np.arange(z.shape[1], like=z) == 0, -z, z)


def forward(x, w, t, negatives):
    s = np.concatenate([t[:, None], negatives], axis=1)
    require_below(s, len(w))
    u = turned(np.einsum("nd,nkd->nk", x, w[s]))
    return np.sum(softplus(u)) / max(len(x), 1), (x, w, s, u)


def backward(dloss, x, w, s, u):
    dz = turned(sigmoid(u)) * (dloss / max(len(x), 1))
    dw = embedding.backward(dz[:, :, None] * x[:, None, :], s, w)[1]
    return np.einsum("nk,nkd->nd", dz, w[s]), dw, None, None


negative_sampling = op("x[N D], w[V D], t[N]<V, negatives[N K]<V -> loss[]", forward, backward, weights=("w",))
