"""A bug in the code beside the steps: the lines that it changes, and the steps that fail with it, and by what.

The steps run once, on numbers alone; the code with each bug runs on the same numbers.
"""
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import derived
import numpy as np

from pyllama.study.derivation import Step
from pyllama.study.running import Run
from pyllama.testing.catalogue import Bug, module_of, original, planted

DIGITS = range(4, 18)                                       # as many as tell the two numbers apart


class Patch(NamedTuple):
    """Lines `first` to `last` of the listing become `code`."""
    first: int
    last: int
    code: str


class Failure(NamedTuple):
    """An entry of the gradient of step `step`, by the steps and by the code with the bug."""
    step: int
    entry: str
    right: str
    wrong: str


def patch(bug: Bug) -> Patch:
    """Raises ValueError if the patch does not apply, or if the page does not show the function that has the bug."""
    text, right, wrong = "\n".join(derived.code(bug.op)), original(module_of(bug.op), bug.function).rstrip(), bug.code
    if right not in text:
        raise ValueError(f"{bug}: the page of {bug.op} does not show {bug.function}")
    start = text.index(right) + right.index(bug.before)
    end = start + len(bug.before)
    first, last, below = text.count("\n", 0, start), text.count("\n", 0, end), text.count("\n", end)
    lines = text.replace(right, wrong.rstrip()).splitlines()
    return Patch(first, last, "\n".join(lines[first:len(lines) - below]))


def failures(bug: Bug) -> list[Failure]:
    """In the order of the steps; none if the bug does not show on these numbers."""
    found, before = [], 0
    for run in runs(bug.op):
        compared = differences(run, bug)
        found += [Failure(before + k, *compared[name]) for k, name in broken(run, bug, compared)]
        before += len(run.derivation.steps)
    return found


@functools.cache
def runs(name: str) -> list[Run]:
    """The derivations, run on numbers."""
    found = []
    for one in derived.of(name):
        run = Run(replace(one, symbols=False))
        list(run.steps())
        found.append(run)
    return found


def differences(run: Run, bug: Bug) -> dict[str, tuple[str, str, str] | None]:
    """name -> (its entry that is most wrong, by the steps, by the code), or None, of all that the code computes."""
    by_steps = {name: array.data for name, array in run.on_numbers.names.items()}
    compute, apart = run.derivation.code or run.passes, run.on_numbers.scope.numbers.apart
    with planted(bug):
        by_code = compute({name: np.copy(data) for name, data in by_steps.items()})         # it may write to them
    return {name: worst(name, by_steps[name], np.asarray(value)) if apart(by_steps[name], value) else None
            for name, value in by_code.items()}


def worst(name: str, right: np.ndarray, wrong: np.ndarray) -> tuple[str, str, str]:
    apart = np.where(np.isnan(wrong), np.inf, np.abs(wrong - right))
    place = np.unravel_index(np.argmax(apart), apart.shape)
    entry = f"{name}[{', '.join(map(str, place))}]" if place else name
    return entry, *told_apart(float(right[place]), float(wrong[place]))


def told_apart(a: float, b: float) -> tuple[str, str]:
    """Both numbers, in the fewest digits that show that they differ; zero has no sign."""
    return next((right, wrong) for right, wrong in ((f"{a + 0.0:.{n}g}", f"{b + 0.0:.{n}g}") for n in DIGITS)
                if right != wrong)


def broken(run: Run, bug: Bug, compared: dict) -> list[tuple[int, str]]:
    """(number of a step, a name that is wrong) of the steps that quote a changed line, but for those of names that stay
    right; if there is no such step, the last one of the first name that is wrong."""
    wrong = [name for name in compared if compared[name]]
    if not wrong:
        return []
    lines, changed = derived.code(bug.op), patch(bug)
    named = list(names(run.derivation.steps, compared))
    found = []
    for k, step in enumerate(run.derivation.steps):
        if {*derived.quoted(step.code, lines)} & {*range(changed.first, changed.last + 1)}:
            mine = [name for name in wrong if name in named[k]] if named[k] else wrong
            found += [(k + 1, name) for name in mine[:1]]
    return found or [(max(k for k, some in enumerate(named, 1) if wrong[0] in some), wrong[0])]


def names(steps: Iterable[Step], known: Iterable[str]) -> Iterator[set[str]]:
    """Those of the known names that each step defines; a line that begins with = goes on with the one before."""
    sides: list[str] = []
    for step in steps:
        sides = [*(sides if step.line.startswith("=") else []), *step.line.split(" = ")]
        yield {name for name in known if any(re.fullmatch(rf"{re.escape(name)}(_\S+)?", side) for side in sides)}
