"""How good is a test of gradients?  It should notice every bug, and be silent where there is none.

    score_test      a test of pytest on the catalogued bugs of an op, or on operator mutations of any Python function
    score_checker   pyllama's own checker on every catalogued bug, and on every op without a bug

Both run in forked processes: nothing that a bug breaks outlives it, and no file is changed.
"""
import ast
import difflib
import os
import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyllama.errors import UserError, optional
from pyllama.machine import one_blas_thread
from pyllama.testing.mutation.forks import BROKEN, Say, answers
from pyllama.testing.mutation.mutants import Mutant, mutants_in
from pyllama.testing.mutation.planting import (
    NotPlantable,
    copied,
    definition_of,
    function_of,
    plant,
    rebuilt,
    same_code,
)
from pyllama.testing.mutation.trial import Candidate, Finding, Outcome, Progress, Trial, ended
from pyllama.testing.mutation.watching import Comparison, Observer, can_be_watched

USAGE, NOTHING = 4, 5                           # pytest's exit codes: no such test, nothing collected


def silent(what: str, done: int, every: int) -> None:
    """Show no progress."""


def score_test(tests: Sequence[str], op: str | None = None, target: str | None = None, seeds: int = 1000,
               jobs: int = 2, progress: Progress = silent) -> Outcome:
    """Run tests of pytest on bugs, one at a time, and on many seeds without a bug.

    tests       as pytest takes them: tests/test_mine.py::test_x
    op          an op of pyllama: its catalogued bugs
    target      a Python function, "module:function" or "file.py:function": its operator mutations
    progress    called with (what, done, of how many)

    Raises UserError, in one sentence, if there is nothing to score.
    """
    require_fork()
    optional("pytest", "pyllama score")
    for test in tests:
        require_file(test)
    if op is not None:
        found = candidates_of(op)
        trial = Trial(lambda: found, OpObserver(op), seeds, jobs, progress)
    else:
        targeted = Target(str(target))
        trial = Trial(targeted.candidates, Observer(str(target), targeted.functions), seeds, jobs, progress)
    with one_blas_thread():
        status = trial.collect(tests)
    if trial.error:
        raise trial.error
    if not trial.tests and not trial.outcome.stopped:
        raise UserError(why_nothing(tests, status, trial.complaints))
    return trial.outcome


def require_fork() -> None:
    if not hasattr(os, "fork"):
        raise UserError("pyllama score runs each bug in a forked process, which this system cannot; use Linux or macOS")


def require_file(test: str) -> None:
    path = Path(test.partition("::")[0])
    if not path.exists():
        beside = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(path), beside, 1)
        raise UserError(f"there is no file {path}; " + (f"did you mean {close[0]}?" if close else
                                                        "give a test as pytest takes it, file.py::test_name"))


def why_nothing(tests: Sequence[str], status: int, complaints: list[str]) -> str:
    """Why pytest has collected no test, in a sentence."""
    missing = next((line for line in complaints if line.startswith("not found: ")), "")
    if missing:
        name = missing.rpartition("::")[2].partition("[")[0]
        path = next(test for test in tests if "::" in test).partition("::")[0]
        known = [line.split("def ", 1)[1].partition("(")[0] for line in Path(path).read_text("utf-8").splitlines()
                 if line.lstrip().startswith("def test")]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"its tests are {', '.join(known) or 'none'}"
        return f"there is no test {name} in {path}; {hint}"
    if complaints:
        return f"{' '.join(tests)} cannot be collected: {complaints[0]}; fix that first"
    if status in (USAGE, NOTHING):
        return f"{' '.join(tests)} has no test; the names of tests begin with test"
    return f"pytest ended with exit code {int(status)} before it had collected {' '.join(tests)}; run pytest on it"


# --- the catalogued bugs of an op ---

def candidates_of(op: str) -> list[Candidate]:
    """The catalogued bugs of an op.  Raises UserError."""
    from pyllama.testing.catalogue import bugs, planted

    require_op(op)
    try:
        found = bugs(op)
    except ValueError as error:
        raise UserError(f"{error}, or name a function with --target module:function") from None
    return [Candidate(bug.name, bug.cause, planted(bug).__enter__, certain=True) for bug in found]


def require_op(name: str) -> None:
    import pyllama.ops  # noqa: F401 -- registers
    from pyllama.op import OPS

    if name not in OPS:
        close = difflib.get_close_matches(name.lower(), OPS, 1)
        hint = f"did you mean {close[0]}?" if close else f"the ops are {', '.join(sorted(OPS))}"
        raise UserError(f"there is no op {name!r}; {hint}")


class OpObserver(Observer):
    """Observes the calls of an op, on whatever backend."""

    def __init__(self, op: str):
        from pyllama.op import OPS

        self.op = OPS[op]
        super().__init__(op, lambda: [self.op.forward, self.op.backward])

    def start(self, both_passes: bool = False) -> None:
        """Observe from now on; with both_passes also where a test calls these without the op."""
        from pyllama.op import watching

        self.kept = watching(self.watcher)              # it ends when nobody keeps it
        self.kept.__enter__()
        if both_passes:
            super().start()

    def watcher(self, op: Any, call: Callable, inputs: tuple, options: dict) -> Any:
        if op is self.op:
            self.note((inputs, options))
        return call(*inputs, **options)


# --- operator mutations of a function ---

