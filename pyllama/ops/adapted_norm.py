"""Row norms of an adapted matrix (DoRA: Liu et al., 2024, equation 5).

Arrays      w [E D], a [R D], b [E R] in; n [E] out; all float32 or all
            float64.  R is the rank of the update b a.
Options     eps=1e-24: ε, which keeps a row of zeros from dividing by zero.  It
            is lost in rounding where a row is larger than 1e-8.

Forward     v_ed = w_ed + Σ_r b_er a_rd                    the adapted matrix
            n_e = (Σ_d v_ed² + ε)^½

            v is as large as w, so it is not formed.  What it is needed for are
            its products with the few rows of a:

            c_er = Σ_d w_ed a_rd
            q_rs = Σ_d a_rd a_sd
            u_er = c_er + Σ_s b_es q_sr
                 = Σ_d v_ed a_rd

            n_e = (Σ_d w_ed² + Σ_r b_er (c_er + u_er) + ε)^½

Backward    ∂n_e/∂v_ed = v_ed / n_e

            h_e = dn_e / n_e

            dw_ed = h_e v_ed
            db_er = Σ_d h_e v_ed a_rd
                  = h_e u_er
            da_rd = Σ_e h_e b_er v_ed
                  = Σ_e h_e b_er w_ed + Σ_s (Σ_e h_e b_er b_es) a_sd

            DoRA as it is usually run detaches the norm: it takes n for a
            constant and omits this pass.

Saved       w, a, b, u, n.

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
    c = w @ a.T
    u = c + b @ (a @ a.T)
    n = (np.einsum("ed,ed->e", w, w) + np.einsum("er,er->e", b, c + u) + eps) ** 0.5
    return n, (w, a, b, u, n)


def backward(dn, w, a, b, u, n, *, eps=1e-24):
    h = (dn / n)[:, None]
    hb = h * b
    return h * (w + b @ a), hb.T @ w + (hb.T @ b) @ a, h * u


adapted_norm = op("w[E D], a[R D], b[E R] -> n[E]", forward, backward, weights=("w", "a", "b"),
                  eps=between(1e-3, 1.0))
