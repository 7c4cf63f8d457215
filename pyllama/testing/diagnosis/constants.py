"""What a number may be: a fraction, the size of an axis, one over it."""
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

NEAR = 1e-7                                         # relative, if the measurement is not worse
LEAST = 5                                           # length of an axis: a factor of 1/2 or 1/4 has many other causes
MOST = 12                                           # numerator and denominator of a simple fraction
CONSTANTS = {"π": np.pi, "√2": 2 ** 0.5, "√(2/π)": (2 / np.pi) ** 0.5, "ln 2": float(np.log(2))}


def simple(number: float, near: float = NEAR) -> str:
    """The number as a simple fraction; "" if it is not one.

    >>> from pyllama.testing.diagnosis.constants import simple
    >>> simple(0.75), simple(-2.0), simple(0.7501)
    ('3/4', '-2', '')
    """
    if not np.isfinite(number):
        return ""
    fraction = Fraction(number).limit_denominator(MOST)
    small = 0 < abs(fraction.numerator) <= MOST
    return str(fraction) if small and equal(number, float(fraction), near) else ""


def equal(a: float, b: float, near: float) -> bool:
    return abs(a - b) <= near * abs(b)


def short(number: float) -> str:
    """The number with three decimals if they are all it has, else with six digits; what is left of 1 if that is all.

    >>> from pyllama.testing.diagnosis.constants import short
    >>> short(0.25), short(1 / 3), short(1 + 1e-8)
    ('0.250', '0.333333', '(1 + 1e-08)')
    """
    decimals, digits = f"{number:.3f}", f"{number:.6g}"
    if equal(number, float(decimals), 1e-9) and float(decimals):
        return decimals
    rest = number - float(digits)
    return f"({digits} {'+' if rest > 0 else '-'} {abs(rest):.1g})" if digits in ("1", "-1") else digits


def names(number: float, sizes: dict[str, int], near: float = NEAR) -> list[str]:
    """What the number is, apart from the sign, as clauses; sizes are those of arrays and axes by name.

    >>> from pyllama.testing.diagnosis.constants import names
    >>> names(0.125, {"axis 1 of x": 8})
    ['0.125 = 1/8', 'axis 1 of x has size 8: a mean where the derivative has a sum?']
    """
    number = abs(number)
    clauses = [f"{short(number)} = {what}" for what in meanings(number, near)]
    for name, size in sizes.items():
        if size >= LEAST:
            clauses += of_size(number, name, size, near)
    return clauses[:2]


def meanings(number: float, near: float) -> Iterator[str]:
    """The number as a fraction that is not whole, one over a whole number, or a constant."""
    fraction = simple(number, near)
    if "/" in fraction:
        yield fraction
    elif not fraction and number < 1 and equal(1 / number, round(1 / number), near):
        yield f"1/{round(1 / number)}"
    yield from (name for name, value in CONSTANTS.items() if equal(number, value, near))
    yield from (f"1/{name}" for name, value in CONSTANTS.items() if equal(number, 1 / value, near))


def of_size(number: float, name: str, size: int, near: float) -> Iterator[str]:
    """Clauses that explain the number by the size of an axis."""
    root = size ** 0.5
    forms = {f"{name} has size {size}: a sum where the derivative has a mean?": size,
             f"{name} has size {size}: a mean where the derivative has a sum?": 1 / size}
    if root % 1:
        forms |= {f"it is the square root of {size}, the size of {name}": root,
                  f"it is 1/√{size}, where {size} is the size of {name}": 1 / root}
    forms |= {f"it is {size}/{size - 1}, where {size} is the size of {name}": size / (size - 1),
              f"it is {size - 1}/{size}, where {size} is the size of {name}": (size - 1) / size}
    yield from (clause for clause, value in forms.items() if equal(number, value, near))


def sizes_of(**arrays: np.ndarray) -> dict[str, int]:
    """The sizes of the axes of the arrays, and the numbers of their rows and entries; each size once."""
    sizes: dict[int, str] = {}
    for name, a in arrays.items():
        named = {f"axis {axis} of {name}": size for axis, size in enumerate(a.shape)}
        named |= {f"{name} without its last axis": math.prod(a.shape[:-1]), f"{name} as a whole": a.size}
        for what, size in named.items():
            sizes.setdefault(size, what)
    return {what: size for size, what in sizes.items()}
