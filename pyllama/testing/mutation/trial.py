"""Try a test on bugs, one at a time, and on many seeds without a bug.

(a) The tests are collected once.  Each bug, and each batch of seeds, is a forked process.
(b) First the tests run without a bug.  If they fail there whatever the seed, nothing can be learned from them.
(c) The bugs are all tried with the first seed that the tests pass on, so that two scores can be compared.
(d) A test that does not notice a bug runs again, and each call of the function is compared with the original's: it may
    survive because no input of the test shows the difference.
"""
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pyllama.errors import UserError, counted
from pyllama.testing.mutation.forks import BROKEN, Say, answers
from pyllama.testing.mutation.suite import PATIENCE, Suite, seed_all, unhurried
from pyllama.testing.mutation.watching import Comparison

REHEARSALS = 5                                  # seeds that a test may fail on without a bug
BATCH = 20                                      # seeds a process
QUICKEST = 10                                   # seconds that any test may take with a bug


@dataclass(frozen=True)
class Candidate:
    """A bug to try.

    name        the bug's name, or its place
    cause       what is wrong, or the change
    plant       put it into this process for good; raises an exception if it cannot be planted
    unchanged   does it leave the bytecode as it was?
    compare     compare it, planted, with the original, call by call; None: not possible
    certain     is it an error if it cannot be planted?  A mutation may not even be a function
    """
    name: str
    cause: str
    plant: Callable[[], Any]
    unchanged: bool = False
    compare: Callable[[], Comparison] | None = None
    certain: bool = False


@dataclass
class Finding:
    """A bug and whether the test noticed it.

    verdict     "killed", "survived", or "equivalent": the bytecode is unchanged
    by          the test that noticed it, and how
    calls       of the function by a test that did not notice: on how many it was compared with the original; 0: on none
    alike       did all those calls give the same results?
    """
    name: str
    cause: str
    verdict: str
    by: str = ""
    calls: int = 0
    alike: bool = False


@dataclass
class Outcome:
    """What a trial has found so far.

    bugs        how many there are
    seeds       how many were tried without a bug
    alarms      {seed: why the test failed}
    notes       sentences
    stopped     by Ctrl-C
    """
    bugs: int = 0
    findings: list[Finding] = field(default_factory=list)
    seeds: int = 0
    alarms: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def killed(self) -> int:
        return self.number("killed")

    @property
    def total(self) -> int:
        """The bugs but for those that are none."""
        return self.bugs - self.number("equivalent")

    @property
    def perfect(self) -> bool:
        """Was every bug noticed, and nothing else?"""
        return self.killed == self.total and not self.alarms and not self.stopped

    def number(self, verdict: str) -> int:
        return sum(finding.verdict == verdict for finding in self.findings)


Progress = Callable[[str, int, int], None]      # what is being done, how many are done, of how many


