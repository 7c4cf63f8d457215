"""Cross-entropy of softmax(z) with integer targets.

Arrays      z [N V] in, the logits: a score for each of V words; float32 or
            float64; t [N] in, integers from 0 to V-1; loss [] out, in nats
            (logarithms to the base e), in the precision of z.
Options     ignore_index=-100: rows with this target do not count.
            label_smoothing=0.0: α, the part of the target distribution that
            is uniform (Szegedy et al., 2016).
            z_loss=0.0: ζ, the weight of lse², which keeps the logits from
            drifting (Chowdhery et al., 2022).
            count=None: C, the divisor.  None: the number of rows that count,
            at least 1.  Give the number of the whole batch if these rows are
            a part of it; then the losses and gradients of the parts add up.

Forward     A bracket is 1 where its condition holds and 0 elsewhere.  p is the
            softmax of the logits, q the target distribution.

            lse_n = log Σ_v exp z_nv
            p_nv = exp(z_nv - lse_n)
            log p_nv = z_nv - lse_n
            q_nv = (1 - α) [v = t_n] + α/V
            l_n = -Σ_v q_nv log p_nv + ζ lse_n²
                = lse_n - (1 - α) z_{n,t(n)} - α mean_v z_nv + ζ lse_n²
            c_n = [t_n ≠ ignore_index]                   1 if the row counts
            C = max(Σ_n c_n, 1)                          unless count is given
            loss = Σ_n c_n l_n / C

Backward    ∂lse_n/∂z_nv = p_nv                          see softmax.py
            ∂l_n/∂z_nv = (1 + 2 ζ lse_n) p_nv - q_nv

            dz_nv = c_n ∂l_n/∂z_nv dloss / C
                  = ((1 + 2 ζ lse_n) p_nv - q_nv) c_n dloss / C

Saved       z, t, lse.  p is recomputed.

Raises      IndexError: a target outside 0 .. V-1 that is not ignore_index.
            TypeError: z not floating, t not integer.
            ValueError: shapes do not fit.

Example     The logits (log 3, 0) give the probabilities (3/4, 1/4), so the
            loss of target 0 is log 4/3.

            >>> import numpy as np
            >>> from pyllama.ops import cross_entropy
            >>> z, t = np.log([[3.0, 1.0]]), np.array([0])
            >>> loss, back = cross_entropy(z, t)
            >>> round(float(loss), 4)
            0.2877
            >>> dz, dt = back(1.0)
            >>> dz.round(4)
            array([[-0.25,  0.25]])
            >>> dt is None                                # t is an integer
            True

            The second of these rows does not count:

            >>> loss, back = cross_entropy(np.log([[3.0, 1.0], [1.0, 1.0]]),
            ...                            np.array([0, -100]))
            >>> round(float(loss), 4)
            0.2877
            >>> back(1.0)[0].round(4) + 0.0
            array([[-0.25,  0.25],
                   [ 0.  ,  0.  ]])

            With α = 1/2 the target distribution is (3/4, 1/4).  It equals p,
            so the gradient vanishes:

            >>> loss, back = cross_entropy(z, t, label_smoothing=0.5)
            >>> back(1.0)[0].round(4) + 0.0
            array([[0., 0.]])
"""
import numpy as np

from pyllama.op import between, op
from pyllama.ops.softmax import log_sum_exp
from pyllama.shapes import require_below


def valid(t, ignore_index):
    return t != ignore_index


def denominator(z, t, ignore_index, count):
    """C, in the precision of z."""
    return np.maximum(valid(t, ignore_index).sum() if count is None else count, 1).astype(z.real.dtype)


def forward(z, t, *, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, count=None):
    counts = valid(t, ignore_index)
    require_below(t[counts], z.shape[-1], "target")
    lse = log_sum_exp(z)
    target = z[np.arange(len(t), like=t), np.where(counts, t, 0)]
    row = lse[:, 0] - (1 - label_smoothing) * target + z_loss * lse[:, 0] ** 2
    if label_smoothing:
        row = row - label_smoothing * np.mean(z, axis=-1)
    return np.sum(np.where(counts, row, 0)) / denominator(z, t, ignore_index, count), (z, t, lse)


def backward(dloss, z, t, lse, *, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, count=None):
    counts = valid(t, ignore_index)
    dz = (1 + 2 * z_loss * lse) * np.exp(z - lse) - label_smoothing / z.shape[-1]
    dz[np.arange(len(t), like=t), np.where(counts, t, 0)] -= 1 - label_smoothing
    return np.where(counts[:, None], dz, 0) * (dloss / denominator(z, t, ignore_index, count)), None


cross_entropy = op("z[N V], t[N]<V -> loss[]", forward, backward, ignore_index=[-100, 0],
                   label_smoothing=between(0.0, 0.5), z_loss=between(0.0, 0.1), count=[None, 1, 7])
