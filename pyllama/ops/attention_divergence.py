"""KL divergence of the attention of two models, of which each has its own keys.

Source      Wang et al., 2020 (MiniLM), equation 5

Arrays      a [B H T J], b [B H S J] in: the queries and keys of the teacher;
            q [B H T K], k [B H S K] in: those of the student, with as many
            heads, of any width; all float32 or all float64.
            target [B T] in, integers: only those that are ignore_index
            matter here; loss [] out, in nats, in the precision of a.
            Optional, in this order or by name, and as in attention.py: mask
            [B S] or [B T S], segments [B S].
Options     causal, window: see attention.py.
            ignore_index=-100: queries with this target do not count.
            count=None: C, the divisor; see cross_entropy.py.

Forward     n runs over the sequences of the batch, h over heads, t over
            queries, s over keys, j and i over the numbers of a head.  m_nts is
            1 where query t sees key s, and 0 elsewhere: see attention.py.

            w_nhts = J^-½ Σ_j a_nhtj b_nhsj
            z_nhts = K^-½ Σ_i q_nhti k_nhsi
            lse'_nht = log Σ_s m_nts exp w_nhts
            lse_nht = log Σ_s m_nts exp z_nhts
            p_nhts = m_nts exp(w_nhts - lse'_nht)        the teacher's shares
            o_nhts = m_nts exp(z_nhts - lse_nht)         the student's
            r_nhts = w_nhts - lse'_nht - z_nhts + lse_nht    log p/o, if seen
            l_nht = Σ_s p_nhts r_nhts
            c_nt = [target_nt ≠ ignore_index]            1 if the query counts
            C = max(Σ_nt c_nt, 1)                        unless count is given
            loss = Σ_nht c_nt l_nht / (H C)

            It is a mean over the heads and over the queries that count.  If a
            query sees no key, its l is 0 and it passes no gradient on.

Backward    ∂l_nht/∂z_nhts = o_nhts - p_nhts
            ∂l_nht/∂w_nhts = p_nhts (r_nhts - l_nht)

            dz_nhts = c_nt (o_nhts - p_nhts) dloss / (H C)
            dw_nhts = c_nt p_nhts (r_nhts - l_nht) dloss / (H C)

            dq_nhti = K^-½ Σ_s dz_nhts k_nhsi
            dk_nhsi = K^-½ Σ_t dz_nhts q_nhti
            da_nhtj = J^-½ Σ_s dw_nhts b_nhsj
            db_nhsj = J^-½ Σ_t dw_nhts a_nhtj

Saved       a, b, q, k, target, p, o, r, l.  Unlike attention, it keeps arrays
            of T S numbers, for one layer.

Raises      TypeError: precisions differ, target not integer.
            ValueError: shapes do not fit.

Example     One head of width 1.  The teacher's shares are (1/4, 3/4), the
            student's (1/2, 1/2), so dz is (1/4, -1/4).

            >>> import numpy as np
            >>> from pyllama.ops import attention_divergence
            >>> a, q = np.ones((2, 1, 1, 1, 1))
            >>> b, k = np.log([[1.0, 3.0], [1.0, 1.0]]).reshape(2, 1, 1, 2, 1)
            >>> target = np.array([[0]])
            >>> loss, back = attention_divergence(a, b, q, k, target)
            >>> round(float(loss), 4)
            0.1308
            >>> da, db, dq, dk, dtarget = back(1.0)
            >>> dk.ravel().round(4)
            array([ 0.25, -0.25])

            Where one key is hidden, both share out the other one alone:

            >>> mask = np.array([[1, 0]])
            >>> loss, back = attention_divergence(a, b, q, k, target, mask)
            >>> float(loss)
            0.0
"""
import numpy as np

from pyllama.op import op
from pyllama.ops.attention import visible
from pyllama.ops.cross_entropy import denominator, valid
from pyllama.ops.softmax import log_sum_exp


def shares(q, k, seen):
    """Softmax over the keys that are seen, and its logarithm, which means nothing elsewhere: two of [B H T S]."""
    z = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    a = np.where(seen, z, -np.inf)
    lse = log_sum_exp(a)
    return np.exp(a - lse), z - lse


def forward(a, b, q, k, target, mask=None, segments=None, *, causal=False, window=None, ignore_index=-100, count=None):
    seen = visible(q, k, mask, segments, causal, window)[:, None]
    (p, log_p), (o, log_o) = shares(a, b, seen), shares(q, k, seen)
    r = log_p - log_o
    row = np.sum(p * r, axis=-1)
    per_query = np.where(valid(target, ignore_index), np.mean(row, axis=1), 0)
    loss = np.sum(per_query) / denominator(a, target, ignore_index, count)
    return loss, (a, b, q, k, target, p, o, r, row)


def backward(dloss, a, b, q, k, target, p, o, r, row, *, ignore_index=-100, count=None, **options):
    scale = dloss / (q.shape[1] * denominator(a, target, ignore_index, count))
    scale = np.where(valid(target, ignore_index)[:, None, :, None], scale, 0)
    dz = (o - p) * scale * q.shape[-1] ** -0.5
    dw = p * (r - row[..., None]) * scale * a.shape[-1] ** -0.5
    return dw @ b, dw.swapaxes(-1, -2) @ a, dz @ k, dz.swapaxes(-1, -2) @ q, None, None, None


attention_divergence = op("a[B H T J], b[B H S J], q[B H T K], k[B H S K], target[B T]<2, mask[B T? S]<2?, "
                          "segments[B S]<3? -> loss[]", forward, backward, causal=[False, True], window=[None, 1, 2, 5],
                          ignore_index=[-100, 0], count=[None, 1, 7])
