"""The ops.  One module each: derivation, forward, backward.  Listing one here registers it everywhere."""
from pyllama.ops.add_rms_norm import add_rms_norm
from pyllama.ops.attention import attention
from pyllama.ops.cross_entropy import cross_entropy
from pyllama.ops.dropout import dropout
from pyllama.ops.embedding import embedding
from pyllama.ops.gelu import gelu
from pyllama.ops.glove import glove
from pyllama.ops.layer_norm import layer_norm
from pyllama.ops.linear import linear
from pyllama.ops.linear_cross_entropy import linear_cross_entropy
from pyllama.ops.lstm_cell import lstm_cell
from pyllama.ops.negative_sampling import negative_sampling
from pyllama.ops.relu import relu
from pyllama.ops.rms_norm import rms_norm
from pyllama.ops.rope import rope
from pyllama.ops.softmax import softmax
from pyllama.ops.swiglu import swiglu
from pyllama.ops.tanh import tanh

__all__ = ["add_rms_norm", "attention", "cross_entropy", "dropout", "embedding", "gelu", "glove", "layer_norm",
           "linear", "linear_cross_entropy", "lstm_cell", "negative_sampling", "relu", "rms_norm", "rope", "softmax",
           "swiglu", "tanh"]