class Trial(Suite):
    """A pytest plugin: the tests on every bug and on every seed."""

    def __init__(self, candidates: Callable[[], list[Candidate]], observer: Any, seeds: int, jobs: int,
                 progress: Progress):
        super().__init__()
        self.candidates, self.observer = candidates, observer
        self.seeds, self.jobs, self.progress = seeds, jobs, progress
        self.outcome = Outcome()
        self.error: Exception | None = None
        self.patience = PATIENCE

    def loop(self) -> None:
        try:
            unhurried(self.tests)
            candidates = self.candidates()
            self.outcome.bugs = len(candidates)
            self.rehearse()
            self.try_bugs(candidates)
            self.try_seeds()
        except KeyboardInterrupt:
            self.outcome.stopped = True
        except Exception as error:                      # pytest would turn it into an exit code
            self.error = error

    # --- without a bug ---

    def rehearse(self) -> None:
        """Find a seed that the tests pass on, and how long they take.  Raises UserError."""
        self.progress("without a bug", 0, 1)
        for seed in range(REHEARSALS):                  # each in a fresh process, as with a bug
            (_, said, status), = answers([("", partial(self.rehearsal, seed))], 1)
            if status == BROKEN:
                raise RuntimeError("the tests could not be run without a bug")
            if status or not said:
                raise UserError(f"{self.named()}: {ended(status)} without a bug; fix that first")
            last, = said
            if not last["failing"] or last["seconds"] > PATIENCE:
                break
        if last["failing"]:
            raise UserError(f"{last['failing']} fails without a bug: {last['why']}; fix the test or the function first")
        if last["skipped"] and not last["passed"]:
            raise UserError(f"{last['skipped']} is skipped: {last['why']}; a skipped test notices nothing")
        self.seed, self.patience = last["seed"], max(QUICKEST, round(10 * last["seconds"]))
        if not last["calls"]:
            self.outcome.notes.append(f"{self.named()} did not call {self.observer.name}: no bug there can be noticed")

    def rehearsal(self, seed: int, say: Say) -> None:
        signal.signal(signal.SIGALRM, too_slow)
        self.observer.start(both_passes=True)
        start = time.perf_counter()
        failing = [test.nodeid for test in self.on_seed(seed)]
        skipped = [name for name, outcome in self.reasons if outcome == "skipped"]
        why = next((why for (name, _), why in self.reasons.items() if name in [*failing, *skipped]), "")
        say({"seed": seed, "failing": next(iter(failing), ""), "skipped": next(iter(skipped), ""), "why": why,
             "passed": len(self.passed), "seconds": time.perf_counter() - start, "calls": self.observer.calls})

    def on_seed(self, seed: int) -> Iterator[Any]:
        """The tests that fail with this seed."""
        seed_all(seed, self.tests)
        yield from self.failures(self.tests, self.patience)

    def named(self) -> str:
        """The tests, in a few words."""
        return self.tests[0].nodeid if len(self.tests) == 1 else f"the {counted(len(self.tests), 'test')}"

    # --- with a bug ---

    def try_bugs(self, candidates: list[Candidate]) -> None:
        findings = {i: Finding(candidate.name, candidate.cause, "equivalent")
                 for i, candidate in enumerate(candidates) if candidate.unchanged}
        tasks = [(i, partial(self.on_bug, candidate)) for i, candidate in enumerate(candidates) if i not in findings]
        for i, said, status in answers(tasks, self.jobs):
            if finding := self.finding(candidates[i], said, status):
                findings[i] = finding
            self.outcome.findings = [findings[i] for i in sorted(findings)]
            self.progress("with a bug", len(findings), self.outcome.bugs)

    def finding(self, candidate: Candidate, said: list, status: int) -> Finding | None:
        """What the process with the bug said and how it ended.  None: not a bug, because it cannot even be defined."""
        if status == BROKEN:
            raise RuntimeError(f"the tests could not be run with the bug {candidate.name}")
        if not said:
            return Finding(candidate.name, candidate.cause, "killed", ended(status, self.patience))
        first, compared = (*said, {})[:2]
        if "unplanted" in first:
            if candidate.certain:
                raise UserError(first["unplanted"])
            self.outcome.bugs -= 1
            return None
        if not first["survived"]:
            return Finding(candidate.name, candidate.cause, "killed", first["by"])
        return Finding(candidate.name, candidate.cause, "survived", "", compared.get("calls", 0),
                       compared.get("alike", False))

    def on_bug(self, candidate: Candidate, say: Say) -> None:
        try:
            candidate.plant()
        except Exception as error:
            say({"unplanted": str(error)})
            return
        failing = next(self.on_seed(self.seed), None)
        if failing:
            why = self.reasons.get((failing.nodeid, "failed"), "")
            say({"survived": False, "by": f"{failing.nodeid}: {why}"})
            return
        say({"survived": True})
        if candidate.compare:
            comparison = candidate.compare()
            failing = next(self.on_seed(self.seed), None)
            say({"calls": comparison.calls, "alike": comparison.alike and not failing})

    # --- many seeds ---

    def try_seeds(self) -> None:
        """Run the tests without a bug on every seed; on a few only if they do not depend on it."""
        digests: set[str] = set()
        numbers = [range(start, min(start + BATCH, self.seeds)) for start in range(0, self.seeds, BATCH)]
        for batches in (numbers[:1], numbers[1:]):
            while batches:
                batches = self.try_batches(batches, digests)
            if digests and len(digests) == 1 and "" not in digests and 1 < self.outcome.seeds < self.seeds:
                self.outcome.notes.append(
                    f"every seed gave {self.observer.name} the same inputs, so {counted(self.outcome.seeds, 'seed')} "
                    f"were enough; a test that draws from its seed sees more")
                return

    def try_batches(self, batches: list[range], digests: set[str]) -> list[range]:
        """Run the tests on batches of seeds.  Returns what is left of batches whose process died."""
        left = []
        for batch, said, status in answers([(batch, partial(self.on_batch, batch)) for batch in batches], self.jobs):
            for answer in said:
                digests.add(answer["digest"])
                if answer["why"]:
                    self.outcome.alarms[str(answer["seed"])] = answer["why"]
            done = len(said)
            if status == BROKEN:
                raise RuntimeError("the tests could not be run on many seeds")
            if done < len(batch):
                self.outcome.alarms[str(batch[done])] = ended(status, self.patience)
                done += 1
                if done < len(batch):
                    left.append(batch[done:])
            self.outcome.seeds += done
            self.progress("seeds without a bug", self.outcome.seeds, self.seeds)
        return left

    def on_batch(self, seeds: range, say: Say) -> None:
        self.observer.start()
        for seed in seeds:
            self.reasons = {}
            failing = next(self.on_seed(seed), None)
            why = self.reasons.get((failing.nodeid, "failed"), "it fails") if failing else ""
            say({"seed": seed, "why": why, "digest": self.observer.taken()})


def ended(status: int, patience: int = PATIENCE) -> str:
    """How a process ended, in words."""
    if status == -signal.SIGALRM:
        return f"a test took more than {patience} s"
    return f"the process ended with {signal.Signals(-status).name if status < 0 else f'exit code {status}'}"


def too_slow(*_: Any) -> None:
    raise TimeoutError(f"it takes more than {PATIENCE} s")
