"""Optimizers and gradient clipping over one flat vector of parameters, in place.

    optimizer = AdamW(flat.size, flat.dtype, matrices=matrix_slices(tree))
    norm = global_norm(g)
    optimizer.step(flat, g, lr, decay=0.1, scale=clip_scale(norm, 1.0))

The update rules are elementwise, so the vector may be cut anywhere with the same bits.  A kernel makes one pass over
memory.  The NumPy reference runs block by block, in the cache and with working memory of a few blocks.  Clipping costs
no extra pass, because its factor is part of the step.  Weight decay is decoupled from the gradient (Loshchilov &
Hutter, 2019) and applies to matrices only, not to gains and biases.
"""
import contextlib
import itertools
import math
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

import numpy as np

from pyllama import backend, params
from pyllama.errors import UserError
from pyllama.training.masks import Mask
from pyllama.training.rows import Table, Tables

BLOCK = 1 << 15                 # numbers: the arrays of an AdamW block in float32 fit a core's L2 cache
PIECE = 1 << 18                 # numbers rounded at once: they stay in the cache until they are copied, 3 times as fast


def is_matrix(name: str, leaf) -> bool:
    """Is this parameter a matrix?  Norms and biases are not, even if they have two axes, as BART's bias [1 V]."""
    return leaf.ndim >= 2 and not name.endswith("bias")


def matrix_slices(tree, names: Container[str] | None = None) -> list[slice]:
    """The slices of a tree's flat vector that hold matrices, in order, adjacent ones merged.

    names   of the leaves that the vector holds; None: all
    """
    slices: list[slice] = []
    end = 0
    for name, leaf in params.leaves(tree):
        if names is not None and name not in names:
            continue
        start, end = end, end + leaf.size
        if is_matrix(name, leaf):
            touches = slices and slices[-1].stop == start
            slices.append(slice(slices.pop().start if touches else start, end))
    return slices


def round_into(copy, p) -> None:
    """Write p [N] into copy [N] of another precision, rounded to nearest, ties to even."""
    for start in range(0, p.size, PIECE):
        piece = slice(start, start + PIECE)
        copy[piece] = params.cast(p[piece], copy.dtype)


class Part(NamedTuple):
    """A range of the vector that is updated in the same way."""
    where: slice
    rate: float = 1.0                                   # factor of the learning rate
    decay: float | None = None                          # weight decay; None: that of the step
    since: int = 0                                      # steps before the first update, from which its steps count
    table: Table | None = None                          # whose rows are updated only when they are looked up


def decaying(size, matrices) -> list[Part]:
    """Cut 0:size into parts: the matrices, which decay, and what lies between them, which does not."""
    edges = [0, *(edge for s in matrices for edge in (s.start, s.stop)), size]
    if edges != sorted(edges):
        raise ValueError(f"matrices must be slices within 0:{size}, in order and without overlap, not {matrices}")
    return [Part(slice(start, stop), decay=None if number % 2 else 0.0)
            for number, (start, stop) in enumerate(itertools.pairwise(edges)) if start < stop]


def blocks(where: slice, size: int = BLOCK) -> Iterator[slice]:
    """Cut a slice into slices of at most `size`."""
    return (slice(i, min(i + size, where.stop)) for i in range(where.start, where.stop, size))


