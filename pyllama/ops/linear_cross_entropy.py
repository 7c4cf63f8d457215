"""The output projection and its cross-entropy, in chunks of rows.

Arrays      x [N D], w [V D] in, both float32 or both float64; t [N] in,
            integers from 0 to V-1; loss [] out, in nats, in the precision of x.
Options     chunk=None: rows at a time.  None: as many as have 8 MiB of float32
            logits.  The result does not depend on it, except for rounding.
            ignore_index, label_smoothing, z_loss, count: see cross_entropy.py.

Forward     z_nv = Σ_d x_nd w_vd
            lse_n = log Σ_v exp z_nv
            loss = Σ_n (lse_n - z_{n,t(n)}) / N

            With options, loss and dz are those of cross_entropy.py.

Backward    dz_nv = (exp(z_nv - lse_n) - [v = t_n]) dloss / N

            dx_nd = Σ_v dz_nv w_vd
            dw_vd = Σ_n dz_nv x_nd

            Row n of dz needs only row n of z, and dw is a sum over rows.  So
            forward computes, for one chunk at a time, its part of the loss,
            its rows of dx and its term of dw, while the logits are in cache.
            Then it discards the logits.  There are never N V of them in
            memory.  This takes three matrix products; to recompute z in
            backward would take four.  The loss is a single number, so the
            gradients for a dloss of 1 are kept and multiplied by dloss.

            If w is frozen, dw is not computed.  If gradients are added to
            places (params.adding, with ahead), each chunk's term is added to
            the place of dw at once, so that dw exists once.

Saved       dx, dw for dloss = 1; dw is None if it is not wanted or added.

Raises      IndexError: a target outside 0 .. V-1 that is not ignore_index.
            TypeError: precisions differ, t not integer.
            ValueError: shapes do not fit.

Example     The logits (log 3, 0) give the probabilities (3/4, 1/4), and dz is
            (-1/4, 1/4).

            >>> import numpy as np
            >>> from pyllama.ops import linear_cross_entropy
            >>> x, w = np.array([[1.0]]), np.log([[3.0], [1.0]])
            >>> t = np.array([0])
            >>> loss, back = linear_cross_entropy(x, w, t)
            >>> round(float(loss), 4)
            0.2877
            >>> dx, dw, dt = back(1.0)
            >>> dx.round(4)
            array([[-0.2747]])
            >>> dw.round(4)
            array([[-0.25],
                   [ 0.25]])

            Two rows in two chunks have the same mean loss:

            >>> x, t = np.array([[1.0], [1.0]]), np.array([0, 0])
            >>> loss, back = linear_cross_entropy(x, w, t, chunk=1)
            >>> round(float(loss), 4)
            0.2877
"""
import numpy as np

from pyllama.op import between, op
from pyllama.ops.cross_entropy import cross_entropy, denominator


def forward(x, w, t, *, chunk=None, ignore_index=-100, count=None, into=None, **options):
    chunk = chunk or max(1, 2 ** 21 // len(w))               # 8 MiB of float32 logits; temporaries of that size
    options |= dict(ignore_index=ignore_index, count=denominator(x, t, ignore_index, count))
    loss, dx, dw = np.zeros_like(x, shape=()), np.empty_like(x), np.zeros_like(w) if into is None else into[1]
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        part, saved = cross_entropy.forward(x[rows] @ w.T, t[rows], **options)
        dz, _ = cross_entropy.backward(1, *saved, **options)
        loss, dx[rows] = loss + part, dz @ w
        if dw is not None:
            dw += dz.T @ x[rows]
    return loss, (dx, dw if into is None else None)


def backward(dloss, dx, dw, **options):
    return dx * dloss, None if dw is None else dw * dloss, None


linear_cross_entropy = op("x[N D], w[V D], t[N]<V -> loss[]", forward, backward, weights=("w",), ahead="w",
                          chunk=[None, 3, 64], ignore_index=[-100, 0],
                          label_smoothing=between(0.0, 0.5), z_loss=between(0.0, 0.1), count=[None, 1, 7])
