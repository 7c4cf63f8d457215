"""The vocabulary projection and its cross-entropy in one pass over chunks of rows: never all N x V logits at once.

Forward     z = x wᵀ,   loss = cross_entropy(z, t)                             see cross_entropy.py for the options

Backward    dz = ∂loss/∂z,   dx = dz w,   dw = dzᵀ x                           see linear.py

            Row n of dz needs row n of z alone, and dw is a sum over rows.  So a chunk of rows gives its part of the
            loss, its rows of dx and its addend of dw while its logits are in cache, and the logits are forgotten:
            three products where a recomputing backward would need four.  The loss is one number, so the gradients
            for any dloss are those for dloss = 1 times dloss.

Saved       dx, dw for dloss = 1.
"""
import numpy as np

from pyllama.op import between, op
from pyllama.ops.cross_entropy import cross_entropy, denominator


def forward(x, w, t, *, chunk=None, ignore_index=-100, count=None, **options):
    chunk = chunk or max(1, 2 ** 21 // len(w))               # 8 MiB of float32 logits, and a few such temporaries
    options |= dict(ignore_index=ignore_index, count=denominator(x, t, ignore_index, count))
    loss, dx, dw = np.zeros_like(x, shape=()), np.empty_like(x), np.zeros_like(w)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        part, saved = cross_entropy.forward(x[rows] @ w.T, t[rows], **options)
        dz, _ = cross_entropy.backward(1, *saved, **options)
        loss, dx[rows] = loss + part, dz @ w
        dw += dz.T @ x[rows]
    return loss, (dx, dw)


def backward(dloss, dx, dw, **options):
    return dx * dloss, dw * dloss, None


linear_cross_entropy = op("x[N D], w[V D], t[N]<V -> loss[]", forward, backward, chunk=[None, 1, 3, 64],
                          ignore_index=[-100, 0], label_smoothing=between(0.0, 0.5), z_loss=between(0.0, 0.1),
                          count=[None, 1, 7])