class Optimizer:
    """p ← p - η (d + λp), with λ = 0 outside the matrices.  A subclass defines the direction d.

    size, dtype   of the flat vector; the state has the same
    matrices      the slices of the vector to which weight decay applies: matrix_slices(tree)
    like          an array on the device of the vector; None: the host

    training/updates.py sets what else a step may be told: `parts` with rates of their own, `tables` whose rows are
    updated only when they are looked up, a `mask` that holds weights at zero.
    """
    rule: Callable[..., None]                           # updates in place; a kernel has this name and arguments
    rounds = False                                      # can the kernel also write the rounded copy?
    vectors: tuple[str, ...] = ()                       # names of the attributes that hold the state, vectors like p

    def __init__(self, size, dtype, matrices, like=None):
        self.size, self.dtype, self.t = size, np.dtype(dtype), 0
        self.parts = decaying(size, matrices)
        self.tables: Tables | None = None
        self.mask: Mask | None = None
        for name in self.vectors:
            setattr(self, name, np.zeros(size, dtype, like=like))

    def options(self, t) -> dict:
        """The arguments of the rule in its step t = 1, 2, ..., besides the vectors, lr, decay and scale.

        t   a number, or a column of numbers, one for each row of a table
        """
        raise NotImplementedError

    def live(self) -> list[Part]:
        """The parts that the next step updates."""
        return [part for part in self.parts if part.since <= self.t]

    def step(self, p, g, lr: float, decay: float, scale: float = 1.0, rounded=None) -> None:
        """Update p [size] in place, with the gradient scale * g [size], learning rate η = lr and decay λ = decay.

        rounded   [size] in bfloat16: a copy of a float32 p, which is updated, too; None: there is none

        Raises TypeError unless p and g have the optimizer's size and dtype.
        """
        for name, x in (("p", p), ("g", g)):
            if x.shape != (self.size,) or x.dtype != self.dtype:
                raise TypeError(f"{name} is {x.dtype}{list(x.shape)}, the optimizer takes {self.dtype}[{self.size}]")
        lr, decay, scale = float(lr), float(decay), float(scale)        # a NumPy float64 would promote float32
        live = self.live()
        self.t += 1
        vectors = [p, g, *(getattr(self, name) for name in self.vectors)]
        for part in live:
            rates = {"lr": lr * part.rate, "decay": decay if part.decay is None else part.decay, "scale": scale}
            arrays = [x[part.where] for x in vectors]
            copy = None if rounded is None else rounded[part.where]
            if part.table is None:
                self.update(arrays, copy, self.t - part.since, rates)
            else:
                self.update_rows(arrays, copy, part.table, rates)
        if self.mask:
            self.mask.renew(self.t, p, vectors[2:], rounded)

    def update(self, arrays, rounded, t, rates) -> None:
        """Update arrays = [p, g, *state], and the copy of p unless it is None, by the rule's step t.

        arrays   [n], or [n D] with a column t [n 1]
        """
        kernel = getattr(backend.kernels_for(arrays[:2]), self.rule.__name__, None) if np.ndim(t) == 0 else None
        if kernel:
            in_one_pass = self.rounds and rounded is not None
            copy = {"rounded": rounded} if in_one_pass else {}
            kernel(*arrays, **rates, **copy, **self.options(t))
            if in_one_pass:
                return
        else:
            entries = max(1, arrays[0].size // max(1, len(arrays[0])))
            for block in blocks(slice(0, len(arrays[0])), max(1, BLOCK // entries)):
                self.rule(*(x[block] for x in arrays), **rates, **self.options(t[block] if np.ndim(t) else t))
        if rounded is not None:
            round_into(rounded.ravel(), arrays[0].ravel())

    def update_rows(self, arrays, rounded, table: Table, rates) -> None:
        """update() of the rows of a table that the step has looked up, each by the step of its own count."""
        rows = [table.take(x) for x in arrays]
        copy = None if rounded is None else table.take(rounded)
        self.update(rows, copy, table.counted(), rates)
        for whole, part in zip(arrays, rows, strict=True):
            if whole is not arrays[1]:                  # the gradient
                table.put(whole, part)
        if copy is not None:
            table.put(rounded, copy)

    def clear(self, grads) -> None:
        """Set a tree of gradients to 0 before a step; of a table, the rows that the step before it has looked up."""
        tables = self.tables.of_name if self.tables else {}
        for name, leaf in params.leaves(grads):
            if name in tables:
                leaf[tables[name].touched] = 0
            else:
                leaf.fill(0)

    def sum_and_norm(self, gs):
        """sum_and_norm(gs) of what the next step updates; gradients that the mask holds at 0 become 0."""
        for g in gs if self.mask else ():
            self.mask.hold(g)
        live = self.live()
        if len(live) == len(self.parts) and not self.tables:
            return sum_and_norm(gs)
        squares = 0.0
        for part in live:
            pieces = [g[part.where] for g in gs]
            rows = pieces if part.table is None else [part.table.take(piece).ravel() for piece in pieces]
            norm = sum_and_norm(rows)
            squares += norm * norm
            if part.table is not None:
                part.table.put(pieces[0], rows[0])
        return squares ** 0.5

    def recording(self, p) -> contextlib.AbstractContextManager[None]:
        """A context for a step's gradient, in which the rows of p's tables that are looked up are found."""
        return self.tables.recording(p) if self.tables else contextlib.nullcontext()

    def begin(self, p) -> None:
        """Before a step, set the entries of p [size] to zero that the mask holds there from now on."""
        if self.mask:
            self.mask.renew(self.t, p)

    def state(self) -> dict[str, np.ndarray]:
        """{"step": int64 [], name: vector, ...}: what the next step depends on besides p.  No vector is a copy."""
        more = {name: a for owner in (self.tables, self.mask) if owner for name, a in owner.state().items()}
        return {"step": np.array(self.t, np.int64)} | {name: getattr(self, name) for name in self.vectors} | more

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a saved state(), bit for bit.

        Raises UserError, and changes nothing, unless the state has this optimizer's names, shapes and dtypes.
        """
        current, name = self.state(), type(self).__name__
        if state.keys() != current.keys():
            raise UserError(f"the saved optimizer state has {', '.join(sorted(state)) or 'nothing'} but {name} needs "
                            f"{', '.join(sorted(current))}; resume with the optimizer and options that saved it")
        for key, array in current.items():
            if (state[key].shape, state[key].dtype) != (array.shape, array.dtype):
                raise UserError(f"{key} in the saved optimizer state is {state[key].dtype}{list(state[key].shape)} but "
                                f"{name} needs {array.dtype}{list(array.shape)}; resume with the model and precision "
                                f"that saved it")
        self.t = int(state["step"])
        if self.mask:
            self.mask.load(state)
        for key in current.keys() - {"step", "dropped"}:
            current[key][:] = np.asarray(state[key], like=current[key])


def scaled(g, scale):
    """scale * g, computed in float64 because the scale of a huge gradient may be too small for float32."""
    return (g * np.float64(scale)).astype(g.dtype)


def adamw(p, g, m, v, *, lr, decay, scale, t, betas, eps):
    """Update p, m and v in place: step t of AdamW; of rows [n D], steps t [n 1]."""
    b1, b2 = map(float, betas)
    c1, c2 = (c.astype(g.dtype) if np.ndim(t) else float(c) for c in (1 - b1 ** t, np.sqrt(1 - b2 ** t)))
    g = scaled(g, scale)
    m *= b1                                             # not m += (1 - β₁)(g - m), which is not exactly g for β₁ = 0
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * (g * g)
    d = m / (np.sqrt(v) / c2 + eps) / c1
    p -= lr * (d + decay * p)


class AdamW(Optimizer):
    """Adam with decoupled weight decay.  At step t = 1, 2, ..., elementwise:

    m ← β₁ m + (1 - β₁) g          m̂ = m/(1 - β₁ᵗ)
    v ← β₂ v + (1 - β₂) g²         v̂ = v/(1 - β₂ᵗ)
    p ← p - η (m̂/(√v̂ + ε) + λp)

    betas, eps   (β₁, β₂) and ε; raises UserError unless 0 <= β < 1 and ε > 0 in the dtype

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, Algorithm 2, with η for their ηₜα, and λ
    multiplied by η as in PyTorch.
    """
    rule, rounds, vectors = staticmethod(adamw), True, ("m", "v")
    m: np.ndarray
    v: np.ndarray

    def __init__(self, size, dtype, *, matrices, betas=(0.9, 0.95), eps=1e-8, like=None):
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas are {betas}; each must be at least 0 and below 1")
        if not np.dtype(dtype).type(eps) > 0:
            raise UserError(f"eps is {eps}; it must be positive in {np.dtype(dtype)}")
        super().__init__(size, dtype, matrices, like)
        self.betas, self.eps = betas, float(eps)

    def options(self, t):
        return {"t": t, "betas": self.betas, "eps": self.eps}


def sgd(p, g, v=None, *, lr, decay, scale, momentum, nesterov):
    """Update p and v in place: a step of SGD."""
    d = g = scaled(g, scale)
    if v is not None:
        v *= momentum
        v += g
        d = g + momentum * v if nesterov else v
    p -= lr * (d + decay * p)


class SGD(Optimizer):
    """Gradient descent with momentum μ, elementwise, with v = 0 initially:

    v ← μ v + g
    p ← p - η (v + λp)             plain
    p ← p - η (g + μ v + λp)       Nesterov

    As in PyTorch, v does not include η, and there is no factor 1 - μ.  (In Sutskever et al., 2013, v includes η.)
    Unlike in PyTorch, the decay is decoupled: v does not include it.  Without momentum there is no v.  Raises UserError
    unless 0 <= μ < 1, and μ > 0 for Nesterov's rule.
    """
    rule = staticmethod(sgd)
    v: np.ndarray

    def __init__(self, size, dtype, *, matrices, momentum=0.0, nesterov=False, like=None):
        if not 0 <= momentum < 1:
            raise UserError(f"momentum is {momentum}; it must be at least 0 and below 1")
        if nesterov and not momentum:
            raise UserError("Nesterov's rule needs a momentum above 0; set momentum or turn nesterov off")
        self.vectors = ("v",) if momentum else ()
        super().__init__(size, dtype, matrices, like)
        self.momentum, self.nesterov = float(momentum), nesterov

    def options(self, t):
        return {"momentum": self.momentum, "nesterov": self.nesterov}


def sum_and_norm(gs):
    """g ← g + g₁ + g₂ + ... in place, for gs = [g, g₁, g₂, ...] of one shape, in this order.

    Returns the Euclidean norm ‖g‖ of the sum: a float, or on a GPU a 0-d array, without waiting for it.

    Squares are computed and summed in float64, in which squares of float32 neither overflow nor underflow.  The order
    of the sum depends on g.size alone.
    """
    if kernels := backend.kernels_for(gs):
        return kernels.sum_and_norm(gs)
    squares, (g, *others) = 0.0, gs
    with np.errstate(over="ignore", invalid="ignore"):  # the norm is then inf or NaN
        for i in range(0, g.size, BLOCK):
            block = g[i:i + BLOCK]
            for other in others:
                block += other[i:i + BLOCK]
            squares += float(np.square(block, dtype=np.float64).sum())
    return math.sqrt(squares)


def global_norm(g) -> float:
    """The Euclidean norm ‖g‖ of a vector: see sum_and_norm()."""
    return sum_and_norm([g])


def clip_scale(norm: float, max_norm: float | None) -> float:
    """The factor min(1, max_norm/‖g‖) that clips a gradient g to the norm max_norm: the scale for Optimizer.step().

    It is 1 if max_norm is None or 0, which means no clipping, or if the norm is infinite or NaN, which the caller
    reports.  Raises UserError if max_norm is negative or NaN.

    Source: Pascanu, Mikolov & Bengio, 2013, Algorithm 1.

    >>> from pyllama.training.optim import clip_scale
    >>> clip_scale(norm=4.0, max_norm=1.0), clip_scale(norm=0.5, max_norm=1.0)
    (0.25, 1.0)
    """
    if max_norm and not max_norm > 0:
        raise UserError(f"max_norm is {max_norm}; make it positive, or 0 for no clipping")
    return max_norm / norm if max_norm and max_norm < norm < math.inf else 1.0
