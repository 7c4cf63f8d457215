"""Compute an expression of the notation: every node of its tree is an array with named axes."""
import string
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from pyllama.errors import counted
from pyllama.study import notation
from pyllama.study.axes import MOVED, Array, combined, indexed, reduced, spread
from pyllama.study.notation import Node


class Unprovable(Exception):
    """Not a formula that SymPy is asked about: it compares numbers, or takes the largest one."""


GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
LETTERS = set(string.ascii_lowercase + GREEK)
CONSTANTS = "π", "e"


class Scope:
    """What the names of a formula stand for.

    numbers     Numeric or Symbolic: what the numbers are
    names       name -> Array; its axes are words such as rows, or capital letters
    letters     letter -> the axis that it runs over
    sizes       axis -> its length; a name for that number, too
    implicit    axes that formulas leave out: rows, batch, heads
    """

    def __init__(self, numbers: Any, names: dict[str, Array], letters: dict[str, str], sizes: dict[str, int],
                 implicit: tuple[str, ...] = ("rows",)):
        self.numbers, self.names, self.letters, self.sizes = numbers, names, letters, sizes
        self.implicit = *implicit, MOVED
        self.functions: dict[str, tuple[tuple[str, ...], Node]] = {}
        self.derivative: Callable[[Node, str], Array] = not_yet

    # --- indices ---

    def letter(self, letter: str, size: int | None = None) -> Array:
        """The numbers that an index runs through."""
        return Array((letter,), np.arange(self.sizes[self.axis(letter)] if size is None else size))

    def axis(self, letter: str) -> str:
        """The axis that an index runs over.  Raises ValueError if it has none."""
        if letter not in self.letters:
            raise ValueError(f"the index {letter} has no axis")
        return self.letters[letter]

    def known(self, name: str) -> Array:
        """The array of this name.  Raises ValueError if it is not defined yet."""
        if name not in self.names:
            raise ValueError(f"{name} is not defined")
        return self.names[name]

    def at(self, name: str, indices: tuple[Node, ...]) -> Array:
        """An array at its indices; axes without one stay."""
        return indexed(self.names[name], self.places(self.names[name], indices)) if indices else self.names[name]

    def places(self, a: Array, indices: tuple[Node, ...]) -> list[Array]:
        """Integers for each axis: of the indices, in order, but for axes that are left out; all of them elsewhere."""
        left, found = list(indices), []
        for axis, size in zip(a.axes, a.data.shape, strict=True):
            has_index = bool(left) and axis not in self.implicit
            found.append(self.index(left.pop(0), axis, size) if has_index else Array((axis,), np.arange(size)))
        if left:
            raise ValueError(f"there are {len(indices)} indices for the axes {', '.join(a.axes)}")
        return found

    def index(self, node: Node, axis: str, size: int) -> Array:
        """Integers: what an index says about an axis of this size."""
        if isinstance(node, notation.Name) and not node.indices and node.text in LETTERS and \
                self.letters.get(node.text, axis) == axis:
            return self.letter(node.text, size)
        found = self.value(node)
        return Array(found.axes, np.asarray(np.real(found.data.astype(complex)) if found.data.dtype != object else
                                            found.data).astype(int))

    # --- values ---

    def value(self, node: Node) -> Array:
        """The array that an expression stands for.  Raises ValueError if a name is unknown."""
        return getattr(self, f"of_{type(node).__name__.lower()}")(node)

    def scalar(self, number: Any) -> Array:
        return Array((), np.asarray(number))

    def of_number(self, node: notation.Number) -> Array:
        return self.scalar(self.numbers.number(node.value))

    def of_name(self, node: notation.Name) -> Array:
        whole = whole_name(node)
        if whole != node.text and whole in self.names:
            return self.names[whole]
        if node.text in self.names:
            return self.at(node.text, node.indices)
        if node.text in self.sizes:
            return self.scalar(self.numbers.number(self.sizes[node.text]))
        if node.text in self.functions:
            return self.value(self.functions[node.text][1])
        if node.text in self.letters:
            return self.letter(node.text)
        if node.text in CONSTANTS:
            return self.scalar(self.numbers.constant(node.text))
        if node.text == "δ" and len(node.indices) == 2:             # Kronecker's: 1 where both indices are equal
            return self.value(notation.Relation("=", *node.indices))
        raise ValueError(f"the name {node.text} has no meaning here")

    def of_sum(self, node: notation.Sum) -> Array:
        return self.folded(np.add, node.terms)

    def of_product(self, node: notation.Product) -> Array:
        return self.folded(np.multiply, node.factors)

    def folded(self, function: Callable, nodes: tuple[Node, ...]) -> Array:
        first, *others = map(self.value, nodes)
        for other in others:
            first = combined(function, first, other)
        return first

    def of_inner(self, node: notation.Inner) -> Array:
        left, right = self.value(node.left), self.value(node.right)
        product = combined(np.multiply, left, right)
        return self.total(product, [axis for axis in self.vector(left) if axis in right.axes])

    def vector(self, a: Array) -> list[str]:
        """The axes that have neither an index nor are left out in all formulas."""
        return [axis for axis in a.axes if axis not in self.implicit and axis not in LETTERS]

    def of_quotient(self, node: notation.Quotient) -> Array:
        return combined(np.divide, self.value(node.above), self.value(node.below))

    def of_power(self, node: notation.Power) -> Array:
        if isinstance(node.base, notation.Name) and node.base.text == "e" and "e" not in self.names:
            return self.applied("exp", self.value(node.exponent))
        return combined(np.power, self.value(node.base), self.value(node.exponent))

    def of_transposed(self, node: notation.Transposed) -> Array:
        return self.value(node.matrix)                  # its axes have names: their order says nothing

    # --- matrices ---

    def matrix(self, node: Node, like: Array | None = None) -> Array:
        """A sum of products of matrices, for which the order of their axes counts.

        like    what the result must have the axes of

        Raises ValueError if two matrices cannot be multiplied or added.
        """
        if isinstance(node, notation.Sum):
            first, *others = map(self.matrix, node.terms)
            found = reduce(lambda a, b: combined(np.add, a, self.of_form(b, first)), others, first)
        elif isinstance(node, notation.Product):
            found = reduce(self.times, map(self.matrix, node.factors))
        elif isinstance(node, notation.Transposed):
            a = self.matrix(node.matrix)
            found = self.ordered(a, self.vector(a)[::-1])
        else:
            found = self.value(node)
        return found if like is None else self.of_form(found, like)

    def times(self, left: Array, right: Array) -> Array:
        """The sum over the last axis of the left matrix, which is the first one of the right matrix; or a multiple."""
        rows, columns = self.vector(left), self.vector(right)
        product = combined(np.multiply, left, right)
        if not rows or not columns:
            return product
        if rows[-1] != columns[0] or {*rows} & {*columns[1:]}:
            raise ValueError(f"{shape(rows)} times {shape(columns)} is not a product of matrices")
        return self.ordered(self.total(product, [rows[-1]]), [*rows[:-1], *columns[1:]])

    def ordered(self, a: Array, own: list[str]) -> Array:
        """The same with its own axes last, in this order."""
        axes = (*(axis for axis in a.axes if axis not in own), *own)
        return Array(axes, spread(a, axes))

    def of_form(self, a: Array, like: Array) -> Array:
        """The matrix, if it has the same axes in the same order as another one, else ValueError."""
        if self.vector(a) != self.vector(like):
            raise ValueError(f"{shape(self.vector(a))} is not {shape(self.vector(like))}")
        return a

    def of_relation(self, node: notation.Relation) -> Array:
        return combined(lambda a, b: self.numbers.compare(node.sign, a, b), self.value(node.left),
                        self.value(node.right))

    def of_partial(self, node: notation.Partial) -> Array:
        """∂above/∂below: of the numbers that share their letters and left-out axes, one by one."""
        name = whole_name(node.below)
        name = name if name in self.names else node.below.text
        return self.slopes(node.above, name, () if name != node.below.text else node.below.indices)

    def slopes(self, above: Node, name: str, indices: tuple[Node, ...] = ()) -> Array:
        found, below = self.derivative(above, name), self.names[name]
        own = found.axes[:len(found.axes) - len(below.axes)]
        places = [Array((axis,), np.arange(size)) for axis, size in zip(own, found.data.shape, strict=False)]
        return indexed(found, [*places, *self.places(below, indices)])

    # --- functions ---

    def of_call(self, node: notation.Call) -> Array:
        if node.function in self.names:                             # t(n): an index in parentheses
            return self.at(node.function, node.arguments)
        if node.function in notation.FUNCTIONS and len(node.arguments) != notation.arguments(node.function):
            raise ValueError(f"{node.function} has {counted(len(node.arguments), 'argument')} here; it needs "
                             f"{notation.arguments(node.function)}")
        if node.function == "mean":
            found = self.value(node.arguments[0])
            return self.mean(found, self.vector(found))
        if node.function in ("max", "min"):
            return self.extreme(node.function, *map(self.value, node.arguments))
        found = self.applied(node.function, *map(self.value, node.arguments), primes=node.primes)
        return found if node.power is None else combined(np.power, found, self.value(node.power))

    def extreme(self, function: str, *both: Array) -> Array:
        """The larger or the smaller one of two numbers: min(a, b) is -max(-a, -b)."""
        sign = 1 if function == "max" else -1
        return combined(lambda *data: sign * self.numbers.largest(
            np.stack(np.broadcast_arrays(*(sign * one for one in data)), -1), (-1,)), *both)

    def applied(self, function: str, *arguments: Array, primes: int = 0) -> Array:
        if primes:
            argument, = arguments
            return Array(argument.axes, self.numbers.pointwise(
                lambda data: self.applied(function, Array(argument.axes if np.ndim(data) else (), data),
                                          primes=primes - 1).data, argument.data))
        if function in self.functions:
            parameters, body = self.functions[function]
            before = self.names
            self.names = before | dict(zip(parameters, arguments, strict=True))
            try:
                return self.value(body)
            finally:
                self.names = before
        if function not in notation.FUNCTIONS:
            raise ValueError(f"the function {function} is not defined here")
        return Array(arguments[0].axes, self.numbers.function(function, arguments[0].data))

    # --- reductions ---

    def of_reduction(self, node: notation.Reduction) -> Array:
        body = self.value(node.body)
        if node.condition is not None:
            body = combined(np.multiply, self.value(node.condition), body)
        over = [letter for letter in node.over if letter in body.axes]
        for letter in node.over:
            if letter not in body.axes:                             # Σ_i 1
                body = combined(np.multiply, body, Array((letter,), np.ones(self.letter(letter).data.shape, int)))
                over.append(letter)
        if node.kind == "mean":
            return self.mean(body, over)
        if node.kind == "max":
            return reduced(self.numbers.largest, body, over)
        return self.total(body, over) if node.kind == "Σ" else reduced(np.prod, body, over)

    def total(self, a: Array, over: list[str]) -> Array:
        return reduced(np.sum, a, over) if over else a

    def mean(self, a: Array, over: list[str]) -> Array:
        count = int(np.prod([a.data.shape[a.axes.index(axis)] for axis in over]))
        return combined(np.divide, self.total(a, over), self.scalar(self.numbers.number(count)))


def shape(axes: list[str]) -> str:
    return f"[{' '.join(axes)}]"


def not_yet(node: Node, name: str) -> Array:
    raise ValueError("nothing is defined yet that could be differentiated")


def whole_name(node: notation.Name) -> str:
    """a_i as one name, for names that end in a letter, such as the gates of an LSTM; "" if an index is no letter."""
    letters = [i.text for i in node.indices if isinstance(i, notation.Name)]
    if len(letters) < len(node.indices):
        return ""
    return f"{node.text}_{''.join(letters)}" if letters else node.text

