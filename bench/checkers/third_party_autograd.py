"""The NumPy VJPs of autograd (github.com/HIPS/autograd), on real inputs.

Functions with complex outputs are checked through their real and imaginary parts, which are real functions.
"""
import autograd.numpy as anp
import autograd.numpy.fft as afft
import autograd.numpy.linalg as alg
import numpy as np
from autograd.core import make_vjp, primitive_vjps
from autograd.numpy.numpy_vjps import dot_adjoint_0, dot_adjoint_1, tensordot_adjoint_0, tensordot_adjoint_1

from bench.checkers.third_party_case import RIGHT, Case, between, normal

X, Y, ROW = normal(3, 4), normal(3, 4, seed=1), normal(4)
CUBE, VECTOR = normal(2, 3, 4), normal(7)
POSITIVE, UNIT, ABOVE_1 = between(0.5, 2, 3, 4), between(-0.8, 0.8, 3, 4), between(2, 4, 3, 4)
SQUARE, EVEN = normal(3, 3), normal(4, 6)
NEAR_IDENTITY = SQUARE / 5 + [[1, 0, 0], [0, 2, 0], [0, 0, 3]]

ELEMENTWISE = [
    (X, "negative abs absolute fabs exp exp2 expm1 sin cos tan arctan sinh cosh tanh arcsinh rad2deg degrees deg2rad "
        "radians square sinc nan_to_num reciprocal real real_if_close conj conjugate"),
    (POSITIVE, "log log2 log10 log1p sqrt"),
    (UNIT, "arcsin arccos arctanh"),
    (ABOVE_1, "arccosh"),
]
PAIRWISE = [
    (X, "add multiply subtract maximum minimum fmax fmin logaddexp logaddexp2 arctan2 hypot"),
    (POSITIVE, "divide true_divide power mod remainder"),
]
WHOLE = [
    (X, "ravel flipud fliplr triu tril transpose squeeze sum mean prod var std max min amax amin atleast_1d "
        "atleast_2d atleast_3d"),
]


def with_back(f):
    """f with autograd's gradients: y, back = f(*inputs)."""
    def call(*inputs):
        def back(dy):
            pull, _ = make_vjp(lambda every: f(*every), inputs)
            return tuple(pull(dy))
        return f(*inputs), back
    return call


def joined(pieces):
    """All pieces end to end, each weighted by its number."""
    return anp.concatenate([number * anp.ravel(piece) for number, piece in enumerate(pieces, 1)])


def symmetric(a):
    return (a + anp.swapaxes(a, -1, -2)) / 2


def positive_definite(a):
    return anp.matmul(a, anp.swapaxes(a, -1, -2)) + anp.eye(a.shape[-1])


def real_of(f):
    """The sum of f's real part and twice its imaginary part, which is a real function of x."""
    return lambda *x: anp.real(f(*x)) + 2 * anp.imag(f(*x))


def complex_of(f):
    """f of x + 2i x², a real function of x."""
    return lambda x: f(x + 2j * x * x)


def reconstruction(a):
    """|A| by its singular values; signs and order of singular vectors cancel."""
    u, s, v = alg.svd(a, full_matrices=False)
    return anp.dot(u * s ** 2, v)


def projection(a):
    """exp(A) of a symmetric A by its eigenvectors, whose signs cancel."""
    w, v = alg.eigh(symmetric(a))
    return anp.dot(v * anp.exp(w), v.T)


B, G = normal(4, 2), normal(3, 2)                       # X @ B has the gradient G
META = anp.metadata(X), anp.metadata(B)

