"""Optimizers and gradient clipping over one flat vector of parameters, in place.

    optimizer = AdamW(flat.size, flat.dtype, matrices=matrix_slices(tree))
    norm = global_norm(g)
    optimizer.step(flat, g, lr, decay=0.1, scale=clip_scale(norm, 1.0))

Every rule is elementwise, so the vector may be cut anywhere and gives the same bits.  A kernel makes one pass over
memory; the reference in NumPy runs block by block, each in cache and with scratch memory of a few blocks.  Clipping
costs no pass: its factor goes into the step.  Weight decay is decoupled from the gradient (Loshchilov & Hutter, 2019)
and pulls on matrices alone: gains and biases are left free.
"""
import itertools
import math
from collections.abc import Callable, Collection

import numpy as np

from pyllama import backend, params
from pyllama.errors import UserError

BLOCK = 1 << 15                 # numbers: the arrays of an AdamW block in float32 stay in a core's second cache


def matrix_slices(tree, but: Collection[str] = ()) -> list[slice]:
    """Where the leaves of two or more axes, `but` those of these names, lie in the tree's flat vector: slices in order,
    neighbors merged."""
    slices: list[slice] = []
    end = 0
    for name, leaf in params.leaves(tree):
        start, end = end, end + leaf.size
        if leaf.ndim >= 2 and name not in but:
            touches = slices and slices[-1].stop == start
            slices.append(slice(slices.pop().start if touches else start, end))
    return slices


def ranges(size, matrices):
    """Cut [0, size) into (slice, whether it lies in a matrix)."""
    edges = [0, *(edge for s in matrices for edge in (s.start, s.stop)), size]
    if edges != sorted(edges):
        raise ValueError(f"matrices must be slices within 0:{size}, in order and apart, not {matrices}")
    return [(slice(start, stop), bool(number % 2))
            for number, (start, stop) in enumerate(itertools.pairwise(edges)) if start < stop]


def blocks(ranges):
    """The ranges again, cut into slices of at most BLOCK numbers."""
    return ((slice(i, min(i + BLOCK, where.stop)), in_matrix)
            for where, in_matrix in ranges for i in range(where.start, where.stop, BLOCK))


