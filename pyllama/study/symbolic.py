"""Formulas on symbols: derivatives and equality as SymPy proves them, for arrays of a few numbers."""
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy

from pyllama.study.axes import Array
from pyllama.study.evaluate import Unprovable

ROUND = {"floor": sympy.floor, "ceil": sympy.ceiling}
OF_EXP = sympy.tanh, sympy.sinh, sympy.cosh, sympy.sin, sympy.cos             # functions of exponentials


class Symbolic:
    """Arrays of SymPy expressions.

    A name whose definition SymPy is not asked about, such as a maximum, stands for any number.  Then a derivative is
    proved if it does not depend on that number: that is checked.
    """

    def __init__(self):
        self.any: set[sympy.Symbol] = set()

    def unknown(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A name that stands for any number."""
        found = self.symbols(name, shape)
        self.any |= set(found.flat)
        return found

    def fresh(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.symbols(name, shape)

    def positive(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.symbols(name, shape)

    def whole(self, name: str, value: int) -> np.ndarray:
        return self.symbols(name, ())

    def symbols(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = np.empty(shape, object)
        for index in np.ndindex(shape):
            found[index] = sympy.Symbol("_".join([name, *map(str, index)]), positive=True)
        return found

    def number(self, value: Any) -> Any:
        return sympy.Rational(value)

    def constant(self, name: str) -> Any:
        return {"π": sympy.pi, "e": sympy.E}[name]

    def function(self, name: str, data: np.ndarray) -> np.ndarray:
        if name == "abs" or (name in ROUND and has_symbols(data)):
            raise Unprovable
        return each(ROUND.get(name) or getattr(sympy, name), data)

    def largest(self, data: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
        if has_symbols(data):
            raise Unprovable
        return np.max(data, axis=axis)

    def compare(self, sign: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if has_symbols(left) or has_symbols(right):
            raise Unprovable
        left, right = left.astype(int), right.astype(int)
        return {"=": np.equal, "≠": np.not_equal, "<": np.less, ">": np.greater, "≤": np.less_equal,
                "≥": np.greater_equal}[sign](left, right).astype(int).astype(object)

    def derivatives(self, evaluate: Callable[[np.ndarray], Array], data: np.ndarray, name: str) -> Array:
        """The derivative of evaluate(data) with respect to each number of data, whose axes come last.

        evaluate(data) is an Array; those axes are named by the caller.
        """
        free = self.symbols(f"{name}*", data.shape)
        above, back = evaluate(free), dict(zip(free.flat, data.flat, strict=True))
        self.require_independent(above)
        slopes = np.stack([each(lambda one, x=x: sympy.diff(one, x).subs(back), above.data) for x in free.flat], -1)
        return Array(above.axes, slopes.reshape(*above.data.shape, *data.shape))

    def require_independent(self, above: Array) -> None:
        for one in above.data.flat:
            for number in self.any & sympy.sympify(one).free_symbols:
                if not is_zero(sympy.diff(one, number)):
                    raise Unprovable

    def pointwise(self, f: Callable[[np.ndarray], np.ndarray], data: np.ndarray) -> np.ndarray:
        """f'(data), number by number."""
        x = sympy.Symbol("x*", positive=True)
        slope = sympy.diff(f(np.array(x, object)).item(), x)
        return each(lambda here: slope.subs(x, here), data)

    def apart(self, left: np.ndarray, right: np.ndarray) -> str:
        """How both differ, in words; "" if SymPy proves that they do not."""
        left, right = np.broadcast_arrays(left, right)
        for one, other in zip(left.flat, right.flat, strict=True):
            if not is_zero(sympy.sympify(one) - sympy.sympify(other)):
                return f"{one} is not {other}"
        return ""


def each(f: Callable, data: np.ndarray) -> np.ndarray:
    found = np.empty(np.shape(data), object)
    for index in np.ndindex(found.shape):
        found[index] = f(sympy.sympify(np.asarray(data, object)[index]))
    return found


def has_symbols(data: np.ndarray) -> bool:
    return any(isinstance(number, sympy.Basic) and number.free_symbols for number in data.flat)


def is_zero(expression: sympy.Expr) -> bool:
    """Is this zero, whatever the symbols are?

    The expression is a quotient of polynomials in its symbols, exponentials, other functions and roots.  So it is zero
    if its numerator is, after each root's square has been replaced by what the root is taken of.  A function of a
    long expression may stand for any number, which is tried first, as it is short.
    """
    return vanishes(with_short_arguments(expression)) or vanishes(expression)


def with_short_arguments(expression: sympy.Expr) -> sympy.Expr:
    """The expression with a symbol for each function of something that has functions in it, too."""
    outer = [f for f in expression.atoms(sympy.Function) if any(one.atoms(sympy.Function) for one in f.args)]
    return expression.xreplace({f: sympy.Symbol(f"function*{k}") for k, f in enumerate(sorted(outer, key=str))})


def vanishes(expression: sympy.Expr) -> bool:
    """Is the numerator zero?"""
    if expression.has(*OF_EXP):
        expression = expression.rewrite(sympy.exp)
    above = numerator(expression)
    for k, base in enumerate(bases(above)):
        root = sympy.Symbol(f"root*{k}")
        above = numerator(above.replace(lambda e, base=base: is_root(e) and e.base == base,
                                        lambda e, root=root: root ** (2 * e.exp)))
        above = sympy.expand(sympy.rem(sympy.Poly(above, root), sympy.Poly(root ** 2 - base, root)).as_expr())
    return numerator(above) == 0


def numerator(expression: sympy.Expr) -> sympy.Expr:
    return sympy.expand(sympy.fraction(sympy.together(sympy.expand(expression, power_base=False)))[0])


def is_root(e: sympy.Expr) -> bool:
    return bool(e.is_Pow and e.exp.is_Rational and e.exp.q == 2 and e.base.free_symbols)


def bases(expression: sympy.Expr) -> list[sympy.Expr]:
    """What square roots are taken of, the simplest first."""
    return sorted({power.base for power in expression.atoms(sympy.Pow) if is_root(power)}, key=str)
