"""The problems that every rule is given: calls of our ops, right ones and ones with a bug of the catalogue."""
import copy
import functools
import itertools
from typing import NamedTuple

import numpy as np

from pyllama import backend
from pyllama.op import OPS, Op
from pyllama.testing.catalogue import Bug, planted
from pyllama.testing.layouts import strided
from pyllama.testing.problems import SMALL, Sizes, choose_by, problem

SHOWN = 3                                   # problems at which a bug is shown to a rule
SEARCHED = 200                              # drawn problems among which these are found
VISIBLE = 1e-7                              # relative to the largest entry of a gradient
NOTHING = 1e-6                              # a gradient whose entries are all smaller is 0 but for rounding
NORMS = {"rms_norm", "add_rms_norm", "layer_norm"}


class FewNumbers(Sizes):
    """Small sizes, so that a full Jacobian is affordable."""

    def candidates(self, axis):
        return [1, 2, 3] if axis in ("G", "R") else SMALL + {"N": [17], "V": [17]}.get(axis, [])


class Case(NamedTuple):
    """A call of an op, as a function of its floating inputs whose outputs are put end to end, y [M].

    Rules that compare with a reference get it in `known`: pairs of dy [M] and the right gradients.
    """
    op: Op
    inputs: list
    options: dict
    known: tuple = ()

    @property
    def floats(self) -> list[np.ndarray]:
        return [x for x in self.inputs if is_float(x)]

    def fresh(self) -> "Case":
        """A copy: a bug may overwrite the arrays."""
        return self._replace(inputs=copy.deepcopy(self.inputs), known=copy.deepcopy(self.known))

    def run(self, *floats):
        """y [M] and its back, which takes dy [M] and returns one gradient for each floating input."""
        given = iter(floats)
        inputs = [next(given) if is_float(x) else x for x in self.inputs]
        with backend.use("numpy"):
            y, back = self.op(*inputs, **self.options)
        ys = y if isinstance(y, tuple) else (y,)

        def gradients(dy):
            dys = [part.reshape(np.shape(y)) for y, part in zip(ys, np.split(dy, ends(ys)), strict=True)]
            grads = back(tuple(dys) if len(dys) > 1 else dys[0])
            return [d for x, d in zip(self.inputs, grads, strict=True) if is_float(x)]

        return np.concatenate([np.ravel(y) for y in ys]), gradients

    def y(self, *floats):
        return self.run(*floats)[0]

    def gradients(self, dy):
        return self.run(*self.floats)[1](dy)


def ends(ys):
    return np.cumsum([np.size(y) for y in ys])[:-1]


def is_float(x):
    return x is not None and x.dtype.kind == "f"


@functools.lru_cache(20_000)
def drawn(op: Op, seed: int, dtype: str = "float64") -> Case:
    """A case with at least one number to check."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, attempt])
        choose = choose_by(rng)
        inputs, options, _ = problem(op, choose, dtype, FewNumbers(choose))
        case = Case(op, inputs, options)
        y = case.y(*case.floats)
        if y.size and all(x.size for x in case.floats):
            dys = np.ones_like(y), rng.standard_normal(y.shape).astype(dtype) / 256
            return case._replace(known=tuple((dy, case.gradients(dy.copy())) for dy in dys))
    raise ValueError(f"{op.name}: no problem with numbers in 100 draws")


def right(seed: int, dtype: str) -> Case:
    """The case number `seed` of all ops in turn."""
    ops = list(OPS.values())
    return drawn(ops[seed % len(ops)], seed, dtype)


@functools.cache
def visible(bug: Bug) -> list[int]:
    """The seeds of the first problems at which the bug changes what backward does; with strided arrays, if need be.

    They are found in float64.  The cases have ordinary arrays in any case: to try others is up to the rule.
    """
    for layout in (np.array, strided):
        seeds = (seed for seed in range(SEARCHED) if changed(bug, drawn(OPS[bug.op], seed), layout))
        if found := list(itertools.islice(seeds, SHOWN)):
            return found
    raise ValueError(f"{bug} changes nothing at {SEARCHED} problems")


def shown(bug: Bug, dtype: str) -> list[Case]:
    return [drawn(OPS[bug.op], seed, dtype) for seed in visible(bug)]


def changed(bug: Bug, case: Case, layout) -> bool:
    before = effects(case, layout)
    with planted(bug):
        after = effects(case, layout)
    return any(a.shape != b.shape or not close(a, b) for a, b in zip(before, after, strict=True))


def effects(case: Case, layout) -> list[np.ndarray]:
    """The gradients, those of a second call, and what is left of dy and the inputs."""
    floats, dy = [layout(x) for x in case.floats], layout(case.known[1][0])
    _, back = case.run(*floats)
    grads = [[np.array(d) for d in back(dy)] for _ in range(2)]
    return [*grads[0], *grads[1], np.array(dy), *map(np.array, floats)]


def close(a, b) -> bool:
    size = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0), NOTHING)
    return bool(np.abs(a - b).max(initial=0) <= VISIBLE * size)


def with_ones(case: Case) -> Case:
    """The weight w of a norm replaced by ones, as it is when training begins."""
    names = [x.name for x in case.op.inputs]
    inputs = [np.ones_like(x) if name == "w" else x for name, x in zip(names, case.inputs, strict=False)]
    case = case._replace(inputs=inputs)
    return case._replace(known=tuple((dy, case.gradients(dy.copy())) for dy, _ in case.known))
