"""Row norms of an adapted matrix (DoRA: Liu et al., 2024, equation 5).

Arrays      w [E D], a [R D], b [E R] in; n [E] out; all float32 or all
            float64.  R is the rank of the update b a.
Options     eps=1e-24: ε, which keeps a row of zeros from dividing by zero.  It
            is lost in rounding where a row is larger than 1e-8.

Forward     v_ed = w_ed + Σ_r b_er a_rd                    the adapted matrix
            n_e = (Σ_d v_ed² + ε)^½

            The sum of squares could be had without v, from products with the
            few rows of a.  But where the update cancels w it is a small
            difference of large numbers, and rounding might make it negative.

Backward    ∂n_e/∂v_ed = v_ed / n_e

            g_ed = dn_e v_ed / n_e                         the gradient of v
            dw_ed = g_ed
            da_rd = Σ_e b_er g_ed
            db_er = Σ_d g_ed a_rd

            DoRA as it is usually run detaches the norm: it takes n for a
            constant and omits this pass.

Saved       w, a, b, n.  v is recomputed: it is as large as w.

Raises      TypeError: precisions differ.  ValueError: shapes do not fit.

Example     The row (3, 0) + 2 (0, 2) is (3, 4), whose norm is 5.

            >>> import numpy as np
            >>> from pyllama.ops import adapted_norm
            >>> w, a = np.array([[3.0, 0.0]]), np.array([[0.0, 2.0]])
            >>> b = np.array([[2.0]])
            >>> n, back = adapted_norm(w, a, b)
            >>> n
            array([5.])
            >>> dw, da, db = back(np.array([1.0]))
            >>> dw.round(4), da.round(4), db.round(4)
            (array([[0.6, 0.8]]), array([[1.2, 1.6]]), array([[1.6]]))
"""
import numpy as np

from pyllama.op import between, op


def forward(w, a, b, *, eps=1e-24):
    v = w + b @ a
    n = (np.sum(v * v, axis=-1) + eps) ** 0.5
    return n, (w, a, b, n)


def backward(dn, w, a, b, n, *, eps=1e-24):
    h = dn / n
    g = h[:, None] * (w + b @ a)
    return g, b.T @ g, g @ a.T


adapted_norm = op("w[E D], a[R D], b[E R] -> n[E]", forward, backward, weights=("w", "a", "b"),
                  eps=between(1e-3, 1.0))
