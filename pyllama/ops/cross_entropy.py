"""Cross-entropy of softmax(z) against integer targets, with label smoothing and the z-loss.

Forward     Let lse_n = log Σ_v exp z_nv and log p = z - lse.  The target distribution of row n is
            q_nv = (1 - α) [v = t_n] + α/V  (Szegedy et al., 2016), and ζ weighs the z-loss (Chowdhery et al., 2022):

            l_n  = -Σ_v q_nv log p_nv + ζ lse_n²  =  lse_n - (1 - α) z_n,t(n) - α mean_v z_nv + ζ lse_n²
            loss = Σ_n l_n / C,           the sum over rows whose target is not ignore_index

            C is their number (at least 1), or `count` where the rows are a part of a larger batch: the parts' losses
            and gradients then add up to those of the whole.

Backward    ∂lse_n/∂z_nv = p_nv, so for a row that counts

            dz_nv = ( (1 + 2 ζ lse_n) p_nv - (1 - α) [v = t_n] - α/V ) dloss / C

Saved       z, t, lse.   p = exp(z - lse) is computed again.
"""
import numpy as np

from pyllama.ids import require_below
from pyllama.op import between, op
from pyllama.ops.softmax import log_sum_exp


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
