"""The operations of mygrad (github.com/rsokl/MyGrad)."""
import mygrad as mg
import numpy as np
from mygrad import nnet
from mygrad.operation_base import Operation

from bench.checkers.third_party_case import RIGHT, Case, between, normal

X, Y, ROW = normal(3, 4), normal(3, 4, seed=1), normal(4)
CUBE, IMAGES, KERNELS = normal(2, 3, 4), normal(2, 3, 5, 7), normal(4, 3, 2, 3)
POSITIVE, UNIT, ABOVE_1 = between(0.5, 2, 3, 4), between(-0.8, 0.8, 3, 4), between(2, 4, 3, 4)
PROBABILITIES, LABELS = between(0.1, 0.9, 3, 4), np.array([1, 3, 0])
GATES = [normal(5, 2, 3), *(normal(*shape, seed=seed) / 2 for seed in (1, 2, 3) for shape in ((3, 4), (4, 4), (4,)))]

UNARY = [
    (X, "Negative Positive Square Reciprocal Exp Exp2 Expm1 Arcsinh Cosh Coth Csch Sech Sinh Tanh Abs Cbrt Arccot "
        "Arctan Cos Cot Csc Sec Sin Sinc Tan"),
    (POSITIVE, "Log Log10 Log1p Log2 Sqrt Arccsch"),
    (UNIT, "Arctanh Arccos Arcsin"),
    (ABOVE_1, "Arccosh Arccoth Arccsc Arcsec"),
]
PAIRS = [
    (X, "Add Multiply Subtract Logaddexp Logaddexp2 Maximum Minimum Arctan2"),
    (POSITIVE, "Divide Power"),
]
CALLS = [
    ("Add broadcast", mg.add, [X, ROW]),
    ("Multiply broadcast", mg.multiply, [X, ROW]),
    ("AddSequence", mg.add_sequence, [X, Y, ROW]),
    ("MultiplySequence", mg.multiply_sequence, [X, Y, ROW]),
    ("GetItem", lambda x: x[1:, ::2], [X]),
    ("GetItem repeated", lambda x: x[np.array([2, 0, 0])], [X]),
    ("SetItem", lambda x, y: set_rows(x, y), [X, normal(2, 4)]),
    ("Where", lambda x, y: mg.where(X > 0, x, y), [X, Y]),
    ("EinSum", lambda a, b: mg.einsum("ij,jk->ik", a, b), [X, normal(4, 2)]),
    ("EinSum of a sum", lambda a, b: mg.einsum("ij,jk->k", a, b), [X, normal(4, 2)]),
    ("EinSum of a diagonal", lambda a: mg.einsum("ii->i", a), [normal(3, 3)]),
    ("EinSum of one matrix twice", lambda a: mg.einsum("ij,ij->i", a, a), [X]),
    ("Norm", lambda x: mg.linalg.norm(x, axis=1), [X]),
    ("Norm of order 3", lambda x: mg.linalg.norm(x, ord=3, axis=0), [X]),
    ("Norm of order 1", lambda x: mg.linalg.norm(x, ord=1, axis=0), [X]),
    ("MatMul", mg.matmul, [CUBE, normal(4, 2)]),
    ("MatMul of vectors", mg.matmul, [ROW, normal(4, seed=1)]),
    ("MatMul of several", lambda a, b, c: mg.multi_matmul([a, b, c]), [X, normal(4, 2), normal(2, 3)]),
    ("Sum", lambda x: mg.sum(x, axis=(0, 2)), [CUBE]),
    ("Mean", lambda x: mg.mean(x, axis=0, keepdims=True), [X]),
    ("Prod", lambda x: mg.prod(x, axis=1), [X]),
    ("Prod with a zero", mg.prod, [np.array([2.0, 0.0, 3.0])]),
    ("Variance", lambda x: mg.var(x, axis=1, ddof=1), [X]),
    ("StdDev", lambda x: mg.std(x, axis=0), [X]),
    ("Max", lambda x: mg.max(x, axis=1), [X]),
    ("Min", lambda x: mg.min(x, axis=0), [X]),
    ("CumSum", lambda x: mg.cumsum(x, axis=1), [X]),
    ("CumProd", lambda x: mg.cumprod(x, axis=1), [X]),
    ("CumProd with a zero", mg.cumprod, [np.array([2.0, 0.0, 3.0, 4.0])]),
    ("Clip", lambda x: mg.clip(x, -0.5, 0.5), [X]),
    ("AtLeast1D", mg.atleast_1d, [normal()]),
    ("AtLeast2D", mg.atleast_2d, [ROW]),
    ("AtLeast3D", mg.atleast_3d, [X]),
    ("BroadcastTo", lambda x: mg.broadcast_to(x, (2, 3, 4)), [normal(3, 1)]),
    ("ExpandDims", lambda x: mg.expand_dims(x, 1), [X]),
    ("Flatten", lambda x: x.flatten(), [X]),
    ("Ravel", mg.ravel, [X]),
    ("Reshape", lambda x: mg.reshape(x, (2, 6)), [X]),
    ("Squeeze", mg.squeeze, [normal(3, 1, 4)]),
    ("Concatenate", lambda a, b: mg.concatenate([a, b], axis=1), [X, normal(3, 2)]),
    ("Stack", lambda a, b: mg.stack([a, b], axis=1), [X, Y]),
    ("Repeat", lambda x: mg.repeat(x, [1, 0, 2], axis=0), [X]),
    ("MoveAxis", lambda x: mg.moveaxis(x, 0, 2), [CUBE]),
    ("Roll", lambda x: mg.roll(x, 3, axis=1), [X]),
    ("SwapAxes", lambda x: mg.swapaxes(x, 0, 2), [CUBE]),
    ("Transpose", lambda x: mg.transpose(x, (2, 0, 1)), [CUBE]),
    ("Tensor_Transpose_Property", lambda x: x.T, [CUBE]),
    ("ELU", lambda x: nnet.elu(x, alpha=0.7), [X]),
    ("ReLu", nnet.relu, [X]),
    ("ReLu leaky", lambda x: nnet.leaky_relu(x, 0.1), [X]),
    ("SELU", nnet.selu, [X]),
    ("Sigmoid", nnet.sigmoid, [X]),
    ("Sigmoid gated", nnet.glu, [X]),
    ("SoftSign", nnet.soft_sign, [X]),
    ("HardTanh", nnet.hard_tanh, [X]),
    ("Softmax", nnet.softmax, [X]),
    ("LogSoftmax", nnet.logsoftmax, [X]),
    ("BatchNorm", lambda x, w, b: nnet.batchnorm(x, gamma=w, beta=b, eps=1e-3), [IMAGES, normal(3), normal(3, seed=2)]),
    ("ConvND", lambda x, w: nnet.conv_nd(x, w, stride=(1, 2), padding=1, dilation=(2, 1)), [IMAGES, KERNELS]),
    ("MaxPoolND", lambda x: nnet.max_pool(x, (2, 3), (1, 2)), [IMAGES]),
    ("GRUnit", nnet.gru, GATES),
    ("GRUnit on a copy of dy", lambda *x: +nnet.gru(*x), GATES),
    ("FocalLoss", lambda p: nnet.focal_loss(p, LABELS, alpha=0.5, gamma=2.0), [PROBABILITIES]),
    ("FocalLoss of a softmax", lambda x: nnet.softmax_focal_loss(x, LABELS, gamma=1.0), [X]),
    ("MarginRanking", lambda a, b: nnet.margin_ranking_loss(a, b, 1, margin=0.3), [ROW, normal(4, seed=1)]),
    ("MulticlassHinge", lambda x: nnet.multiclass_hinge(x, LABELS), [X]),
    ("SoftmaxCrossEntropy", lambda x: nnet.softmax_crossentropy(x, LABELS), [X]),
    ("NegativeLogLikelihood", lambda x: nnet.negative_log_likelihood(x, LABELS, weights=between(1, 2, 4)), [X]),
]
LEFT_OUT = {
    "ApplyMask": "part of how mygrad records writes into views", "UnView": "part of how mygrad records views",
}
ABSTRACT = {"BinaryUfunc", "Sequential", "Ufunc", "UnaryUfunc", "MaxMin", "_MaxMin", "_AtLeastKD", "_PreservesOrder"}
WRONG = {"GRUnit": "its backward pass writes into the gradient that it is given"}


