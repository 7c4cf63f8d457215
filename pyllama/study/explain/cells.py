"""The cells of an array that the page shows: all, or of a large array the block with its largest gradients."""
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

DIGITS = 6
ENOUGH = 8                                      # entries that are tried for each row of a block


class Block(NamedTuple):
    """Rows and columns of an array [... C], in order; the rows count all axes but the last."""
    rows: np.ndarray
    columns: np.ndarray

    def of(self, x) -> np.ndarray:
        """The cells of an array, one row after the other."""
        return matrix(x)[np.ix_(self.rows, self.columns)].ravel()

    def cells(self, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """The index of each cell in an array of this shape, as index arrays."""
        places = (self.rows[:, None] * (shape[-1] if shape else 1) + self.columns).ravel()
        return np.unravel_index(places, shape or (1,))[:len(shape)]


def matrix(x) -> np.ndarray:
    """[... C] -> [N C];  a number -> [1 1]"""
    x = np.asarray(x)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)


def block(weights, most: int) -> Block:
    """The block of at most `most` rows and columns that holds the largest weights, such as gradients.

    Rows and columns are those of the largest entries, from the largest down, as long as there is room.

    >>> import numpy as np
    >>> from pyllama.study.explain.cells import block
    >>> block(np.array([[0, 0, 9], [0, 1, 0], [8, 0, 0]]), 2)
    Block(rows=array([0, 2]), columns=array([0, 2]))
    """
    sizes = np.abs(matrix(weights))
    if max(sizes.shape, default=0) <= most:
        return Block(np.arange(sizes.shape[0]), np.arange(sizes.shape[1]))
    rows: set[int] = set()
    columns: set[int] = set()
    for row, column in largest(sizes, ENOUGH * most):
        if len(rows | {row}) <= most and len(columns | {column}) <= most:
            rows.add(row)
            columns.add(column)
    return Block(filled(rows, sizes.max(axis=1), most), filled(columns, sizes.max(axis=0), most))


def filled(lines: set[int], sizes: np.ndarray, most: int) -> np.ndarray:
    """The lines and, as long as there is room, others of the largest sizes, in order."""
    others = [int(line) for line in np.argsort(-sizes, kind="stable")[:2 * most] if line not in lines]
    return np.array(sorted([*lines, *others[:most - len(lines)]]))


def largest(weights, most: int) -> list[tuple[int, ...]]:
    """The indices of the `most` entries of largest size, the largest first."""
    order = np.argsort(-np.abs(weights), axis=None, kind="stable")[:most]
    return [tuple(map(int, index)) for index in zip(*np.unravel_index(order, weights.shape), strict=True)]


def numbers(values: Iterable, digits: int = DIGITS) -> list[float | int | None]:
    """Numbers for JSON, rounded to some significant digits: JSON has neither NaN nor infinity, so they are None."""
    return [number(value, digits) for value in values]


def number(value, digits: int = DIGITS) -> float | int | None:
    """A number for JSON: see numbers()."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 10 ** digits else rounded
