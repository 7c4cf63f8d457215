"""Run the lines of a derivation one after the other: each one defines a name or makes a claim, which is checked.

A name or a function that is new is defined by the first side that is not one.  Everything else is a claim:

    dx_j = ...          ∂L/∂x_j, where L = Σ dy y over all outputs: the whole of what x does to the loss
    ∂r/∂x_j = ...       the derivative of what has been defined
    σ'(u) = ...         the same of a function
    ... = ... = ...     sides of a chain are equal

A recurrence is a definition that needs its own name, or that of a later line, at a shifted index:

    c_t = f c_{t-1} + x_t
    h_t = tanh(c_t)

∂L/∂c_t is then the whole of what c_t does, through all later steps.  A gradient at a shifted index, such as dc_{t+1},
may be used before its line: it stands for ∂L/∂c.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

import numpy as np

from pyllama.study import notation
from pyllama.study.axes import MOVED, Array, aligned, combined, reduced
from pyllama.study.definitions import Definition, System, letter, replaced, shifted, used, variables
from pyllama.study.evaluate import CONSTANTS, LETTERS, Scope, Unprovable, whole_name
from pyllama.study.notation import Before, Call, Name, Node


class Program:
    """What a derivation has defined so far.

    scope       the inputs, the upstream gradients and constants
    loss        output -> the name of its upstream gradient: {"y": "dy"}
    gradients   name -> what it is the gradient of, where its name does not say it: {"g": "n"}
    twin        a program on numbers that has run the same lines: it knows the axes of what is not computed here
    """

    def __init__(self, scope: Scope, loss: dict[str, str], gradients: dict[str, str], twin: "Program | None" = None):
        self.scope, self.loss, self.gradients, self.twin = scope, loss, gradients, twin
        self.systems: list[System] = []
        self.waiting: tuple[Definition, ...] = ()                   # definitions that need one of a later line
        self.foreseen: dict[str, np.ndarray] = {}                   # gradients used before their lines: where these are
        self.subject: Node | None = None                            # the first side of the last chain
        scope.derivative = lambda node, name: self.derivative(lambda: scope.value(node), name,
                                                              used(node, scope.functions))

    @property
    def names(self) -> dict[str, Array]:
        return self.scope.names

    # --- lines ---

    def run(self, line: list[tuple[Node, ...]], matrices: bool = False, aside: bool = False) -> list[str]:
        """Run a line.  Returns a list with an entry for each claim: what is wrong with it, in words, or "".

        matrices    factors without indices are matrices
        aside       a next line that begins with = goes on with the line before this one

        Raises ValueError for what cannot be computed, Unprovable for what SymPy is not asked.
        """
        first, *others = line
        subject = self.subject
        where = {chain[0]: chain[1] for chain in others if self.is_index(chain[0])}     # y_btd = w_vd,   v = ids_bt
        chains = [first, *(chain for chain in others if chain[0] not in where)]
        verdicts = [verdict for chain in chains
                    for verdict in self.chain([replaced(side, where) for side in chain], matrices)]
        if aside:
            self.subject = subject
        return verdicts

    def is_index(self, node: Node) -> bool:
        return isinstance(node, Name) and node.text in LETTERS and not node.indices and node.text not in self.names

    def chain(self, sides: list[Node], matrices: bool) -> Iterator[str]:
        if len(sides) < 2:
            raise ValueError("a line needs two sides with = between them")
        if isinstance(sides[0], Before):
            if self.subject is None:
                raise ValueError("a line that begins with = needs a line before it")
            sides = [self.subject, *sides[1:]]
        self.subject = sides[0]
        self.foresee(sides)
        self.cover(sides[0])
        new = list(takewhile(self.is_new, sides[:-1]))
        known = sides[len(new):]
        for side in new:
            yield from self.define(side, known[0], matrices)
        with self.generic(sides):
            left, *others = known
            for side in others:
                value = self.scope.value(left)
                yield self.apart(value, self.scope.matrix(side, value) if matrices else self.scope.value(side))

    def is_new(self, side: Node) -> bool:
        scope = self.scope
        if isinstance(side, Call):
            return side.function not in {*scope.functions, *notation.FUNCTIONS, *self.names} and not side.primes
        taken = {*self.names, *scope.functions, *scope.sizes, *(one.name for one in self.waiting)}
        return isinstance(side, Name) and self.text(side) not in taken

    def foresee(self, sides: list[Node]) -> None:
        """Give the gradients that a line has at shifted indices their values."""
        for name in sorted(shifted(tuple(sides)) - self.names.keys()):
            if (of := self.source(name)) in self.names:
                self.names[name] = self.gradient(of)
                self.foreseen[name] = np.zeros(self.names[name].data.shape, bool)

    def cover(self, side: Node) -> None:
        """Note which numbers of a gradient that was used before have their line now."""
        if isinstance(side, Name) and side.text in self.foreseen:
            _, at = aligned(self.scope.places(self.names[side.text], side.indices))
            self.foreseen[side.text][tuple(at)] = True

    def missing(self) -> str:
        """What no line says though another one needs it, in words; "" if nothing is missing."""
        if self.waiting:
            return f"{self.waiting[0].name} needs a name that no later line defines"
        names = [name for name, covered in self.foreseen.items() if not covered.all()]
        return f"no line says what {names[0]} is, which is used" if names else ""

    def text(self, side: Name) -> str:
        """The name that is meant: a_i is one, if there is an array of that name."""
        whole = whole_name(side)
        return whole if {whole, whole[1:]} & self.names.keys() else side.text

    @contextmanager
    def generic(self, sides: list[Node]) -> Iterator[None]:
        """The arguments of a function stand for any number, if they have no value: softplus(-u) = ..."""
        before, scope = self.names, self.scope
        free = {name for side in sides for name in variables(side)
                if name in LETTERS - {*before, *scope.functions, *scope.letters, *CONSTANTS}}
        scope.names = before | {name: Array((), np.asarray(scope.numbers.fresh(name, ()))) for name in sorted(free)}
        try:
            yield
        finally:
            self.scope.names = before

    # --- definitions ---

    def define(self, side: Node, node: Node, matrices: bool) -> Iterator[str]:
        """Give a name or a function its value.  Yields a verdict if it says that it is a gradient."""
        if isinstance(side, Call):
            self.scope.functions[side.function] = tuple(map(letter, side.arguments)), node
            return
        assert isinstance(side, Name)
        name = self.text(side)
        if name in self.scope.letters:
            raise ValueError(f"{name} is an index, which a name would hide; give one of them another letter")
        one = Definition(name, () if name != side.text else tuple(map(letter, side.indices)), node, matrices)
        self.waiting = *self.waiting, one
        known = {*self.names, *(each.name for each in self.waiting)}
        if any(shifted(each.node) - known for each in self.waiting):
            return
        system, self.waiting = System.of(self.waiting, self.scope.functions), ()
        try:
            self.names.update(self.solved(system, {}))
        except Unprovable:
            self.names.update({each: self.unknown(each) for each in system.names})
        for each in system.definitions:
            if of := self.what_it_is_the_gradient_of(each.name):
                yield self.apart(self.gradient(of), self.names[each.name])
        self.systems.append(system)

    def what_it_is_the_gradient_of(self, name: str) -> str:
        of = self.source(name)
        if of and of not in self.names:
            raise ValueError(f"{name} is a gradient by its name, but {of} is not defined")
        return of

    def source(self, name: str) -> str:
        """x of dx; "" if the name is not that of a gradient."""
        return self.gradients.get(name, name[1:] if name.startswith("d") else "")

    def unknown(self, name: str) -> Array:
        """The name stands for any number."""
        assert self.twin is not None
        axes = self.twin.names[name].axes
        return Array(axes, self.scope.numbers.unknown(name, tuple(self.scope.sizes[axis] for axis in axes)))

    def solved(self, system: System, push: dict[str, Array]) -> dict[str, Array]:
        """The values of definitions.  Raises ValueError if they need each other in a circle.

        push    name -> what is added to each of its numbers, for derivatives

        A recurrence is computed again and again, from zeros on: each time at least one step more is right.
        """
        if not system.is_recurrence:
            one, = system.definitions
            return {one.name: self.computed(one)}
        before, sizes = self.names, self.scope.sizes
        shapes = {one.name: list(map(self.scope.axis, one.letters)) for one in system.definitions}
        self.scope.names = before | {name: Array(tuple(axes), np.zeros([sizes[axis] for axis in axes], int))
                                     for name, axes in shapes.items()}
        try:
            for _ in range(2 + max(sizes[axis] for axes in shapes.values() for axis in axes)):
                last = {name: self.names[name] for name in shapes}
                for one in system.definitions:
                    with np.errstate(divide="ignore", invalid="ignore"):            # what is not yet known is 0
                        value = self.computed(one)
                    if one.name in push:                            # leading axes may still be missing
                        value = Array(push[one.name].axes, value.data + push[one.name].data)
                    self.names[one.name] = value
                if all(np.array_equal(self.names[name].data, last[name].data) for name in shapes):
                    return last
        finally:
            self.scope.names = before
        raise ValueError(f"{', '.join(shapes)} need each other in a circle")

    def computed(self, one: Definition) -> Array:
        """The value of a definition, with the axes that its letters run over."""
        if one.matrices:
            return self.scope.matrix(one.node, self.names.get(self.source(one.name)))
        value = self.scope.value(one.node)
        extra = [axis for axis in value.axes if axis in LETTERS and axis not in one.letters]
        if extra:
            raise ValueError(f"the index {extra[0]} is on the right side alone")
        left_out = tuple(sorted((axis for axis in value.axes if axis not in LETTERS), key=lambda axis: axis != MOVED))
        own = tuple(map(self.scope.axis, one.letters))
        sizes, axes = [self.scope.sizes[axis] for axis in own], (*left_out, *own)
        _, (_, data) = aligned([Array((*left_out, *one.letters), np.zeros([1] * len(axes))), value])
        return Array(axes, np.broadcast_to(data, (*data.shape[:len(left_out)], *sizes)))

    # --- derivatives ---

    def derivative(self, evaluate: Callable[[], Array], name: str, needs: set[str]) -> Array:
        """The derivative of what evaluate() returns with respect to each number of a name; its axes come last.

        needs   the names that evaluate() uses
        """
        a = self.scope.known(name)

        def moved(data: np.ndarray) -> Array:
            before = self.names
            axes = a.axes if data.ndim == len(a.axes) else (MOVED, *a.axes)
            self.scope.names = self.replayed(name, Array(axes, data), needs)
            try:
                return evaluate()
            finally:
                self.scope.names = before

        found = self.scope.numbers.derivatives(moved, a.data, name)
        return Array((*found.axes, *(f"∂{axis}" for axis in a.axes)), found.data)

    def replayed(self, name: str, value: Array, needs: set[str]) -> dict[str, Array]:
        """All names, if this one had another value; those that are needed are computed anew."""
        before, changed = self.names, {name}
        push = {name: Array(value.axes, value.data - before[name].data)}
        self.scope.names = before | {name: value}
        try:
            for system in self.after(name, needs):
                if system.uses & changed and not any(map(self.is_unknown, system.names)):
                    self.names.update(self.solved(system, push))
                    changed |= system.names
            return self.names
        finally:
            self.scope.names = before

    def after(self, name: str, needs: set[str]) -> list[System]:
        """The definitions after that of the name, as far as these are needed; its own, too, if it is a recurrence."""
        wanted, found = set(needs), []
        for system in reversed(self.systems):
            if name in system.names and not system.is_recurrence:
                break
            if not wanted.isdisjoint(system.names):
                wanted |= system.uses
                found.append(system)
            if name in system.names:
                break
        return found[::-1]

    def is_unknown(self, name: str) -> bool:
        return not getattr(self.scope.numbers, "any", set()).isdisjoint(self.names[name].data.flat)

    def gradient(self, name: str) -> Array:
        """∂L/∂name, with the axes of the name."""
        found = self.derivative(self.total, name, {*self.loss})
        return Array(self.names[name].axes, found.data)

    def total(self) -> Array:
        """L = Σ dy y"""
        terms = [combined(np.multiply, self.names[upstream], self.scope.known(output))
                 for output, upstream in self.loss.items()]
        numbers = [reduced(np.sum, a, [axis for axis in a.axes if axis != MOVED]) for a in terms]
        return combined(lambda *all: sum(all), *numbers)

    def apart(self, left: Array, right: Array) -> str:
        """How two sides differ, in words; "" if they are equal."""
        same = left.axes == right.axes                              # they may have an axis twice, as p_ts of T and T
        a, b = (left.data, right.data) if same else aligned([left, right])[1]
        return self.scope.numbers.apart(a, b)
