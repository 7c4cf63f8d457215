"""How good is pyllama's own checker?  Every catalogued bug must be noticed, and nothing in the ops as they are."""
from functools import partial
from typing import Any

from pyllama.errors import counted
from pyllama.machine import one_blas_thread
from pyllama.testing.mutation.forks import BROKEN, Say, answers
from pyllama.testing.mutation.score import candidates_of, require_fork, silent
from pyllama.testing.mutation.trial import Finding, Outcome, Progress, ended

PROBLEMS, TRIES = 10, 5                         # problems of a check; checks that may notice a bug
NOTHING = "", False                             # what is said of an op that seems right


def score_checker(op: str | None = None, seeds: int = 56, jobs: int = 2, progress: Progress = silent) -> Outcome:
    """Run pyllama.testing.check on every catalogued bug, and on every op without one.

    op          only this op
    seeds       checks of each op without a bug, of PROBLEMS problems each

    The findings say how the checker described each bug.  Raises UserError for an op without bugs.
    """
    from pyllama.op import OPS
    from pyllama.testing.catalogue import bugs

    require_fork()
    if op is not None:
        candidates_of(op)
    names = [op] if op is not None else [*OPS]
    every = bugs(op)
    outcome, described = Outcome(bugs=len(every)), 0
    with one_blas_thread():
        try:
            for bug, said, status in answers([(bug, partial(check_planted, bug)) for bug in every], jobs):
                outcome.findings.append(judged(bug, said, status))
                described += not status and said[0][1]
                progress("with a bug", len(outcome.findings), len(every))
            tasks = [((name, seed), partial(check_right, name, seed)) for seed in range(seeds) for name in names]
            for (name, seed), said, status in answers(tasks, jobs):
                if why := ended(status) if status else said[0][0]:
                    outcome.alarms[f"pyllama check {name} --seed {seed} --problems {PROBLEMS}"] = why
                outcome.seeds += 1
                progress("without a bug", outcome.seeds, len(tasks))
        except KeyboardInterrupt:
            outcome.stopped = True
    outcome.notes.append(f"the checker named a cause of {counted(described, 'bug')}")
    order = {str(bug): i for i, bug in enumerate(every)}
    outcome.findings.sort(key=lambda finding: order[finding.name])
    return outcome


def judged(bug: Any, said: list, status: int) -> Finding:
    if status == BROKEN:
        raise RuntimeError(f"the checker could not be run with the bug {bug}")
    why = ended(status) if status else said[0][0]
    return Finding(str(bug), bug.cause, "killed" if why else "survived", why)


def check_planted(bug: Any, say: Say) -> None:
    """Check the op with the bug on more and more problems, until one shows it."""
    from pyllama.testing.catalogue import planted

    with planted(bug):
        complaints = (complaint(bug.op, seed) for seed in range(TRIES))
        say(next((answer for answer in complaints if answer[0]), NOTHING))


def check_right(name: str, seed: int, say: Say) -> None:
    say(complaint(name, seed))


def complaint(name: str, seed: int) -> tuple[str, bool]:
    """How the checker describes what is wrong with an op, in a sentence, and whether that names a cause."""
    from pyllama.op import OPS
    from pyllama.testing import check

    try:
        report = check(OPS[name], seed, PROBLEMS)
    except (TypeError, ValueError) as error:
        return str(error), True
    if report:
        return NOTHING
    wrong = [pair for pair in reversed(report.pairs) if pair.wrong]
    causes = [sentence for pair in wrong for sentence in pair.diagnoses]
    causes += [fault.sentence for fault in report.faults]
    if causes:
        return causes[0], True
    return f"the gradient of {wrong[0].input} is wrong" if wrong else "the gradients could not be judged", False
