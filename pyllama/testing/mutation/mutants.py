"""A mutant: the text of a function, or of a file, with one small bug."""
import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pyllama.testing.mutation.operators import changes

Change = tuple[int, str, str, str, str, str]    # line, function, statement, before, after, the text with this change


class Mutant(NamedTuple):
    """One bug, and where it stands."""
    unit: str                       # the op, the C file or the user's function
    function: str
    where: str                      # file:line, for the reader
    statement: str
    change: str                     # "a * b → a / b", the second of these in the function "a * b → a / b (2)"
    code: str                       # the function, or the C file, with the bug


def mutants_in(definition: ast.FunctionDef, unit: str, file: str) -> Iterator[Mutant]:
    """The mutants of a function.

    >>> import ast
    >>> from pyllama.testing.mutation.mutants import mutants_in
    >>> definition = ast.parse("def backward(dy, x): return dy * x").body[0]
    >>> [mutant.change for mutant in mutants_in(definition, "product", "product.py")]
    ['dy * x → dy / x', 'dy * x → dy', 'dy * x → x']
    """
    yield from numbered(changes(definition), unit, file, ast.unparse(definition))


def numbered(changes: Iterable[Change], unit: str, file: str, original: str) -> Iterator[Mutant]:
    """Yield each distinct mutant once; a number distinguishes equal descriptions."""
    seen, met = {original}, Counter[tuple[str, str]]()
    for line, function, statement, before, after, code in changes:
        if code in seen:
            continue
        seen.add(code)
        change = f"{before} → {after}"
        met[function, change] += 1
        times = f" ({met[function, change]})" if met[function, change] > 1 else ""
        yield Mutant(unit, function, f"{file}:{line}", statement, change + times, code)
