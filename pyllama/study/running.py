"""Run a derivation: every step on numbers and on symbols, and the code beside both."""
import time
from typing import Any, NamedTuple

import numpy as np

import pyllama.ops  # noqa: F401 -- registers
from pyllama.errors import optional
from pyllama.op import OPS
from pyllama.study.axes import Array
from pyllama.study.derivation import Derivation, Step
from pyllama.study.evaluate import Scope, Unprovable
from pyllama.study.notation import parse
from pyllama.study.numeric import Numeric
from pyllama.study.program import Program

DEFINED, PROVED, EXACTLY, CHECKED = "definition", "proved (SymPy)", "exact (complex step)", "checked"


class Outcome(NamedTuple):
    """A step that has run.

    kind        DEFINED, PROVED, EXACTLY or CHECKED
    wrong       what is wrong, in words; "" if nothing is
    seconds     how long it took
    """
    step: Step
    kind: str
    wrong: str
    seconds: float


class Run:
    """A derivation on one set of random numbers, and on symbols."""

    def __init__(self, derivation: Derivation, seed: int = 0):
        optional("sympy", "pyllama derive")
        from pyllama.study.symbolic import Symbolic

        self.derivation, self.rng = derivation, np.random.default_rng(seed)
        self.op = OPS[derivation.module.rpartition(".")[2]] if derivation.module.startswith("pyllama.ops.") else None
        longer = {axis: size if axis in derivation.fixed else max(size + int(self.rng.integers(2)), 2)
                  for axis, size in derivation.sizes.items()}
        self.on_numbers = self.program(Numeric(seed), longer)
        self.on_symbols = self.program(Symbolic(), derivation.sizes, self.on_numbers) if derivation.symbols else None

    def program(self, numbers: Any, sizes: dict[str, int], twin: Program | None = None) -> Program:
        one, arrays = self.derivation, {}
        for name, axes in self.arrays().items():
            shape = tuple(sizes[axis] for axis in axes)
            if name in one.integers:
                data = self.rng.integers(0, sizes[one.integers[name]], shape)
            else:
                data = numbers.fresh(name, shape)
            arrays[name] = Array(axes, data)
        for name in one.constants:
            arrays[name] = Array((), numbers.positive(name, ()))
        for name, value in one.whole.items():
            arrays[name] = Array((), numbers.whole(name, value))
        for name, value in one.options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                arrays[name] = Array((), np.asarray(numbers.number(value)))
        scope = Scope(numbers, arrays, dict(one.letters), dict(sizes), one.implicit)
        return Program(scope, self.loss(), dict(one.gradients), twin)

    def arrays(self) -> dict[str, tuple[str, ...]]:
        """name -> axes, of the inputs and the upstream gradients."""
        if self.derivation.arrays or self.op is None or self.derivation.code is not None:
            return {name: tuple(axes.split()) for name, axes in self.derivation.arrays.items()}
        named = {x.name: x for x in (*self.op.inputs, *self.op.outputs)}
        wanted = [x.name for x in self.op.inputs if not x.optional]
        found = {name: axes_of(named[name]) for name in wanted}
        return found | {upstream: axes_of(named[output]) for output, upstream in self.loss().items()}

    def loss(self) -> dict[str, str]:
        if self.derivation.loss or self.op is None:
            return self.derivation.loss
        return {output.name: f"d{output.name}" for output in self.op.outputs}

    def steps(self):
        """Run one step after the other; yields Outcomes."""
        for step in self.derivation.steps:
            began = time.perf_counter()
            kind, wrong = self.step(step)
            yield Outcome(step, kind, wrong, time.perf_counter() - began)

    def step(self, step: Step) -> tuple[str, str]:
        if step.check is not None:
            return CHECKED, step.check()
        try:
            line = parse(step.line)
            verdicts = self.on_numbers.run(line, step.matrices, step.extra)
            proved = self.proved(line, step)
        except ValueError as error:
            return EXACTLY, str(error)
        if not verdicts:
            return DEFINED, ""
        return PROVED if proved else EXACTLY, "; ".join(filter(None, verdicts))

    def proved(self, line: list, step: Step) -> bool:
        if self.on_symbols is None:
            return False
        try:
            return not any(self.on_symbols.run(line, step.matrices, step.extra))
        except Unprovable:
            return False

    @property
    def has_code(self) -> bool:
        return self.derivation.code is not None or self.op is not None

    def code(self) -> str:
        """How the code differs from the formulas on the same numbers, in words; "" if it does not."""
        one, names = self.derivation, {name: a.data for name, a in self.on_numbers.names.items()}
        if missing := self.on_numbers.missing():
            return missing
        if not self.has_code:
            return ""
        for name, value in (one.code(names) if one.code else self.passes(names)).items():
            if name not in names:
                return f"the derivation does not define {name}, which the code computes"
            formula = names[name]
            if formula.shape != np.shape(value):
                return f"{name} has shape {np.shape(value)} in the code, {formula.shape} in the derivation"
            if self.on_numbers.scope.numbers.apart(formula, value):
                return f"{name} is not the same in the code and in the derivation"
        return ""

    def passes(self, names: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What both passes of the op compute of these inputs."""
        assert self.op is not None
        inputs = [x.name for x in self.op.inputs if x.name in names]
        options = self.derivation.options | {option: float(names[name])
                                             for name, option in self.derivation.constants.items() if option}
        y, saved = self.op.forward(*(names[name] for name in inputs), **options)
        outputs = {x.name: np.asarray(one) for x, one in zip(self.op.outputs, self.op.each(y), strict=True)}
        dys = tuple(names[self.loss()[name]] for name in outputs)
        grads = self.op.backward(dys if len(dys) > 1 else dys[0], *saved, **options)
        return outputs | {f"d{name}": dx for name, dx in zip(inputs, grads, strict=False) if dx is not None}


def axes_of(x: Any) -> tuple[str, ...]:
    """The axes of an array of a shape line; leading ones are rows."""
    return tuple("rows" if axis == "..." else axis for axis in x.axes)
