"""How good is a test of gradients?  It should notice every bug, and be silent where there is none.

A test of pytest runs on the catalogued bugs of an op, or on operator mutations of any Python function; each in a forked
process: nothing that a bug breaks outlives it, and no file is changed.
"""
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyllama.errors import UserError, optional
from pyllama.machine import one_blas_thread
from pyllama.testing.mutation.target import Target
from pyllama.testing.mutation.trial import Candidate, Outcome, Progress, Trial
from pyllama.testing.mutation.watching import Observer

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
        candidates = candidates_of(op)
        trial = Trial(lambda: candidates, OpObserver(op), seeds, jobs, progress)
    else:
        targeted = Target(str(target))
        trial = Trial(targeted.candidates, Observer(str(target), targeted.functions), seeds, jobs, progress)
    with one_blas_thread():
        status = trial.collect(tests)
    if trial.interrupt:
        raise trial.interrupt
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
        cure = f"did you mean {close[0]}?" if close else "give a test as pytest takes it, file.py::test_name"
        raise UserError(f"the file {path} does not exist; {cure}")


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
        catalogued = bugs(op)
    except ValueError as error:
        raise UserError(f"{error}, or name a function as the target, module:function") from None
    return [Candidate(bug.name, bug.cause, planted(bug).__enter__, certain=True) for bug in catalogued]


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