class Optimizer:
    """p ← p - η (d + λp), with λ = 0 outside the matrices.  A rule says what the direction d is.

    size, dtype   of the flat vector; the state has the same
    matrices      the slices of the vector that decay: matrix_slices(tree)
    like          an array on the device that the vector is on; None: the host
    """
    rule: Callable[..., None]                           # updates in place; a kernel has the same name and arguments
    kept: tuple[str, ...] = ()                          # the state: attributes that are vectors like p

    def __init__(self, size, dtype, matrices, like=None):
        self.size, self.dtype, self.t = size, np.dtype(dtype), 0
        self.ranges = ranges(size, matrices)
        for name in self.kept:
            setattr(self, name, np.zeros(size, dtype, like=like))

    def options(self) -> dict:
        """What the rule takes in this step besides the vectors, lr, decay and scale."""
        raise NotImplementedError

    def step(self, p, g, lr: float, decay: float, scale: float = 1.0) -> None:
        """Update p[size] in place by the gradient scale * g[size], with learning rate η = lr and decay λ = decay."""
        for name, x in (("p", p), ("g", g)):
            if x.shape != (self.size,) or x.dtype != self.dtype:
                raise TypeError(f"{name} is {x.dtype}{list(x.shape)}, the optimizer takes {self.dtype}[{self.size}]")
        lr, decay, scale = float(lr), float(decay), float(scale)        # a NumPy float64 would promote float32
        self.t += 1
        vectors = [p, g, *(getattr(self, name) for name in self.kept)]
        kernel = getattr(backend.kernels_for([p, g]), self.rule.__name__, None)
        update, pieces = (kernel, self.ranges) if kernel else (self.rule, blocks(self.ranges))
        for where, in_matrix in pieces:
            update(*(x[where] for x in vectors), lr=lr, decay=decay if in_matrix else 0.0, scale=scale,
                   **self.options())

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on besides p: "step" and the vectors (the optimizer's own, not copies)."""
        return {"step": np.array(self.t, np.int64)} | {name: getattr(self, name) for name in self.kept}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a saved state(), bit for bit.  UserError if it is not one of this optimizer; then nothing changes.
        """
        mine, name = self.state(), type(self).__name__
        if state.keys() != mine.keys():
            raise UserError(f"the saved optimizer state holds {', '.join(sorted(state)) or 'nothing'} but {name} keeps "
                            f"{', '.join(sorted(mine))}; resume with the optimizer and options that saved it")
        for key, wanted in mine.items():
            if (state[key].shape, state[key].dtype) != (wanted.shape, wanted.dtype):
                raise UserError(f"{key} in the saved optimizer state is {state[key].dtype}{list(state[key].shape)} but "
                                f"{name} needs {wanted.dtype}{list(wanted.shape)}; resume with the model and precision "
                                f"that saved it")
        self.t = int(state["step"])
        for key in self.kept:
            mine[key][:] = np.asarray(state[key], like=mine[key])


def scaled(g, scale):
    """scale * g, the product made in float64: a scale that tames a huge gradient may be too small for float32."""
    return (g * np.float64(scale)).astype(g.dtype)


def adamw(p, g, m, v, *, lr, decay, scale, t, betas, eps):
    """Step t of AdamW, below."""
    b1, b2 = map(float, betas)
    g = scaled(g, scale)
    m *= b1                                             # not m += (1 - β₁)(g - m): for β₁ = 0 that is not quite g
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * (g * g)
    d = m / (np.sqrt(v) / math.sqrt(1 - b2 ** t) + eps) / (1 - b1 ** t)
    p -= lr * (d + decay * p)


class AdamW(Optimizer):
    """At step t = 1, 2, ..., elementwise:

    m ← β₁ m + (1 - β₁) g          m̂ = m/(1 - β₁ᵗ)
    v ← β₂ v + (1 - β₂) g²         v̂ = v/(1 - β₂ᵗ)
    p ← p - η (m̂/(√v̂ + ε) + λp)

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, Algorithm 2, with η for their ηₜα and
    λ scaled by η as PyTorch does.
    """
    rule, kept = staticmethod(adamw), ("m", "v")
    m: np.ndarray
    v: np.ndarray

    def __init__(self, size, dtype, *, matrices, betas=(0.9, 0.95), eps=1e-8, like=None):
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas are {betas}; each must be at least 0 and below 1")
        if not np.dtype(dtype).type(eps) > 0:
            raise UserError(f"eps is {eps}; it must be positive in {np.dtype(dtype)}")
        super().__init__(size, dtype, matrices, like)
        self.betas, self.eps = betas, float(eps)

    def options(self):
        return {"t": self.t, "betas": self.betas, "eps": self.eps}


def sgd(p, g, v=None, *, lr, decay, scale, momentum, nesterov):
    """A step of SGD, below."""
    d = g = scaled(g, scale)
    if v is not None:
        v *= momentum
        v += g
        d = g + momentum * v if nesterov else v
    p -= lr * (d + decay * p)


class SGD(Optimizer):
    """With momentum μ, elementwise, and v = 0 at first:

    v ← μ v + g
    p ← p - η (v + λp)             plain
    p ← p - η (g + μ v + λp)       Nesterov

    PyTorch's convention: η stands outside v, and there is no factor 1 - μ (Sutskever et al., 2013, have η inside).
    Unlike PyTorch's, the decay is decoupled: it does not enter v.  Without momentum no v is kept.
    """
    rule = staticmethod(sgd)
    v: np.ndarray

    def __init__(self, size, dtype, *, matrices, momentum=0.0, nesterov=False, like=None):
        if not 0 <= momentum < 1:
            raise UserError(f"momentum is {momentum}; it must be at least 0 and below 1")
        if nesterov and not momentum:
            raise UserError("Nesterov's rule needs a momentum above 0; set one or leave nesterov out")
        self.kept = ("v",) if momentum else ()
        super().__init__(size, dtype, matrices, like)
        self.momentum, self.nesterov = float(momentum), nesterov

    def options(self):
        return {"momentum": self.momentum, "nesterov": self.nesterov}


def sum_and_norm(gs):
    """g ← g + g₁ + g₂ + ... in place for gs = [g, g₁, g₂, ...], added in this order; the Euclidean norm ‖g‖ of the sum,
    a number, on a GPU an array of no axes: it is not waited for.

    Squares are made and summed in float64, where no float32 overflows and none is lost, in an order that depends on
    g.size alone.
    """
    if kernels := backend.kernels_for(gs):
        return kernels.sum_and_norm(gs)
    squares, (g, *others) = 0.0, gs
    with np.errstate(over="ignore", invalid="ignore"):  # the norm says inf or NaN
        for i in range(0, g.size, BLOCK):
            here = g[i:i + BLOCK]
            for other in others:
                here += other[i:i + BLOCK]
            squares += float(np.square(here, dtype=np.float64).sum())
    return math.sqrt(squares)


def global_norm(g) -> float:
    """‖g‖, as sum_and_norm makes it."""
    return sum_and_norm([g])


def clip_scale(norm: float, max_norm: float | None) -> float:
    """The factor min(1, max_norm/‖g‖) that clips a gradient g to a norm of max_norm at most; for Optimizer.step.

    It is 1, nothing is clipped, if max_norm is None or 0, and if the norm is infinite or NaN: the caller has something
    to report.  Source: Pascanu, Mikolov & Bengio, 2013, Algorithm 1.
    """
    if max_norm and not max_norm > 0:
        raise UserError(f"max_norm is {max_norm}; clip the gradient to a positive norm, or give 0 for no clipping")
    return max_norm / norm if max_norm and max_norm < norm < math.inf else 1.0