def set_rows(x, rows):
    y = +x
    y[np.array([0, 2])] = rows
    return y


def with_back(f, compiles=False):
    """f with mygrad's gradients: y, back = f(*inputs).

    compiles    f is compiled by numba, for each layout once: it gets contiguous arrays
    """
    def laid_out(x):
        return np.require(x, requirements="CW") if compiles else x

    def call(*inputs):
        def back(dy):
            tensors = [mg.tensor(laid_out(x), copy=True) for x in inputs]
            f(*tensors).backward(laid_out(dy))
            return tuple(np.zeros(x.shape) if x.grad is None else x.grad for x in tensors)
        return np.array(f(*(mg.tensor(laid_out(x)) for x in inputs)).data), back
    return call


def cases():
    for count, groups in ((1, UNARY), (2, PAIRS)):
        for x, names in groups:
            for name in names.split():
                yield Case(name, with_back(getattr(mg, name.lower())), [x, x[::-1] * 1.5][:count])
    for name, f, inputs in CALLS:
        yield Case(name, with_back(f, name.startswith("GRUnit")), inputs, WRONG.get(name, RIGHT))


def primitives():
    """The names of mygrad's operations."""
    return {operation.__name__ for operation in below(Operation) if operation.__name__ not in ABSTRACT}


def below(cls):
    for derived in cls.__subclasses__():
        yield derived
        yield from below(derived)
