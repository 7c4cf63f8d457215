"""The dojo: find the bug in a backward pass.  Each bug of the catalogue is an exercise; the checker judges.

    rms_norm.3                  an exercise: the third bug of the op rms_norm
    dojo/rms_norm_3.py          its file: the derivation, and code with one bug
    dojo/progress.json          what is solved, with how many attempts and hints

In a notebook:

    from pyllama.testing import dojo
    exercise = dojo.find("rms_norm.3")
    exercise                                    # its text
    print(exercise.hints[0])
    exercise.judge(backward)                    # your own backward, defined in a cell: a report
"""
import contextlib
import difflib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import files
from pyllama.errors import UserError
from pyllama.op import OPS, Op
from pyllama.testing.catalogue import Bug, bugs, module_of, original
from pyllama.testing.ops import check
from pyllama.testing.problems import choose_by, problem
from pyllama.testing.report import Fault, Report

SEED = 0                                                    # the same attempt gets the same verdict
PROBLEMS = 50                                               # with which an attempt is checked
VALUES = 20                                                 # of these, also the values of forward
SAME = 1e-9                                                 # between two ways to compute the same values


@dataclass(frozen=True)
class Exercise:
    """One bug of the catalogue, as an exercise.

    bug       the bug, with its cause and its source: the answer
    number    of the bug among those of its op, from 1
    """
    bug: Bug
    number: int

    @property
    def name(self) -> str:
        return f"{self.bug.op}.{self.number}"

    @property
    def file(self) -> str:
        return f"{self.bug.op}_{self.number}.py"

    @property
    def hints(self) -> tuple[str, ...]:
        return self.bug.hints

    @property
    def code(self) -> str:
        """The module of the op, with the bug."""
        module = module_of(self.bug.op)
        text = Path(str(module.__file__)).read_text("utf-8")
        return text.replace(original(module, self.bug.function), self.bug.code)

    @property
    def text(self) -> str:
        """The file of the exercise."""
        return f"# Exercise {self.name}: the derivation is right, but the code has one bug.  Fix it.\n\n{self.code}"

    @functools.cached_property
    def given(self) -> dict[str, Any]:
        """What the code defines."""
        names: dict[str, Any] = {"__name__": self.file.removesuffix(".py")}
        with registering_nothing():
            exec(compile(self.code, f"<{self.file}>", "exec"), names)
        return names

    def judge(self, backward: Callable, forward: Callable | None = None) -> Report:
        """Check an attempt; the report is true if it is right.

        backward    backward(dy, *saved, **options) -> gradients, as in the exercise
        forward     forward(*inputs, **options) -> y, saved; None: as it stands in the exercise

        Raises TypeError or ValueError if a pass returns something of another form.

        >>> from pyllama import ops
        >>> from pyllama.testing import dojo
        >>> exercise = dojo.find("tanh.1")
        >>> bool(exercise.judge(exercise.given["backward"])), bool(exercise.judge(ops.tanh.backward))
        (False, True)
        """
        right = OPS[self.bug.op]
        forward = forward or self.given["forward"]
        with registering_nothing():
            attempt = Op(right.shapes, forward, backward, name=self.name, weights=right.weights, **right.options)
        if not same_values(attempt, right):
            fault = Fault("another forward", "forward computes other values than before; change how it saves, not y")
            return Report(attempt.name, (), (fault,), seed=SEED)
        return replace(check(attempt, SEED, PROBLEMS), replay="")             # the seed is always the same

    def _repr_markdown_(self) -> str:
        return f"**{self.name}**: the derivation is right, but the code has one bug.\n\n```python\n{self.code}```"


@contextlib.contextmanager
def registering_nothing() -> Iterator[None]:
    """Ops that are made within this context are not in OPS afterwards."""
    before = set(OPS)
    try:
        yield
    finally:
        for name in set(OPS) - before:
            del OPS[name]


def same_values(attempt: Op, right: Op) -> bool:
    """Do both ops compute the same outputs?"""
    choose = choose_by(np.random.default_rng(SEED))
    for _ in range(VALUES):
        inputs, options, _ = problem(right, choose)
        ys, wanted = ([np.asarray(y) for y in op.each(op.forward(*inputs, **options)[0])] for op in (attempt, right))
        if not all(y.shape == w.shape and np.allclose(y, w, SAME, SAME) for y, w in zip(ys, wanted, strict=True)):
            return False
    return True


def exercises() -> list[Exercise]:
    """All exercises: the shortest op first.

    >>> from pyllama.testing import dojo
    >>> len(dojo.exercises()) > 100
    True
    """
    numbered = [Exercise(bug, number) for name in {bug.op: None for bug in bugs()}
                for number, bug in enumerate(bugs(name), start=1)]
    return sorted(numbered, key=lambda exercise: (length(exercise.bug.op), exercise.bug.op, exercise.number))


def length(op: str) -> int:
    """The lines of an op's module, with its derivation."""
    return Path(str(module_of(op).__file__)).read_text("utf-8").count("\n")


def find(name: str) -> Exercise:
    """The exercise "rms_norm.3"; "rms_norm" is the first of that op.  Raises UserError if there is none.

    >>> from pyllama.testing import dojo
    >>> exercise = dojo.find("tanh.1")
    >>> exercise.name, exercise.file, len(exercise.hints)
    ('tanh.1', 'tanh_1.py', 3)
    """
    known = {exercise.name: exercise for exercise in exercises()}
    if (wanted := name if "." in name else f"{name}.1") in known:
        return known[wanted]
    op = name.partition(".")[0]
    numbers = [exercise.number for exercise in known.values() if exercise.bug.op == op]
    close = difflib.get_close_matches(op, {exercise.bug.op for exercise in known.values()}, 1)
    hint = f"{op} has the exercises {op}.1 to {op}.{max(numbers)}" if numbers else \
        f"did you mean {close[0]}?" if close else "pyllama dojo --list names all"
    raise UserError(f"there is no exercise {name!r}; {hint}")


@dataclass
class Standing:
    """How far a student is with one exercise."""
    solved: bool = False
    attempts: int = 0
    hints: int = 0


class Progress:
    """A student's progress, kept in FOLDER/progress.json.  Raises UserError if that file is damaged."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "progress.json"
        self.current, self.standings = "", {}
        try:
            kept = json.loads(self.path.read_text("utf-8"))
            self.standings = {name: Standing(**values) for name, values in kept["exercises"].items()}
            self.current = str(kept["current"])
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{self.path} is damaged; delete it to begin again, or restore it") from None

    def of(self, exercise: Exercise) -> Standing:
        return self.standings.setdefault(str(exercise.bug), Standing())

    def next(self) -> Exercise | None:
        """The exercise at hand, or the first that is not solved; None if all are."""
        unsolved = [exercise for exercise in exercises() if not self.of(exercise).solved]
        return next((exercise for exercise in unsolved if str(exercise.bug) == self.current),
                    unsolved[0] if unsolved else None)

    def save(self, current: Exercise) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tried = {name: asdict(standing) for name, standing in self.standings.items() if standing != Standing()}
        files.rewrite(self.path, [files.to_json({"current": str(current.bug), "exercises": tried})])
