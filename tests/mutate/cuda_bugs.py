"""Handwritten bugs in the CUDA kernels, where more can go wrong than an operator; and the hunt for them.

tests/cuda_bugs.toml lists them.  The tests that may find a bug have the name of its op or update in theirs.
"""
import os
import re
import shutil
import tomllib
from functools import partial

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from pyllama import cuda_text
from pyllama.testing.mutation.forks import KILLED, SURVIVED
from pyllama.testing.mutation.mutants import Mutant
from tests import gpu
from tests.cuda_on_cpu import build
from tests.mutate.hunt import Hunt
from tests.mutate.python_mutants import ROOT

OWN = "test_cuda_kernels.py"
LATER = "watched", "exact_derivatives", "slopes"            # what else must be compiled; many calls; the most calls
NETS = {r"KernelError: racecheck": "checked build: race", r"KernelError: memcheck": "checked build: memory",
        r"KernelError: initcheck": "checked build: uninitialized", r"KernelError: synccheck": "barrier",
        r"KernelError: .*error:": "does not compile", r"KernelError: ": "checked build: arithmetic",
        r"def test_the_order_of_threads": "order of threads", "": "comparison"}             # the first that is found


def bugs():
    """Each as a mutant: its function is what the tests are named after, its code the whole file."""
    for file, of_file in tomllib.loads((ROOT / "tests/cuda_bugs.toml").read_text()).items():
        text = (cuda_text.FOLDER / file).read_text()
        for name, changes in of_file.items():
            for what, change in changes.items():
                before, after = change.split(" → ")
                if text.count(before) != 1:
                    raise ValueError(f"{file} has {before!r} {text.count(before)} times; {what!r} needs it once")
                line = text.count("\n", 0, text.index(before)) + 1
                yield Mutant(file, name, f"{file}:{line}", change, what, text.replace(before, after))


def planted(bug, folder):
    """The folder, made one of kernels with the bug."""
    shutil.copytree(cuda_text.FOLDER, folder)
    (folder / bug.unit).write_text(bug.code)
    return folder


class CudaHunt(Hunt):
    suite, profile = ["test_cuda_attention.py", OWN, "test_ops.py", "test_laws*.py"], "few"
    planted_bug = None                                      # in a fork: what is wrong there

    def run(self):
        gpu.install()                                       # before the tests are collected, for they ask what there is
        for checked in False, True:
            build.runtime(checked)                          # what a fork compiles dies with it
        return super().run()

    def hunt(self):
        """The rehearsal comes last, and only of the tests that ended a fork: few do."""
        untried = self.mutants
        while untried:
            self.try_out(untried)
            last = {bug: self.noted(bug)[0] for bug in untried}
            self.leave_out([("cuda", partial(self.rehearse, {*last.values()}))])
            untried = [bug for bug, test in last.items() if test in self.left_out]

    def found_by(self, bug, status):
        """The net that the bug was caught in and the test, or why there is none."""
        if status == SURVIVED:
            return "not found", ""
        test, *net = self.noted(bug)
        return (net or ["crash"])[0], test.partition("::")[2].partition("[")[0]

    def note(self, bug):
        return self.folder / f"{self.mutants.index(bug)}.txt"

    def noted(self, bug):
        """The lines that its fork wrote: the id of the test that ran last, if any did, and the net if that failed."""
        note = self.note(bug)
        return note.read_text().split("\n") if note.exists() else [""]

    # --- in the fork ---

    def rehearse(self, ids):
        return self.note_failing("cuda", [test for test in self.tests if test.nodeid in ids])

    def verdict(self, bug):
        folder = self.folder / str(os.getpid())
        cuda_text.FOLDER = planted(bug, folder / "cuda")
        compiled = folder / "compiled"                      # what has no bug stays compiled
        compiled.mkdir()
        for finished in build.CACHE.glob("*.*o"):           # other processes may be compiling in folders beside these
            (compiled / finished.name).symlink_to(finished)
        build.CACHE = compiled
        self.planted_bug = bug
        return KILLED if next(self.failures(self.concerning(bug.function)), None) else SURVIVED

    def pytest_runtest_logstart(self, nodeid):
        if self.planted_bug:
            self.note(self.planted_bug).write_text(nodeid)  # before it runs, for it may crash

    def pytest_runtest_logreport(self, report):
        super().pytest_runtest_logreport(report)
        if report.failed and self.planted_bug:
            self.note(self.planted_bug).write_text(f"{report.nodeid}\n{net_of(report.longreprtext)}")

    def concerning(self, name):
        """The tests that are named after this op, then those of OWN not named after a kernel; those of LATER last."""
        tests = [test for test in self.tests if runs_kernels(test) and "refuse" not in test.name]
        kernels = cuda_text.files()
        named = {test for test in tests if any(kernel in test.nodeid for kernel in kernels)}
        longer = [kernel for kernel in kernels if name in kernel and kernel != name]        # add_rms_norm
        nearest = [test for test in tests
                   if name in test.nodeid and not any(kernel in test.nodeid for kernel in longer)]
        others = [test for test in tests if test.path.name == OWN and test not in named]
        return sorted(nearest + others, key=lateness)


def lateness(test):
    names = f"{test.name} {test.fixturenames}"
    return [what in names for what in reversed(LATER)]


def runs_kernels(test):
    parameters = test.callspec.params if hasattr(test, "callspec") else {}
    return parameters.get("on") == "cuda" or test.path.name.startswith("test_cuda")


def net_of(failure):
    """A failure is a test's traceback as pytest writes it."""
    return next(net for sign, net in NETS.items() if re.search(sign, failure, re.DOTALL))


def judge(found):
    """Print in which net each bug was caught; True if all were.  `found` is bug -> (net, test)."""
    shown = Table("bug", "file", "found by", "test", box=SIMPLE, pad_edge=False)
    for bug, (net, test) in found.items():
        shown.add_row(bug.change, bug.where, net, test)
    console = Console(width=190, markup=False, highlight=False)
    console.print(shown)
    missed = sum(net in ("not found", "does not compile") for net, _ in found.values())
    console.print(f"{len(found) - missed} of {len(found)} bugs found")
    return not missed
