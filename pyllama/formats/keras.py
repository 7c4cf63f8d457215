"""Keras' layout of an LSTM layer's weights.

Both multiply the same way and have their gates in the same order: what Keras calls i f c o is PyTorch's i f g o.  But
Keras' matrices are (in, 4*D) where PyTorch's are (4*D, in), and it has one bias where PyTorch adds two.  It means the
layer as it is today: gates by a sigmoid, not the `hard_sigmoid` that was the default before Keras 2.3.
Source: keras.layers.LSTMCell.
"""
import numpy as np

from pyllama.errors import UserError


def from_keras(kernel, recurrent_kernel, bias):
    """(w_ih[4*D E], w_hh[4*D D], b_ih[4*D], b_hh[4*D]) of kernel[E 4*D], recurrent_kernel[D 4*D] and bias[4*D].

    The bias becomes b_ih; b_hh is zero.  New arrays, of the same dtypes.  Raises UserError if the shapes are no LSTM's.
    """
    D = len(recurrent_kernel)
    if kernel.ndim != 2 or {kernel.shape[1:], recurrent_kernel.shape[1:], bias.shape} != {(4 * D,)}:
        raise UserError(f"kernel {kernel.shape}, recurrent_kernel {recurrent_kernel.shape} and bias {bias.shape} are "
                        f"not (E, 4*D), (D, 4*D) and (4*D,); give the weights of an LSTM layer, in Keras' order")
    return kernel.T.copy(), recurrent_kernel.T.copy(), bias.copy(), np.zeros_like(bias)


def to_keras(w_ih, w_hh, b_ih, b_hh):
    """(kernel, recurrent_kernel, bias), the inverse of from_keras: the two biases become their sum."""
    return w_ih.T.copy(), w_hh.T.copy(), b_ih + b_hh