class Target:
    """A Python function by its name.  It is looked up when the tests are imported: theirs is the one to mutate."""

    def __init__(self, name: str):
        self.name = name

    def functions(self) -> list[types.FunctionType]:
        return [self.function]

    def candidates(self) -> list[Candidate]:
        """Its mutants.  Raises UserError."""
        try:
            self.function = function_of(found(self.name))
            self.original, definition = copied(self.function), definition_of(self.function)
        except NotPlantable as error:
            raise UserError(f"no bug can be planted in {self.name}: {error}") from None
        file = Path(self.function.__code__.co_filename).name
        mutants = [*mutants_in(definition, self.name, file)]            # type: ignore[arg-type]
        self.signature = ast.dump(definition.args)
        if not mutants:
            raise UserError(f"{self.name} has nothing to mutate: no operator, number or call; name the function that "
                            f"computes the gradient")
        return [self.candidate(mutant) for mutant in mutants]

    def candidate(self, mutant: Mutant) -> Candidate:
        definition: Any = ast.parse(mutant.code).body[0]
        comparable = can_be_watched(self.function) and ast.dump(definition.args) == self.signature
        compare = partial(Comparison, self.function, self.original, mutant.code) if comparable else None
        return Candidate(mutant.where, mutant.change, partial(plant, self.function, mutant.code),
                         self.unchanged(mutant.code), compare)

    def unchanged(self, code: str) -> bool:
        try:
            return same_code(self.function.__code__, rebuilt(self.function, code).__code__)
        except Exception:                               # it cannot be defined: its own process will say so
            return False


def found(name: str) -> Any:
    """What the name means in the process of the tests.  Raises UserError."""
    from pyllama.testing import named

    where, colon, path = name.rpartition(":")
    if where.endswith(".py") and Path(where).is_file():
        modules = [module for module in [*sys.modules.values()] if is_of(module, Path(where))]
        if not modules:
            raise UserError(f"the tests do not import {where}, so no bug in it can be noticed; name a module that they "
                            f"import")
        where = modules[0].__name__
    return named.found_in(f"{where}{colon}{path}")[1]


def is_of(module: Any, path: Path) -> bool:
    """Was the module read from this file?"""
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and os.path.exists(file) and os.path.samefile(file, path)


# --- pyllama's own checker ---

def score_checker(op: str | None = None, seeds: int = 100, jobs: int = 2, progress: Progress = silent) -> Outcome:
    """Run pyllama.testing.check on every catalogued bug, and on every op without one.

    op          only this op
    seeds       problems of each op without a bug; each is drawn from a seed of its own

    The verdict of a bug says how the checker described it.  Raises UserError for an op without bugs.
    """
    from pyllama.op import OPS
    from pyllama.testing.catalogue import bugs

    require_fork()
    if op is not None:
        candidates_of(op)
    names = [op] if op is not None else [*OPS]
    every = bugs(op)
    batches = [(f"{name}", range(start, min(start + 10, seeds))) for start in range(0, seeds, 10) for name in names]
    outcome = Outcome(bugs=len(every))
    with one_blas_thread():
        try:
            for bug, said, status in answers([(bug, partial(check_planted, bug)) for bug in every], jobs):
                outcome.findings.append(judged(bug, said, status))
                progress("with a bug", len(outcome.findings), len(every))
            tasks = [((name, batch), partial(check_right, name, batch)) for name, batch in batches]
            for (name, batch), said, status in answers(tasks, jobs):
                outcome.alarms.update({f"{name} {seed}": why for seed, why in said if why})
                if status:
                    outcome.alarms[f"{name} {batch[len(said)]}"] = ended(status)
                outcome.seeds += len(said) + bool(status)
                progress("problems without a bug", outcome.seeds, seeds * len(names))
        except KeyboardInterrupt:
            outcome.stopped = True
    order = {str(bug): i for i, bug in enumerate(every)}
    outcome.findings.sort(key=lambda finding: order[finding.name])
    return outcome


def judged(bug: Any, said: list, status: int) -> Finding:
    if status == BROKEN:
        raise RuntimeError(f"the checker could not be run with the bug {bug}")
    if status:
        return Finding(str(bug), bug.cause, "killed", ended(status))
    wrong, how = said[0]
    return Finding(str(bug), bug.cause, "killed" if wrong else "survived", how)


def check_planted(bug: Any, say: Say) -> None:
    from pyllama.testing.catalogue import planted

    with planted(bug):
        say(checked(bug.op, 0, 50))


def check_right(name: str, seeds: range, say: Say) -> None:
    for seed in seeds:
        wrong, how = checked(name, seed, 1)
        say([seed, how if wrong else ""])


def checked(name: str, seed: int, problems: int) -> tuple[bool, str]:
    """(is the op wrong?, how the checker describes it)"""
    from pyllama.op import OPS
    from pyllama.testing import check

    try:
        report = check(OPS[name], seed, problems)
    except (TypeError, ValueError) as error:
        return True, str(error)
    said = [*(sentence for pair in reversed(report.pairs) if pair.wrong for sentence in pair.diagnoses),
            *(fault.sentence for fault in report.faults)]
    worst = next((pair for pair in reversed(report.pairs) if pair.wrong), None)
    plain = f"the gradient of {worst.input} is wrong" if worst else "undecided"
    return not report, said[0] if said else "" if report else plain
