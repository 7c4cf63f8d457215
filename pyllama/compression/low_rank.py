"""Low rank: a matrix as the product of two smaller ones, by a truncated singular value decomposition.

A matrix W [F D] with inputs x [D] is replaced by U V, U [F R] and V [R D], which has R (F + D) numbers instead of F D.

Without a text.  The nearest matrix of rank R (Eckart and Young, 1936): with W = A Σ Bᵀ it keeps the R largest singular
values, and ‖W - U V‖² = Σ_{i>R} σ_i².

With a text.  What matters is the product (Wang et al., "SVD-LLM", 2024).  With H = E[x xᵀ] + λI (see moments.py) and
its Cholesky factor S, H = S Sᵀ,

    E|(W - U V) x|² + λ‖W - U V‖² = tr (W - U V) H (W - U V)ᵀ = ‖(W - U V) S‖²

so that W S = A Σ Bᵀ is truncated instead, and S⁻¹ undoes S:

    U = A_R Σ_R^½       V = Σ_R^½ B_Rᵀ S⁻¹          the loss is Σ_{i>R} σ_i², exactly

The loss of every rank is thus known from one decomposition, before any factor is made.

Ranks.  The budget is a share of the numbers in all matrices.  It is spent one rank at a time, where a number buys most:
the next singular value of a matrix is worth σ_i² / Σ σ², which is the share of its products' energy, and costs F + D.
A matrix whose factors would be as large as itself stays whole.
"""
import heapq
import math
from typing import NamedTuple

import numpy as np

from pyllama.errors import UserError


class Decomposition(NamedTuple):
    """W S = A Σ Bᵀ of a matrix W [F D]."""
    left: np.ndarray                            # A [F M], M = min(F, D)
    values: np.ndarray                          # σ [M], from the largest to the smallest
    right: np.ndarray                           # Bᵀ S⁻¹ [M D]

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """(U [F R], V [R D])"""
        root = np.sqrt(self.values[:rank])
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def loss(self, rank: int) -> float:
        """‖(W - U V) S‖² of this rank."""
        return float(np.square(self.values[rank:]).sum())


def decomposed(w: np.ndarray, h: np.ndarray | None = None) -> Decomposition:
    """The decomposition of W [F D] for inputs of second moments H [D D], positive definite; None: the identity.

    >>> import numpy as np
    >>> from pyllama.compression.low_rank import decomposed
    >>> w, h = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[100.0, 0.0], [0.0, 1.0]])
    >>> for moments in (None, h):                                   # the first input is ten times as large
    ...     u, v = decomposed(w, moments).factors(1)
    ...     print((u @ v).round(6).tolist(), decomposed(w, moments).loss(1).__round__(6))
    [[0.0, 0.0], [0.0, 2.0]] 1.0
    [[1.0, 0.0], [0.0, 0.0]] 4.0
    """
    w = w.astype(np.float64)
    if h is None:
        return Decomposition(*np.linalg.svd(w, full_matrices=False))
    s = np.linalg.cholesky(h)
    left, values, right = np.linalg.svd(w @ s, full_matrices=False)
    return Decomposition(left, values, np.linalg.solve(s.T, right.T).T)


def ranks(decompositions: dict[str, Decomposition], share: float) -> dict[str, int]:
    """{name: rank} within the budget; 0: the matrix stays whole.

    Raises UserError if it does not suffice for one rank of each.
    """
    shapes = {name: (len(d.left), d.right.shape[1]) for name, d in decompositions.items()}
    chosen = {name: int(fits_beside(1, F, D)) for name, (F, D) in shapes.items()}
    total = sum(F * D for F, D in shapes.values())
    least = sum(F + D if chosen[name] else F * D for name, (F, D) in shapes.items())
    left = share * total - least
    if left < 0:
        raise UserError(f"rank is {share}, too small for one rank of every matrix, which has {least:,} of {total:,} "
                        f"numbers; make it at least {math.ceil(1000 * least / total) / 1000}")
    offers = [next_offer(name, decompositions[name], 1) for name, rank in chosen.items() if rank]
    heapq.heapify(offers)
    while offers:
        _, name, cost = heapq.heappop(offers)
        if cost > left:
            continue
        left -= cost
        d, (F, D) = decompositions[name], shapes[name]
        chosen[name] = chosen[name] + 1 if fits_beside(chosen[name] + 1, F, D) else 0
        if chosen[name]:
            heapq.heappush(offers, next_offer(name, d, chosen[name]))
    return chosen


def next_offer(name: str, d: Decomposition, rank: int) -> tuple[float, str, int]:
    """(minus the worth of a number, the name, the numbers) of one rank more, or of the whole matrix."""
    F, D = len(d.left), d.right.shape[1]
    squares = np.square(d.values)
    total = float(squares.sum()) or 1.0
    if fits_beside(rank + 1, F, D):
        return -float(squares[rank]) / total / (F + D), name, F + D
    cost = F * D - rank * (F + D)
    return -float(squares[rank:].sum()) / total / cost, name, cost


def fits_beside(rank: int, F: int, D: int) -> bool:
    """Are two factors of this rank smaller than the matrix?"""
    return rank * (F + D) < F * D
