"""Convert the weights of an LSTM layer from Keras to PyTorch's layout, which pyllama uses, and back.

The order of the gates is the same: what Keras calls i f c o, PyTorch calls i f g o.  Two things differ.  Keras stores
matrices as (in, 4*D), PyTorch as (4*D, in).  Keras has one bias, PyTorch adds two.

The layer must use the sigmoid for its gates.  Before Keras 2.3 the default was `hard_sigmoid`.
Source: keras.layers.LSTMCell.
"""
import numpy as np

from pyllama.errors import UserError


def from_keras(kernel, recurrent_kernel, bias):
    """Convert Keras' weights to PyTorch's.

    kernel            [E 4*D]
    recurrent_kernel  [D 4*D]
    bias              [4*D]
    returns           w_ih [4*D E], w_hh [4*D D], b_ih [4*D], b_hh [4*D]: new arrays of the same dtypes

    The bias becomes b_ih; b_hh is zero.  Raises UserError if the shapes are not those of an LSTM layer.

    >>> import numpy as np
    >>> from pyllama.formats.keras import from_keras
    >>> w_ih, w_hh, b_ih, b_hh = from_keras(np.ones((3, 8)), np.ones((2, 8)), np.ones(8))
    >>> w_ih.shape, w_hh.shape, b_ih.shape, b_hh.shape
    ((8, 3), (8, 2), (8,), (8,))
    """
    D = len(recurrent_kernel)
    if kernel.ndim != 2 or {kernel.shape[1:], recurrent_kernel.shape[1:], bias.shape} != {(4 * D,)}:
        raise UserError(f"kernel {kernel.shape}, recurrent_kernel {recurrent_kernel.shape} and bias {bias.shape} do "
                        f"not fit (E, 4*D), (D, 4*D) and (4*D,); give the weights of an LSTM layer, in Keras' order")
    return kernel.T.copy(), recurrent_kernel.T.copy(), bias.copy(), np.zeros_like(bias)


def to_keras(w_ih, w_hh, b_ih, b_hh):
    """Convert PyTorch's weights to Keras' (kernel, recurrent_kernel, bias): the inverse of from_keras.

    The bias is the sum of the two biases.

    >>> import numpy as np
    >>> from pyllama.formats.keras import to_keras
    >>> kernel, recurrent_kernel, bias = to_keras(np.ones((8, 3)), np.ones((8, 2)), np.ones(8), np.ones(8))
    >>> kernel.shape, recurrent_kernel.shape, bias.tolist()
    ((3, 8), (2, 8), [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    """
    return w_ih.T.copy(), w_hh.T.copy(), b_ih + b_hh
