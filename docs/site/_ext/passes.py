"""The lines of a derivation in pairs: each line of the forward pass, with the backward lines that it causes.

A line y = f(a, b) causes the lines of da and db.  Where a has several uses, da is a sum over them: its line stands
beside the first use, where the backward pass arrives last.
"""
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pyllama.study.definitions import used
from pyllama.study.derivation import Derivation
from pyllama.study.notation import Call, Name, parse


class Line(NamedTuple):
    """A line of a derivation: `number` is that of its step, `uses` are the names on its right side."""
    number: int
    name: Name | Call
    uses: frozenset[str]

    @property
    def defines(self) -> str:
        return self.name.text if isinstance(self.name, Name) else self.name.function


class Row(NamedTuple):
    """backward: the last line comes first, because this column is read upwards."""
    forward: Line
    backward: list[Line]


class Passes(NamedTuple):
    """All lines of a derivation, in their order."""
    forward: list[Line]
    backward: list[Line]

    def uses(self, name: str) -> list[Line]:
        """The forward lines that use this value."""
        return [line for line in self.forward if name in line.uses]

    def again(self, name: str) -> list[Line]:
        """The backward lines that use this value: it must be saved, or computed again."""
        return [line for line in self.backward if name in line.uses]

    def rows(self) -> list[Row]:
        """Raises ValueError if the gradient of a value leaves out one of its uses."""
        beside: dict[int, list[Line]] = {line.number: [] for line in self.forward}
        for line in self.backward:
            name = line.defines[1:]
            if not self.arrives(name, line.uses):
                raise ValueError(f"line {line.number} leaves out a use of {name}")
            beside[self.uses(name)[0].number].insert(0, line)
        return [Row(line, beside[line.number]) for line in self.forward]

    def arrives(self, name: str, gradients: Iterable[str]) -> bool:
        """Does each way from this value to the output lead through a value whose gradient is among these?"""
        users = self.uses(name)
        return bool(users) and all(f"d{line.defines}" in gradients or self.arrives(line.defines, gradients)
                                   for line in users)


def passes(one: Derivation) -> Passes:
    """A backward line defines the gradient of an input or of a value: its name is d and that name."""
    every = list(lines(one))
    values = {line.defines for line in every} | one.arrays.keys()
    backward = [line for line in every if line.defines[0] == "d" and line.defines[1:] in values]
    return Passes([line for line in every if line not in backward], backward)


def lines(one: Derivation) -> Iterator[Line]:
    for number, step in enumerate(one.steps, 1):
        (name, *right), *_ = parse(step.line)
        yield Line(number, name, frozenset(used(tuple(right), {}) - one.letters.keys()))


def axes(line: Line, one: Derivation, forward: list[Line]) -> str:
    """The axes of a value, with those that the formulas leave out if it depends on an input that has them."""
    of_inputs = {axis for name in sources(line, forward) for axis in one.arrays.get(name, "").split()}
    implicit = [axis for axis in one.implicit if axis in of_inputs]
    return " ".join([*implicit, *(one.letters[index.text] for index in line.name.indices if isinstance(index, Name))])


def sources(line: Line, forward: list[Line]) -> set[str]:
    """All names that a line depends on."""
    found = set(line.uses)
    for before in reversed(forward[:forward.index(line)]):
        if before.defines in found:
            found |= before.uses
    return found
