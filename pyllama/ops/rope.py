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

Angles      θ_k = base^(-k/P),   k = 0 .. P-1
   linear   θ_k / factor instead of θ_k
   ntk      base · factor^(P/(P-1)) instead of base: θ_0 does not change, the
            slowest frequency is divided by factor
   llama3   by the wavelength λ = 2π/θ_k, with O the original context length:
            θ_k               if λ < O/high_freq_factor
            θ_k / factor      if λ > O/low_freq_factor
            between them, the weight of the first is linear in O/λ
   yarn     the pair k = P log(O/2πr) / log base makes r turns in O positions.
            f is this k for r = beta_fast = 32, rounded down, at least 0;
            l is it for r = beta_slow = 1, rounded up, at most 2P - 1.
            truncate=False: they are not rounded.
            θ_k               if k < f
            θ_k / factor      if k > l
            between them, the weight of the first is linear in k.
            cos A and sin A are multiplied by attention_factor, which is
            0.1 log factor + 1 by default.

Forward     a, b is a pair of row t, and A its angle.

            A = (start + t) θ_k
            a' = a cos A - b sin A
            b' = a sin A + b cos A

Backward    A rotation is orthogonal, so its transpose is the rotation by the
            opposite angle, and yarn's factor stays:

            da = da' cos A + db' sin A
            db = -da' sin A + db' cos A

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
