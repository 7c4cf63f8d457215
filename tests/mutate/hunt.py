"""Run the tests on mutants: collect them once, then fork a process for each mutant.

(a) A fork starts in a millisecond with every module imported and every test collected, and what the bug breaks dies
    with it.  Nothing is written to the working tree.
(b) The tests nearest to the bug run first, in a first round with few examples; the first failure ends the process.  So
    does a test that takes too long, or a crash: the mutant is killed.
(c) Examples are drawn as in continuous integration, the same ones each time: the score is a property of the tests, not
    of the day.  A failing example is not made smaller; nobody reads it.
(d) First the tests run without a bug, in the same way.  One that fails, or takes too long, cannot tell anything, and is
    left out.
"""
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypothesis import Phase, settings

import tests.conftest  # noqa: F401 -- registers the profiles; pytest finds it imported and leaves ours in force
from pyllama.op import OPS
from pyllama.testing.mutation.forks import BROKEN, KILLED, NO_MUTANT, SURVIVED, pool
from pyllama.testing.mutation.mutants import Mutant
from pyllama.testing.mutation.suite import PATIENCE, SETTINGS, Suite, drawing
from tests.mutate import c_mutants, python_mutants
from tests.mutate.python_mutants import ROOT

FEW = 4                                                 # examples a test in the first round: most bugs need no more
OF_KERNELS = ["test_build.py", "test_threads.py"]       # these try the C kernels, though no parameter says so
SUITE = ["test_ops.py", "test_laws*.py", *OF_KERNELS, "test_optim.py", "test_clipping.py", "test_cast.py"]
CALLERS = {"gemm": ["linear", "linear_cross_entropy"], "tile": ["linear", "attention"], "strip": ["attention"],
           **dict.fromkeys(("adamw", "sgd", "sum_and_norm", "cast"), ())}       # other files' ops; the headers': all


class Hunt(Suite):
    """Its loop over the tests is a loop over mutants."""
    suite, profile = SUITE, "ci"

    def __init__(self, mutants: list[Mutant], jobs: int, report: Callable[[Mutant, int], None]):
        super().__init__()
        self.mutants, self.jobs, self.report = mutants, jobs, report
        self.left_out: set[str] = set()                 # tests that fail without a bug

    def run(self) -> int:
        """pytest's exit status, after report(mutant, status) for each mutant."""
        settings.register_profile("mutate", settings.get_profile(self.profile), database=None,
                                  phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
        settings.load_profile("mutate")
        return self.collect(str(path) for pattern in self.suite for path in sorted((ROOT / "tests").glob(pattern)))

    def loop(self):
        gc.freeze()                                     # a fork would copy the memory of all that it looks through
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            self.folder = Path(folder)
            self.hunt()

    def hunt(self):
        self.leave_out((on, partial(self.rehearse, on)) for on in sorted({*map(backend_of, self.mutants)}))
        self.try_out(self.mutants)

    def leave_out(self, rehearsals):
        """Leave out the tests that fail in these, which are pairs (name of a note, function that runs some tests)."""
        for part, status in self.pool(rehearsals):
            if status:
                raise RuntimeError(f"the rehearsal on {part} ended with {status}")
            self.left_out |= set(Path(self.folder, part).read_text().split("\n")) - {""}
        self.tests = [test for test in self.tests if test.nodeid not in self.left_out]

    def try_out(self, mutants):
        for mutant, status in self.pool((mutant, partial(self.verdict, mutant)) for mutant in mutants):
            if status == BROKEN:
                raise RuntimeError(f"could not plant {mutant.where} {mutant.change}")
            self.report(mutant, status)

    def pool(self, tasks):
        return pool(tasks, self.jobs, self.folder)

    # --- in the fork ---

    def rehearse(self, on):
        """Every test without a bug; the kernels compiled as the mutants are."""
        if on == "cpu":
            c_mutants.plant(None, self.folder / str(os.getpid()))
        ops = set().union(*(ops_of(mutant) for mutant in self.mutants if backend_of(mutant) == on))
        return self.note_failing(on, self.nearest(ops, on))

    def note_failing(self, part, tests):
        signal.signal(signal.SIGALRM, too_slow)         # a failure of one test, not the end of all
        Path(self.folder, part).write_text("\n".join(test.nodeid for test in self.failures(tests)))
        return SURVIVED

    def verdict(self, mutant):
        if mutant.unit in OPS:
            python_mutants.plant(mutant)
        elif not c_mutants.plant(mutant, self.folder / str(os.getpid())):
            return NO_MUTANT
        tests = self.nearest(ops_of(mutant), backend_of(mutant), mutant.function)
        drawn = drawing(tests)
        for function, full in drawn.items():
            setattr(function, SETTINGS, settings(full, max_examples=FEW))
        if next(self.failures(tests), None):
            return KILLED
        for function, full in drawn.items():
            setattr(function, SETTINGS, full)
        return KILLED if next(self.failures(tests), None) else SURVIVED

    def nearest(self, ops, on, function="anything"):
        """The tests on this backend that may notice a bug in these ops, the nearest first."""
        def distance(test):
            parameters = test.callspec.params if hasattr(test, "callspec") else {}
            if parameters.get("on", on) != on or (test.path.name in OF_KERNELS and not tries_kernels(test, on)):
                return None
            if "op" in parameters:
                name = parameters["op"].name
                return 1 if name in ops else 4 if uses(parameters["op"], ops) else None
            named = {name for name in OPS if f"_{name}_" in test.name}
            return 0 if function.lower() in test.name else 2 if named & ops else None if named else 3

        distances = [(distance(test), i) for i, test in enumerate(self.tests)]
        return [self.tests[i] for _, i in sorted((d, i) for d, i in distances if d is not None)]


def too_slow(*_):
    raise TimeoutError(f"more than {PATIENCE} s without a bug")


def backend_of(mutant):
    return "numpy" if mutant.unit in OPS else "cuda" if mutant.unit.endswith((".cu", ".cuh")) else "cpu"


def tries_kernels(test, on):
    """Does the test run the kernels in this process?  One that starts another Python runs them without the bug."""
    return on == "cpu" and "python" not in test.obj.__code__.co_names


def ops_of(mutant):
    """The ops that run the mutated function."""
    name = mutant.unit.partition(".")[0]
    return {name} if name in OPS else set(CALLERS.get(name, OPS))


def uses(op, ops):
    """Does the op's module import one of the others, or a function of theirs?"""
    return any(getattr(value, "name", None) in ops or getattr(value, "__module__", "").rpartition(".")[2] in ops
               for value in vars(sys.modules[op.forward.__module__]).values())
