"""Optimisers and gradient clipping over one flat vector of parameters, in place.

    optimiser = AdamW(flat.size, flat.dtype, matrices=matrix_slices(tree))
    norm = clip_by_global_norm(g, 1.0)
    optimiser.step(flat, g, lr, decay=0.1)

Every rule is elementwise, so it runs block by block, each in cache and with scratch memory of one block; the vector
may be cut anywhere and gives the same bits.  Weight decay is decoupled from the gradient (Loshchilov & Hutter, 2019)
and pulls on matrices alone: gains and biases are left free.
"""
import itertools
import math

import numpy as np

from pyllama import params
from pyllama.errors import UserError

BLOCK = 1 << 15                 # the six arrays of an AdamW block in float32, 768 KiB, stay in a core's second cache


def matrix_slices(tree) -> list[slice]:
    """Where the leaves of two or more axes lie in the tree's flat vector: slices in order, neighbours merged."""
    slices: list[slice] = []
    end = 0
    for _, leaf in params.leaves(tree):
        start, end = end, end + leaf.size
        if leaf.ndim >= 2:
            touches = slices and slices[-1].stop == start
            slices.append(slice(slices.pop().start if touches else start, end))
    return slices


def blocks(size, matrices):
    """Cut [0, size) into (slice, whether it lies in a matrix), each of at most BLOCK numbers."""
    edges = [0, *(edge for s in matrices for edge in (s.start, s.stop)), size]
    if edges != sorted(edges):
        raise ValueError(f"matrices must be slices within 0:{size}, in order and apart, not {matrices}")
    return [(slice(i, min(i + BLOCK, end)), bool(number % 2))
            for number, (start, end) in enumerate(itertools.pairwise(edges))
            for i in range(start, end, BLOCK)]


