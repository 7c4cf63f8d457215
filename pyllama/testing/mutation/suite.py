"""Collect tests with pytest once, then run them again and again: without a bug, with each bug, with each seed."""
import contextlib
import io
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from pyllama.testing.mutation.watching import random_numbers_kept

PATIENCE = 60                                           # seconds for one test
SETTINGS = "_hypothesis_internal_use_settings"          # where @given keeps them; nothing public changes them later
SEED = "_hypothesis_internal_use_seed"
QUIET = [word for name in ("terminal", "faulthandler", "cacheprovider") for word in ("-p", f"no:{name}")]


class Suite:
    """A pytest plugin: its loop over the tests is that of a subclass.

    tests       what pytest collected
    failed      did the test that ran last fail?
    reasons     of tests that failed or were skipped: {(test, "failed" or "skipped"): why, in a line}
    passed      the names of tests that passed
    complaints  what pytest wrote to standard error while it collected, and files that it could not import
    interrupt   Ctrl-C or SIGTERM while it collected
    """

    def __init__(self) -> None:
        self.tests: list[Any] = []
        self.failed = False
        self.reasons: dict[tuple[str, str], str] = {}
        self.passed: set[str] = set()
        self.complaints: list[str] = []
        self.interrupt: KeyboardInterrupt | None = None

    def collect(self, words: Iterable[str]) -> int:
        """Collect the tests that the words name, then run loop().  Returns pytest's exit status."""
        import pytest

        os.environ.pop("PYTEST_ADDOPTS", None)          # as addopts of the configuration, such as -n 4
        self.stderr, said = sys.stderr, io.StringIO()
        with contextlib.redirect_stderr(said), seeds_kept():
            seed_all(0, [])                             # for what modules draw while they are imported
            status = pytest.main([*QUIET, "-o", "addopts=", "--capture=no",
                                  "-W", "ignore::pytest.PytestAssertRewriteWarning", *words], plugins=[self])
        self.complaints += [line.removeprefix("ERROR: ") for line in said.getvalue().splitlines()
                            if line.startswith(("ERROR: ", "ImportError while loading"))]
        return status

    def loop(self) -> None:
        """What to do with the tests."""
        raise NotImplementedError

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:                         # a file that could not be imported
            raise session.Interrupted("not collected")
        self.tests = session.items
        with contextlib.redirect_stderr(self.stderr):
            self.loop()
        return True

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        if type(excinfo.value) is KeyboardInterrupt:    # not pytest's own, which ends a collection that failed
            self.interrupt = excinfo.value

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.complaints.append(last_line(report))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed
        if report.passed and report.when == "call":
            self.passed.add(report.nodeid)
        elif not report.passed:
            self.reasons.setdefault((report.nodeid, report.outcome), last_line(report))

    def failures(self, tests: Iterable[Any], patience: int = PATIENCE) -> Iterator[Any]:
        """Run the tests; yields those that fail.  After `patience` seconds in one the process gets SIGALRM."""
        for test, following in pairwise([*tests, None]):
            self.failed = False
            signal.alarm(patience)
            test.ihook.pytest_runtest_protocol(item=test, nextitem=following)
            signal.alarm(0)
            if self.failed:
                yield test


def last_line(report: Any) -> str:
    """Why a test failed or was skipped, or why a file could not be collected: the exception, in a line."""
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):                     # of a test that was skipped
        return longrepr[2].removeprefix("Skipped: ")
    message = getattr(getattr(longrepr, "reprcrash", None), "message", None)
    if message:
        return message.splitlines()[0]
    lines = [line.removeprefix("E").strip() for line in str(longrepr).splitlines() if line.startswith("E ")]
    return (lines or str(longrepr).splitlines() or ["for no reason that pytest gives"])[-1]


def drawing(tests: Iterable[Any]) -> dict[Callable, Any]:
    """The functions of the tests that Hypothesis draws for, with their settings."""
    if "hypothesis" not in sys.modules:
        return {}
    from hypothesis import is_hypothesis_test

    functions = [getattr(test.obj, "__func__", test.obj) for test in tests if hasattr(test, "obj")]
    return {function: getattr(function, SETTINGS) for function in functions if is_hypothesis_test(function)}


def unhurried(tests: Iterable[Any]) -> None:
    """Hypothesis neither makes failing examples smaller, since nobody reads them, nor keeps them, nor looks at the
    clock, since other processes run beside this one."""
    for function, full in drawing(tests).items():
        from hypothesis import HealthCheck, Phase, settings

        allowed = {*full.suppress_health_check, HealthCheck.too_slow}
        setattr(function, SETTINGS, settings(
            full, database=None, deadline=None, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False,
            print_blob=False, suppress_health_check=allowed))


@contextlib.contextmanager
def seeds_kept() -> Iterator[None]:
    """Restore afterwards what seed_all() changes, but for torch's generator."""
    variable = os.environ.get("PYLLAMA_SEED")
    drawn = np.random.bit_generator.randbits            # type: ignore[attr-defined]
    try:
        with random_numbers_kept():
            yield
    finally:
        np.random.bit_generator.randbits = drawn        # type: ignore[attr-defined]
        os.environ.pop("PYLLAMA_SEED", None)
        if variable is not None:
            os.environ["PYLLAMA_SEED"] = variable


def seed_all(seed: int, tests: Iterable[Any]) -> None:
    """Seed everything a test may draw from.

    random, NumPy's global generator and those made without a seed, torch's if it is imported, Hypothesis, the option
    --gradcheck-seed, and the variable PYLLAMA_SEED for whatever else there is.
    """
    tests = list(tests)
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)                      # noqa: NPY002 -- the test may use it
    np.random.bit_generator.randbits = random.Random(seed).getrandbits      # type: ignore[attr-defined]
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
    for function in drawing(tests):
        setattr(function, SEED, seed)
    for test in tests:
        if hasattr(test.config.option, "gradcheck_seed"):
            test.config.option.gradcheck_seed = seed
    os.environ["PYLLAMA_SEED"] = str(seed)
