"""GPTQ: a matrix rounded to a storage format so that its products with given inputs change little.

Of a row w of the matrix, and inputs x with the second moments H = E[x xᵀ], the stored row v has the error

    E[((w - v)·x)²] = (w - v) H (w - v)ᵀ

Rows are independent.  Rounding each number to its nearest value is best only if H is diagonal.  GPTQ rounds the numbers
one after the other, and lets those that are left make up for each error.

One step.  Let v₁ be the rounded first number, a = w₁ - v₁, and δ the change of the others.  With F = H⁻¹, the least of
the quadratic form over δ, where its first entry is held at a, is

    (a, -δ) = (a / F₁₁) F₁          the multiple of the first row of F that has a in its first place
    least   = a² / F₁₁

because H (a, -δ)ᵀ must be 0 in all places but the first, as H F = 1 has it.  The others then have the H of their own
problem without the first row and column.  Its inverse is F without the part that the first row explains,

    F' = F - F₁ᵀ F₁ / F₁₁,          again without the first row and column

which is a step of Cholesky's algorithm.  So with F = Uᵀ U and U upper triangular, for j = 1, 2, ...

    e_j = (w_j - v_j) / U_jj;       w_k ← w_k - e_j U_jk  for k > j;       error of the row = Σ e_j²

Blocks.  In q4_0, 32 numbers share a scale d.  Of a grid of scales, a block gets the one with the least Σ e_j², which is
the error that it adds if what follows makes up for it as well as possible.

Order.  Whatever is rounded last is made up for by nothing.  So the blocks of large inputs are rounded first, and in a
block the numbers of large inputs.  All this is greedy: a row that is better off with its nearest values keeps them.

Source: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", 2023.  The
choice of the scale by the error of the block is ours.

Axes: E rows, D columns, C scales that are tried.
"""
import numpy as np

from pyllama.quantization import blocks
from pyllama.quantization.blocks import BLOCK

AT_ONCE = 128                                               # rows: their arrays fit into a cache
SHARES = np.linspace(1 / 2, 8 / 7, 16)          # of max|w|/8: from half of the range cut off to nothing, even at 7


