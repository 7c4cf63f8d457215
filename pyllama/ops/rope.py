"""Rotary position embedding (Su et al., 2021, equation 34): position t turns pair k by the angle t θ_k.

            θ_k = base^(-k/P),   k = 0 .. P-1                    P = K/2 pairs in a head of width K
   layout   the pairs are (x_k, x_{k+P}), Hugging Face's halves, or interleaved (x_2k, x_2k+1), Meta's
   scaling  stretches the context; a dict with Hugging Face's keys, "rope_type" one of
            linear   θ_k / factor                               (Chen et al., 2023)
            ntk      base · factor^(P/(P-1)): fast pairs stay, the slowest is divided by factor  (bloc97, 2023)
            llama3   by the wavelength λ = 2π/θ_k against the first context length O: λ < O/high_freq_factor stays,
                     λ > O/low_freq_factor is divided by factor, linear in O/λ between         (Llama 3.1)

Forward     (a', b') = (a cos - b sin,  a sin + b cos)           at the angle (start + t) θ_k

Backward    A rotation is orthogonal: its transpose is the rotation by the opposite angle,

            (da, db) = (da' cos + db' sin,  -da' sin + db' cos)

Saved       cos, sin [T P], made in float64 whatever the precision of x: t θ_k grows large, its error must not.
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
                                               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}])