# The functions whose arguments are more than arrays: (name, function, inputs).
CALLS = [
    ("add broadcast", anp.add, [X, ROW]),
    ("multiply broadcast", anp.multiply, [X, ROW]),
    ("divide broadcast", anp.divide, [ROW, POSITIVE]),
    ("clip", lambda x: anp.clip(x, -0.5, 0.5), [X]),
    ("where", lambda x, y: anp.where(X > 0, x, y), [X, Y]),
    ("reshape", lambda x: anp.reshape(x, (2, 6)), [X]),
    ("reshape order F", lambda x: anp.reshape(x, (2, 6), order="F"), [X]),
    ("roll", lambda x: anp.roll(x, 2), [X]),
    ("roll axis", lambda x: anp.roll(x, 1, axis=1), [X]),
    ("array_split", lambda x: joined(anp.array_split(x, 3)), [VECTOR]),
    ("split", lambda x: joined(anp.split(x, 2, axis=1)), [X]),
    ("vsplit", lambda x: joined(anp.vsplit(x, 3)), [X]),
    ("hsplit", lambda x: joined(anp.hsplit(x, 2)), [X]),
    ("dsplit", lambda x: joined(anp.dsplit(x, 2)), [CUBE]),
    ("expand_dims", lambda x: anp.expand_dims(x, 1), [X]),
    ("squeeze axis", lambda x: anp.squeeze(x, axis=1), [normal(3, 1, 4)]),
    ("diag", anp.diag, [SQUARE]),
    ("diag of a vector", lambda x: anp.diag(x, k=1), [ROW]),
    ("diag k", lambda x: anp.diag(x, k=1), [SQUARE]),
    ("diag of a wide matrix", anp.diag, [X]),
    ("rot90", lambda x: anp.rot90(x, 3), [X]),
    ("trace", lambda x: anp.trace(x, offset=1), [X]),
    ("trace of a stack", anp.trace, [CUBE]),
    ("full", lambda x: anp.full((2, 3), x), [np_scalar := normal()]),
    ("triu k", lambda x: anp.triu(x, k=1), [X]),
    ("swapaxes", lambda x: anp.swapaxes(x, 0, 2), [CUBE]),
    ("moveaxis", lambda x: anp.moveaxis(x, 0, 2), [CUBE]),
    ("rollaxis", lambda x: anp.rollaxis(x, 2, 0), [CUBE]),
    ("cross", anp.cross, [normal(4, 3), normal(4, 3, seed=2)]),
    ("linspace", lambda a, b: anp.linspace(a, b, 5), [np_scalar, 2.5]),
    ("astype", lambda x: x.astype(float), [X]),
    ("diff", lambda x: anp.diff(x, n=2, axis=0), [normal(5, 2)]),
    ("gradient", lambda x: joined(anp.gradient(x)), [normal(6, 7)]),
    ("gradient axis", lambda x: anp.gradient(x, axis=0), [normal(6, 7)]),
    ("repeat", lambda x: anp.repeat(x, 2), [X]),
    ("repeat axis", lambda x: anp.repeat(x, 3, axis=1), [X]),
    ("tile of a vector", lambda x: anp.tile(x, 3), [ROW]),
    ("tile", lambda x: anp.tile(x, (2, 3)), [X]),
    ("tile of a matrix, one number", lambda x: anp.tile(x, 3), [X]),
    ("kron", anp.kron, [normal(2, 3), normal(3, 2)]),
    ("transpose axes", lambda x: anp.transpose(x, (2, 0, 1)), [CUBE]),
    ("broadcast_to", lambda x: anp.broadcast_to(x, (3, 4)), [normal(1, 4)]),
    ("sum axis", lambda x: anp.sum(x, axis=1, keepdims=True), [X]),
    ("sum axes", lambda x: anp.sum(x, axis=(0, 2)), [CUBE]),
    ("mean axis", lambda x: anp.mean(x, axis=0), [X]),
    ("prod axis", lambda x: anp.prod(x, axis=1), [X]),
    ("var ddof", lambda x: anp.var(x, axis=1, ddof=1), [X]),
    ("std axis", lambda x: anp.std(x, axis=0), [X]),
    ("max axis", lambda x: anp.max(x, axis=1), [X]),
    ("min axis", lambda x: anp.min(x, axis=0), [X]),
    ("cumsum", anp.cumsum, [X]),
    ("cumsum axis 0", lambda x: anp.cumsum(x, axis=0), [X]),
    ("cumsum axis 1", lambda x: anp.cumsum(x, axis=1), [X]),
    ("inner", anp.inner, [X, normal(2, 4)]),
    ("matmul", anp.matmul, [CUBE, normal(4, 2)]),
    ("matmul of vectors", anp.matmul, [ROW, normal(4, seed=1)]),
    ("dot", anp.dot, [X, normal(4, 2)]),
    ("dot of a stack", anp.dot, [CUBE, normal(2, 4, 2)]),
    ("tensordot", lambda a, b: anp.tensordot(a, b, axes=([1, 2], [0, 1])), [CUBE, normal(3, 4, 2)]),
    ("tensordot 1", lambda a, b: anp.tensordot(a, b, axes=1), [CUBE, normal(4, 2)]),
    ("outer", anp.outer, [ROW, normal(3)]),
    ("concatenate_args", lambda a, b: anp.concatenate((a, b), axis=1), [X, normal(3, 2)]),
    ("sort", anp.sort, [VECTOR]),
    ("partition", lambda x: anp.partition(x, 3), [VECTOR]),
    ("einsum", lambda a, b: anp.einsum("ij,jk->ik", a, b), [X, normal(4, 2)]),
    ("einsum of a sum", lambda a, b: anp.einsum("ij,jk->k", a, b), [X, normal(4, 2)]),
    ("einsum of a diagonal", lambda a: anp.einsum("ii->i", a), [SQUARE]),
    ("diagonal", lambda x: anp.diagonal(x, axis1=-1, axis2=-2), [normal(2, 3, 3)]),
    ("make_diagonal", lambda x: anp.make_diagonal(x, axis1=-1, axis2=-2), [X]),
    ("array_from_args", lambda a, b: anp.array([a, b, a]), [np_scalar, 2.5]),
    ("_array_from_scalar_or_array", lambda x: anp.array(x, ndmin=3), [X]),
    ("__getitem__", lambda x: x[1:, ::2], [X]),
    ("__getitem__ repeated", lambda x: x[[2, 0, 0]], [X]),
    ("pad", lambda x: anp.pad(x, ((1, 2), (0, 1)), mode="constant"), [X]),
    ("dot_adjoint_0", lambda b, g: dot_adjoint_0(b, g, *META), [B, G]),
    ("dot_adjoint_1", lambda a, g: dot_adjoint_1(a, g, *META), [X, G]),
    ("tensordot_adjoint_0", lambda b, g: tensordot_adjoint_0(b, g, 1, 2, 2), [B, G]),
    ("tensordot_adjoint_1", lambda a, g: tensordot_adjoint_1(a, g, 1, 2, 2), [X, G]),
    ("angle", complex_of(anp.angle), [POSITIVE]),
    ("imag", complex_of(anp.imag), [X]),
    ("abs complex", complex_of(anp.abs), [X]),
    ("det", alg.det, [NEAR_IDENTITY]),
    ("slogdet", lambda x: alg.slogdet(x)[1], [NEAR_IDENTITY]),
    ("inv", alg.inv, [NEAR_IDENTITY]),
    ("pinv", alg.pinv, [X]),
    ("solve", alg.solve, [NEAR_IDENTITY, normal(3, 2)]),
    ("solve a vector", alg.solve, [NEAR_IDENTITY, normal(3)]),
    ("norm", alg.norm, [X]),
    ("norm axis", lambda x: alg.norm(x, axis=1), [X]),
    ("norm of order 3", lambda x: alg.norm(x, ord=3, axis=0), [X]),
    ("norm nuclear", lambda x: alg.norm(x, ord="nuc"), [X]),
    ("eigh", lambda x: alg.eigh(x)[0], [NEAR_IDENTITY]),
    ("eigh vectors", projection, [NEAR_IDENTITY]),
    ("eig", real_of(lambda x: alg.eig(symmetric(x))[0]), [NEAR_IDENTITY]),
    ("cholesky", lambda x: alg.cholesky(positive_definite(x)), [SQUARE]),
    ("svd", lambda x: alg.svd(x, compute_uv=False), [X]),
    ("svd vectors", reconstruction, [X]),
    *((f.__name__, real_of(f), [EVEN]) for f in (afft.fft, afft.ifft, afft.fft2, afft.ifft2, afft.fftn, afft.ifftn)),
    *((f.__name__, real_of(f), [EVEN]) for f in (afft.rfft, afft.rfft2, afft.rfftn)),
    *((f.__name__, complex_of(f), [EVEN]) for f in (afft.irfft, afft.irfft2, afft.irfftn)),
    ("fftshift", afft.fftshift, [EVEN]),
    ("ifftshift", afft.ifftshift, [EVEN]),
    ("truncate_pad", lambda x: afft.truncate_pad(x, (2, 6)), [X]),
]
# Primitives that are not functions of real arrays with real outputs.
LEFT_OUT = {
    "container_take": "takes from tuples and dicts; its output is any object",
    "container_untake": "builds tuples and dicts",
    "sequence_extend_left": "builds tuples", "sequence_extend_right": "builds tuples", "make_sequence": "builds tuples",
    "_make_dict": "builds dicts",
    "sparse_add": "adds SparseObject, which is not an array", "untake": "returns SparseObject, which is not an array",
    "mut_add": "adds in place", "covector": "conjugates in a vector space", "scalar_mul": "scales in a vector space",
    "inner_prod": "multiplies in a vector space",
}