def rounded(w: np.ndarray, h: np.ndarray, kind: str, search: bool = True, order: bool = True) -> np.ndarray:
    """The rows of a matrix in a storage format, as blocks.encode() gives them, but with less error of its products.

    w       [E D], D a multiple of 32
    h       [D D], symmetric and positive definite: the second moments of the inputs
    kind    "q8_0" or "q4_0"
    search  try several scales for a block of q4_0; False: that of its largest number
    order   begin with the columns of large inputs; False: from left to right

    Returns uint8 [E, bytes of a row].  Raises LinAlgError if h is not positive definite, UserError if a scale is not
    finite.

    >>> import numpy as np
    >>> from pyllama.quantization.blocks import decode, encode
    >>> from pyllama.quantization.rounding import rounded
    >>> g = np.random.default_rng(0)
    >>> w, x = g.normal(size=(8, 64)), g.normal(size=(500, 64)) @ g.normal(size=(64, 64))
    >>> nearest, gptq = encode(w, "q4_0"), rounded(w, x.T @ x, "q4_0")
    >>> errors = [abs(x @ (decode(data, "q4_0") - w).T).mean() for data in (nearest, gptq)]
    >>> bool(errors[1] < 0.7 * errors[0])
    True
    """
    columns = ordered(np.diag(h)) if order else np.arange(len(h))
    u = factor(h[np.ix_(columns, columns)])
    data = np.empty((len(w), blocks.row_bytes(w.shape[1], kind)), np.uint8)
    for begin in range(0, len(w), AT_ONCE):
        rows = slice(begin, begin + AT_ONCE)
        levels, scales = swept(w[rows].T[columns].astype(np.float64), u, kind, search)
        natural = np.empty_like(levels)
        natural[columns] = levels                           # the blocks keep their columns, in another order
        by_block = np.empty_like(scales)
        by_block[columns[::BLOCK] // BLOCK] = scales
        gptq, nearest = blocks.of_levels(natural.T, by_block.T, kind), blocks.encode(w[rows], kind)
        data[rows] = better(w[rows], h, kind, gptq, nearest)
    return data


def better(w: np.ndarray, h: np.ndarray, kind: str, *stored: np.ndarray) -> np.ndarray:
    """Of two ways to store the rows w [E D], the one of less error in each row: a greedy choice may lose."""
    differences = [w - blocks.decode(data, kind) for data in stored]
    first, second = (((e @ h) * e).sum(axis=1) for e in differences)
    return np.where((first <= second)[:, None], *stored)


def ordered(size: np.ndarray) -> np.ndarray:
    """The columns, by blocks: those with the largest sum of `size` [D] first, each from its largest to its least."""
    within = np.argsort(-size.reshape(-1, BLOCK), axis=1, kind="stable")
    first = np.argsort(-size.reshape(-1, BLOCK).sum(axis=1), kind="stable")
    return (within + BLOCK * np.arange(len(within))[:, None])[first].ravel()


def factor(h: np.ndarray) -> np.ndarray:
    """The upper triangular U with Uᵀ U = H⁻¹.

    If J reverses the order, J H J = L Lᵀ, so that H = (J L J)(J L J)ᵀ, whose factors are upper and lower triangular.
    """
    lower = np.linalg.cholesky(h[::-1, ::-1])
    return np.linalg.inv(lower[::-1, ::-1])


def swept(w: np.ndarray, u: np.ndarray, kind: str, search: bool) -> tuple[np.ndarray, np.ndarray]:
    """(levels [D E], scales [N E]) of rows w [D E], which are given by columns and are overwritten."""
    levels, scales = np.empty_like(w), np.empty((len(w) // BLOCK, w.shape[1]))
    for begin in range(0, len(w), BLOCK):
        block, behind = slice(begin, begin + BLOCK), slice(begin + BLOCK, None)
        scale = best_scale(w[block], u[block, block], kind) if search else largest_scale(w[block], kind)
        scales[begin // BLOCK] = scale
        levels[block], errors = sweep(w[block], u[block, block], scale, kind)
        w[behind] -= u[block, behind].T @ errors
    return levels, scales


def sweep(w: np.ndarray, u: np.ndarray, scale: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(levels, errors e), both [32 ... E], of a block w [32 ... E] that is rounded with these scales [... E]."""
    least, most = blocks.LEVELS[kind]
    w, inverse = w.copy(), blocks.inverse(scale)
    levels, errors = np.empty_like(w), np.empty_like(w)
    for j in range(len(w)):
        levels[j] = np.clip(np.rint(w[j] * inverse), least, most)
        errors[j] = (w[j] - scale * levels[j]) / u[j, j]
        w[j + 1:] -= np.multiply.outer(u[j, j + 1:], errors[j])
    return levels, errors


def largest_scale(w: np.ndarray, kind: str) -> np.ndarray:
    """The scales [E] of the format's own rounding: w [32 E]."""
    return as_stored(blocks.FORMATS[kind].scale(w.T)[:, 0])                 # type: ignore[misc]


def as_stored(scale: np.ndarray) -> np.ndarray:
    """The scales as float16 has them.

    What is left to make up for much may be beyond its range, in a row that better() then gives its nearest values.
    """
    most = np.finfo(np.float16).max
    return np.clip(scale, -most, most).astype(np.float16).astype(np.float64)


def best_scale(w: np.ndarray, u: np.ndarray, kind: str) -> np.ndarray:
    """Of a grid of scales, the one [E] of the least error of each row's block: w [32 E].

    The 255 levels of q8_0 are so fine that its own scale is kept.
    """
    if kind == "q8_0":
        return largest_scale(w, kind)
    shares = np.concatenate([SHARES, -SHARES])              # the range has one more number on its negative side
    scales = as_stored(np.multiply.outer(shares, abs(w).max(axis=0) / 8))               # [C E]
    tried = np.broadcast_to(w[:, None], (BLOCK, *scales.shape))
    _, errors = sweep(tried, u, scales, kind)
    return np.take_along_axis(scales, (errors * errors).sum(axis=0).argmin(axis=0)[None], axis=0)[0]
