"""Rotary position embedding: turn pair k at position t by the angle t θ_k.

Sources     Su et al., 2021, equation 34; Chen et al., 2023 (linear);
            bloc97, 2023 (ntk); Llama 3.1 (llama3); Peng et al., 2023 (yarn)

Arrays      x [... T 2*P] in; y [... T 2*P] out; float32 or float64.
            A head of width K has P = K/2 pairs.  Angles are in radians.
Options     base=10000.0: sets how fast the frequencies θ_k fall.
            start=0: the position of the first row, for a cache.
            interleaved=False: the pairs are (x_k, x_{k+P}), Hugging Face's
            layout.  True: (x_{2k}, x_{2k+1}), Meta's layout.
            scaling=None: a dict with Hugging Face's keys that stretches the
            context; its rope_type is default, linear, ntk, llama3 or yarn.

Forward     (a_tk, b_tk) is pair k of row t, and A_tk its angle.

            θ_k = base^(-k/P)                            k runs over 0 .. P-1
            A_tk = (start + t) θ_k
            a'_tk = m (a_tk cos A_tk - b_tk sin A_tk)
            b'_tk = m (a_tk sin A_tk + b_tk cos A_tk)

            m is 1, except for yarn.  A scaling replaces θ by θ':

   linear   θ'_k = θ_k / factor
   ntk      θ'_k = (base factor^(P/(P-1)))^(-k/P)
   llama3   λ_k = 2 π / θ_k                              the wavelength
            h_k = min(max((O/λ_k - low) / (high - low), 0), 1)
            θ'_k = h_k θ_k + (1 - h_k) θ_k / factor
   yarn     d(n) = P log(O / (2 π n)) / log base         a pair of n turns
            f = max(floor d(beta_fast), 0)
            l = min(ceil d(beta_slow), 2 P - 1)
            h_k = 1 - min(max((k - f) / (l - f), 0), 1)
            θ'_k = h_k θ_k + (1 - h_k) θ_k / factor
            m = 0.1 log factor + 1                       or attention_factor

            O is original_max_position_embeddings, the length of the original
            context.  low and high are low_freq_factor and high_freq_factor.
            By default beta_fast is 32 and beta_slow is 1.  h is the share of
            the frequency that is kept.  Pair d(n) makes n turns in O positions.
            For l - f, yarn takes 0.001 if it is 0.  Without truncate, nothing
            is rounded.

Backward    A rotation is orthogonal, so its transpose is the rotation by the
            opposite angle.  The factor m stays:

            da_tk = m (da'_tk cos A_tk + db'_tk sin A_tk)
            db_tk = m (db'_tk cos A_tk - da'_tk sin A_tk)

Saved       cos, sin [T P].  They are computed in float64 for every precision
            of x, because t θ_k grows large and its error must not.

Raises      UserError: a scaling of unknown type, or one that lacks a key.
            TypeError: x or dy not floating.  ValueError: an odd width.

Example     One pair, so θ is 1.  Row 0 stays; row 1 turns by 1 radian, from
            (1, 0) to (cos 1, sin 1).

            >>> import numpy as np
            >>> from pyllama.ops import rope
            >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
            >>> y, back = rope(x)
            >>> y.round(4) + 0.0
            array([[1.    , 0.    ],
                   [0.5403, 0.8415]])
            >>> dx, = back(np.array([[0.0, 1.0], [0.0, 1.0]]))
            >>> dx.round(4) + 0.0
            array([[0.    , 1.    ],
                   [0.8415, 0.5403]])

            Row 1 by itself, and the same with all angles halved:

            >>> y, back = rope(x[1:], start=1)
            >>> y.round(4)
            array([[0.5403, 0.8415]])
            >>> half = {"rope_type": "linear", "factor": 2.0}
            >>> y, back = rope(x[1:], start=1, scaling=half)
            >>> y.round(4)                                # cos 0.5, sin 0.5
            array([[0.8776, 0.4794]])
"""
import numpy as np

from pyllama.op import between, op
from pyllama.rotary import tables


def rotate(x, cos, sin, interleaved):
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def forward(x, *, base=10000.0, start=0, interleaved=False, scaling=None):
    T, K = x.shape[-2:]
    cos, sin = (np.asarray(table, like=x) for table in tables(T, K // 2, base, start, scaling, x.real.dtype))
    return rotate(x, cos, sin, interleaved), (cos, sin)


def backward(dy, cos, sin, *, base=10000.0, start=0, interleaved=False, scaling=None):
    return (rotate(dy, cos, -sin, interleaved),)


rope = op("x[... T 2*P] -> y[... T 2*P]", forward, backward, base=between(2.0, 1e6), start=between(0, 99),
          interleaved=[False, True], scaling=[None, {"rope_type": "linear", "factor": 3.0},
                                              {"rope_type": "ntk", "factor": 4.0},
                                              {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                               "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
                                              {"rope_type": "yarn", "factor": 4.0,
                                               "original_max_position_embeddings": 64}])