# Where functions have kinks, equal numbers or zeros.
CALLS += [
    ("abs at 0", anp.abs, [np.array([0.0, 1.0, -2.0])]),
    ("maximum of equal numbers", anp.maximum, [np.array([1.0, 2.0]), np.array([1.0, 3.0])]),
    ("max of equal numbers", anp.max, [np.array([2.0, 1.0, 2.0])]),
    ("clip at its bounds", lambda x: anp.clip(x, -0.5, 0.5), [np.array([-0.5, 0.1, 0.5])]),
    ("sort of equal numbers", anp.sort, [np.array([2.0, 1.0, 2.0])]),
    ("sinc at 0", anp.sinc, [np.array([0.0, 0.5])]),
    ("prod with a zero", anp.prod, [np.array([0.0, 2.0, 3.0])]),
    ("std of equal numbers", anp.std, [np.array([2.0, 2.0, 2.0])]),
    ("norm at 0", alg.norm, [np.zeros(3)]),
    ("cholesky of any matrix", alg.cholesky, [SQUARE / 5 + 2 * np.eye(3)]),
]
# autograd is known to be wrong here, or refuses.
WRONG = {
    "sinc at 0": "the VJP divides by x²: NaN, where the derivative is 0",
    "prod with a zero": "the VJP divides by x: NaN, where the derivative is 6, 0, 0",
    "std of equal numbers": "the VJP divides by the standard deviation: NaN, where 0 is a subgradient",
    "norm at 0": "the VJP divides by the norm: NaN, where 0 is a subgradient",
    "cholesky of any matrix": "NumPy reads the lower triangle, the VJP is that of a symmetric matrix",
    "diag of a wide matrix": "the VJP builds a square matrix and refuses",
    "tile of a matrix, one number": "the VJP splits axis 0, np.tile repeats the last axis",
    "einsum of a diagonal": "the VJP asks einsum for an output with a repeated index, which it refuses",
}


def cases():
    for kind, group in (("unary", ELEMENTWISE), ("pair", PAIRWISE), ("whole", WHOLE)):
        for x, names in group:
            for name in names.split():
                inputs = [x, x[::-1] * 1.5] if kind == "pair" else [x]
                yield Case(name, with_back(getattr(anp, name)), inputs)
    for name, f, inputs in CALLS:
        yield Case(name, with_back(f), inputs, WRONG.get(name, RIGHT))


def primitives():
    """The names of all functions for which autograd has a VJP."""
    return {function.__name__ for function in primitive_vjps}