class Optimiser:
    """p ← p - η (d + λp), with λ = 0 outside the matrices.  A rule says what the direction d is.

    size, dtype   of the flat vector; the state has the same
    matrices      the slices of the vector that decay: matrix_slices(tree)
    """
    kept: tuple[str, ...] = ()                          # the state: attributes that are vectors like p

    def __init__(self, size, dtype, matrices):
        self.size, self.dtype, self.t = size, np.dtype(dtype), 0
        self.blocks = blocks(size, matrices)
        self.scratch = np.empty((2, min(size, BLOCK)), dtype)
        for name in self.kept:
            setattr(self, name, np.zeros(size, dtype))

    def direction(self, block: slice, g, d, work) -> None:
        """Write into d the direction for this block with gradient g, and update the state; work is scratch."""
        raise NotImplementedError

    def step(self, p, g, lr: float, decay: float) -> None:
        """Update p[size] in place by the gradient g[size], with learning rate η = lr and weight decay λ = decay."""
        for name, x in (("p", p), ("g", g)):
            if x.shape != (self.size,) or x.dtype != self.dtype:
                raise TypeError(f"{name} is {x.dtype}{list(x.shape)}, the optimiser takes {self.dtype}[{self.size}]")
        lr, decay = float(lr), float(decay)             # a NumPy float64 would promote float32 to float64
        self.t += 1
        for block, in_matrix in self.blocks:
            here = p[block]
            d, work = self.scratch[:, :here.size]
            self.direction(block, g[block], d, work)
            if in_matrix and decay:
                d += np.multiply(here, decay, out=work)
            d *= lr
            here -= d

    def state(self) -> dict[str, np.ndarray]:
        """All that the next step depends on besides p: "step" and the vectors (the optimiser's own, not copies)."""
        return {"step": np.array(self.t, np.int64)} | {name: getattr(self, name) for name in self.kept}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a saved state(), bit for bit.  UserError if it is not one of this optimiser; then nothing changes.
        """
        mine, name = self.state(), type(self).__name__
        if state.keys() != mine.keys():
            raise UserError(f"the saved optimiser state holds {', '.join(sorted(state)) or 'nothing'} but {name} keeps "
                            f"{', '.join(sorted(mine))}; resume with the optimiser and options that saved it")
        for key, wanted in mine.items():
            if (state[key].shape, state[key].dtype) != (wanted.shape, wanted.dtype):
                raise UserError(f"{key} in the saved optimiser state is {state[key].dtype}{list(state[key].shape)} but "
                                f"{name} needs {wanted.dtype}{list(wanted.shape)}; resume with the model and precision "
                                f"that saved it")
        self.t = int(state["step"])
        for key in self.kept:
            mine[key][:] = state[key]


class AdamW(Optimiser):
    """At step t = 1, 2, ..., elementwise:

    m ← β₁ m + (1 - β₁) g          m̂ = m/(1 - β₁ᵗ)
    v ← β₂ v + (1 - β₂) g²         v̂ = v/(1 - β₂ᵗ)
    p ← p - η (m̂/(√v̂ + ε) + λp)

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, Algorithm 2, with η for their ηₜα and
    λ scaled by η as PyTorch does.
    """
    kept = ("m", "v")
    m: np.ndarray
    v: np.ndarray

    def __init__(self, size, dtype, *, matrices, betas=(0.9, 0.95), eps=1e-8):
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas are {betas}; each must be at least 0 and below 1")
        if not np.dtype(dtype).type(eps) > 0:
            raise UserError(f"eps is {eps}; it must be positive in {np.dtype(dtype)}")
        super().__init__(size, dtype, matrices)
        self.betas, self.eps = betas, float(eps)

    def direction(self, block, g, d, work):
        (b1, b2), m, v = map(float, self.betas), self.m[block], self.v[block]
        m *= b1                                         # not m += (1 - β₁)(g - m): for β₁ = 0 that is not quite g
        m += np.multiply(g, 1 - b1, out=work)
        v *= b2
        np.multiply(g, g, out=work)
        v += np.multiply(work, 1 - b2, out=work)
        np.sqrt(v, out=work)
        work /= math.sqrt(1 - b2 ** self.t)
        work += self.eps
        np.divide(m, work, out=d)
        d /= 1 - b1 ** self.t


class SGD(Optimiser):
    """With momentum μ, elementwise, and v = 0 at first:

    v ← μ v + g
    p ← p - η (v + λp)             plain
    p ← p - η (g + μ v + λp)       Nesterov

    PyTorch's convention: η stands outside v, and there is no factor 1 - μ (Sutskever et al., 2013, have η inside).
    Unlike PyTorch's, the decay is decoupled: it does not enter v.  Without momentum no v is kept.
    """
    v: np.ndarray

    def __init__(self, size, dtype, *, matrices, momentum=0.0, nesterov=False):
        if not 0 <= momentum < 1:
            raise UserError(f"momentum is {momentum}; it must be at least 0 and below 1")
        if nesterov and not momentum:
            raise UserError("Nesterov's rule needs a momentum above 0; set one or leave nesterov out")
        self.kept = ("v",) if momentum else ()
        super().__init__(size, dtype, matrices)
        self.momentum, self.nesterov = float(momentum), nesterov

    def direction(self, block, g, d, work):
        d[:] = g
        if self.momentum:
            v = self.v[block]
            v *= self.momentum
            v += g
            if self.nesterov:
                d += np.multiply(v, self.momentum, out=work)
            else:
                d[:] = v


def clip_by_global_norm(g, max_norm: float | None) -> float:
    """g ← g min(1, max_norm/‖g‖) in place; the Euclidean norm ‖g‖ from before is returned.

    Sums and products are made in float64, where no float32 overflows and none is lost, in an order that depends on
    g.size alone.  If the norm is infinite or NaN, g is left as it is: the caller has something to report.
    With max_norm None or 0 nothing is clipped.  Source: Pascanu, Mikolov & Bengio, 2013, Algorithm 1.
    """
    if max_norm and not max_norm > 0:
        raise UserError(f"max_norm is {max_norm}; clip the gradient to a positive norm, or give 0 for no clipping")
    with np.errstate(over="ignore"):                    # of a float64 gradient above 1e154: the norm says inf
        squares = sum(float(np.square(g[i:i + BLOCK], dtype=np.float64).sum()) for i in range(0, g.size, BLOCK))
    norm = math.sqrt(squares)
    if max_norm and max_norm < norm < math.inf:
        np.multiply(g, max_norm / norm, out=g, dtype=np.float64)
    return norm
