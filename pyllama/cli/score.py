"""The command score: how many bugs a test of gradients notices, and how often it fails without one."""
import contextlib
import json as json_format
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from pyllama.cli.output import console
from pyllama.errors import UserError, counted
from pyllama.testing.mutation.checker import PROBLEMS, score_checker
from pyllama.testing.mutation.score import score_test
from pyllama.testing.mutation.trial import Finding, Outcome

NAMED = 10                                                  # seeds that are named; --json has all


def score(tests: tuple[str, ...] = (), /, op: str | None = None, target: str | None = None, checker: bool = False,
          seeds: int | None = None, jobs: int = 2, json: Path | None = None) -> int:
    """Count the bugs that your test of a gradient notices, and how often it fails without a bug.

    The test runs on each bug in a process of its own, then on many seeds without a bug.  Your files stay as they are.
    A seed is that of random, NumPy, Hypothesis and --gradcheck-seed, and the value of the variable PYLLAMA_SEED while
    the test runs.  What its module draws when it is imported has the seed 0 and stays the same.  The exit code is 0 if
    the test notices every bug and never fails without one, else 1.

    pyllama score tests/test_mine.py::test_norm --op rms_norm

    pyllama score tests/test_mine.py --target mymodule:backward

    Args:
        tests: tests as pytest takes them, such as tests/test_mine.py::test_norm
        op: try the catalogued bugs of this op of pyllama, such as rms_norm
        target: try other operators, signs and terms in this function: module:function or file.py:function
        checker: score pyllama's own checker on every catalogued bug, and on every op without a bug
        seeds: how many to try without a bug (default: 1000; 56 checks of each op with --checker)
        jobs: processes at a time
        json: write what was found to this file
    """
    seeds = (56 if checker else 1000) if seeds is None else seeds
    if seeds < 0 or jobs < 1:
        raise UserError(f"seeds is {seeds} and jobs is {jobs}; give at least 0 seeds and at least 1 job")
    if checker and (tests or target):
        raise UserError("--checker scores pyllama's own checker; remove the tests and --target, or remove --checker")
    if not checker and not tests:
        raise UserError("score needs a test, such as tests/test_mine.py::test_norm, or --checker")
    if not checker and (op is None) == (target is None):
        raise UserError("score needs either --op NAME or --target module:function: where to plant the bugs")
    if json:
        if json.suffix == ".py":
            raise UserError(f"--json would overwrite the Python file {json}; name another file")
        json.touch()                                        # an error now, not after minutes
    with shown_progress() as show, stoppable() as signals:
        outcome = score_checker(op, seeds, jobs, show) if checker else score_test(tests, op, target, seeds, jobs, show)
    if json:
        json.write_text(json_format.dumps(as_json(outcome), indent=1, ensure_ascii=False), "utf-8")
    headings = ("bug", "diagnosis") if checker else ("bug", "cause") if op else ("line", "change")
    print_outcome(outcome, headings, f"checks of {PROBLEMS} problems" if checker else "seeds")
    return 128 + signals[0] if signals else 0 if outcome.perfect else 1


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Within this context: bars on standard error, if that is a terminal; yields the function that moves them."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   console=Console(stderr=True), auto_refresh=False, transient=True)    # its thread would not survive
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, every: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=every, refresh=True)

    if bar.console.is_terminal:
        with bar:
            yield show
    else:
        yield lambda *_: None


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """Within this context Ctrl-C and SIGTERM raise KeyboardInterrupt: no process is left.  Yields their numbers."""
    signals: list[int] = []

    def handle(number, frame):
        signals.append(number)
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_outcome(outcome: Outcome, headings: tuple[str, str], seeds: str) -> None:
    """The table, what survived last, then the figures."""
    table = Table(*headings, "verdict", box=SIMPLE, pad_edge=False)
    for finding in sorted(outcome.findings, key=lambda finding: finding.verdict == "survived"):
        table.add_row(finding.name, finding.by if headings[1] == "diagnosis" else finding.cause, verdict(finding))
    if outcome.findings:
        console.print(table, soft_wrap=False)
    for sentence in [*summary(outcome, seeds), *outcome.notes]:
        console.print(sentence)


def verdict(finding: Finding) -> str:
    """What happened to a bug, in words."""
    if finding.verdict == "equivalent":
        return "no bug: the same bytecode"
    if finding.verdict == "killed" or not finding.calls:
        return finding.verdict
    if finding.alike:
        return f"survived, gave the same results on all {counted(finding.calls, 'call')}"
    return "survived, though results differed"


def summary(outcome: Outcome, seeds: str) -> list[str]:
    """Killed of total, the false alarms, and what is missing after Ctrl-C."""
    lines = [f"killed {outcome.killed} of {counted(outcome.total, 'bug')}"]
    if alike := sum(finding.alike for finding in outcome.findings):
        lines[0] += (f"; {alike} of the survivors gave the same results on every call: the test needs other inputs, or "
                     f"the change does no harm")
    if outcome.seeds:
        lines.append(f"false alarms: {len(outcome.alarms)} of {outcome.seeds:,} {seeds} without a bug")
    named = [*outcome.alarms.items()][:NAMED]
    lines += [f"    {seed}: {why}" for seed, why in named]
    if len(outcome.alarms) > NAMED:
        lines.append(f"    and {len(outcome.alarms) - NAMED} more; --json FILE names all")
    if outcome.stopped:
        left = outcome.bugs - len(outcome.findings)
        lines.append(f"stopped: {counted(left, 'bug')} not tried" if left else "stopped before all seeds were tried")
    return lines


def as_json(outcome: Outcome) -> dict:
    return {"killed": outcome.killed, "total": outcome.total, **asdict(outcome)}
