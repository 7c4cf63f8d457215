"""Negative sampling (Mikolov et al., 2013, equation 4): tell the true word from K drawn ones.

Forward     z_nk = x_n · w_{s(n,k)}                   s(n,0) = t_n is the word seen, s(n,1..K) the negatives drawn
            u_n0 = -z_n0,   u_nk = z_nk               large where the model is wrong
            loss = mean_n Σ_k softplus(u_nk)          since -log σ(z) = softplus(-z),  softplus(u) = log(1 + e^u)

            A negative that happens to be t_n counts all the same: the expectation is over the whole distribution.

Backward    softplus' = σ, so with N pairs

            dz_n0 = -σ(u_n0) dloss / N                dz_nk = σ(u_nk) dloss / N
            dx_n  = Σ_k dz_nk w_{s(n,k)}              dw_v  = Σ_{n,k : s(n,k) = v} dz_nk x_n

Saved       x, w, s, u.   The rows w_s are gathered again: they are D times as many numbers as u.
"""
import numpy as np

from pyllama.ids import require_below
from pyllama.op import op
from pyllama.ops.embedding import embedding
from pyllama.ops.swiglu import sigmoid


def softplus(u):
    """log(1 + e^u) with no exponent above 0, so that nothing overflows."""
    return np.where(u.real > 0, u, 0) + np.log1p(np.exp(np.where(u.real > 0, -u, u)))


def turned(z):
    """z with the sign of its first column, the true words', changed."""
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


negative_sampling = op("x[N D], w[V D], t[N]<V, negatives[N K]<V -> loss[]", forward, backward)
