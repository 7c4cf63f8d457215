"""The ops.  Each has one module, with its derivation, forward and backward.

Importing an op here registers it for the tests, the benchmarks, the command line and the documentation.

Call        y, back = op(*inputs, **options), then the gradients = back(dy)
            dy is ∂loss/∂y, with the shape and precision of y.  back returns a
            tuple: one gradient for each input, None for an integer input.
Dtypes      float32 or float64, the same for all floating inputs of a call.
            Integer inputs may have any integer dtype.  The NumPy reference
            takes complex inputs too, for derivatives by a complex step.
Axes        B batch, T query time, S key time, D model, E output, H query
            heads, G key/value heads, R = H/G query heads per key/value head,
            K head width, J that of a teacher, P = K/2 rotary pairs, F hidden,
            V vocabulary, N rows
Raises      TypeError for a wrong number of inputs, mixed precisions, or an
            integer in place of a float; ValueError for shapes that do not
            fit.  back raises the same for a wrong dy.

Example     The slope of relu is 0 at -1 and 1 at 2.

            >>> import numpy as np
            >>> from pyllama import ops
            >>> y, back = ops.relu(np.array([-1.0, 2.0]))
            >>> y
            array([0., 2.])
            >>> dx, = back(np.array([3.0, 3.0]))
            >>> dx
            array([0., 3.])
"""
from pyllama.ops.adapted_norm import adapted_norm
from pyllama.ops.add_rms_norm import add_rms_norm
from pyllama.ops.attention import attention
from pyllama.ops.attention_divergence import attention_divergence
from pyllama.ops.cosine_distance import cosine_distance
from pyllama.ops.cross_entropy import cross_entropy
from pyllama.ops.dropout import dropout
from pyllama.ops.embedding import embedding
from pyllama.ops.gelu import gelu
from pyllama.ops.glove import glove
from pyllama.ops.kl_divergence import kl_divergence
from pyllama.ops.layer_norm import layer_norm
from pyllama.ops.linear import linear
from pyllama.ops.linear_cross_entropy import linear_cross_entropy
from pyllama.ops.lstm_cell import lstm_cell
from pyllama.ops.negative_sampling import negative_sampling
from pyllama.ops.relu import relu
from pyllama.ops.rms_norm import rms_norm
from pyllama.ops.rope import rope
from pyllama.ops.softmax import softmax
from pyllama.ops.squared_distance import squared_distance
from pyllama.ops.swiglu import swiglu
from pyllama.ops.tanh import tanh
from pyllama.ops.top_scores import top_scores

__all__ = ["adapted_norm", "add_rms_norm", "attention", "attention_divergence", "cosine_distance", "cross_entropy",
           "dropout", "embedding", "gelu", "glove", "kl_divergence", "layer_norm", "linear", "linear_cross_entropy",
           "lstm_cell", "negative_sampling", "relu", "rms_norm", "rope", "softmax", "squared_distance", "swiglu",
           "tanh", "top_scores"]
