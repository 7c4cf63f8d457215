"""Run one test of the pytest plugin: draw problems, check each, shrink one that fails."""
import dataclasses
import inspect
import shlex
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable

from pyllama.op import between
from pyllama.testing import strategies
from pyllama.testing.calls import brought
from pyllama.testing.function import gradcheck
from pyllama.testing.layouts import LAYOUTS, laid_out
from pyllama.testing.plugin.marker import Marked, Misuse, marked
from pyllama.testing.promised import PROMISES, broken
from pyllama.testing.report import Report
from pyllama.testing.report.pasted import literal
from pyllama.testing.trees import is_float

SHRINKS = 300                                               # cases that are tried after the first failure
EXPLAINED = 1000                                            # numbers in a case that is explained: a second or two
LARGER = "the table is that of a larger case, which says more about the reason"


class Wrong(Exception):
    """A problem for which the gradient is wrong."""


class Enough(BaseException):
    """Ends the search.  Hypothesis catches exceptions of tests, which this one is not."""


class Case(NamedTuple):
    """A drawn call: the inputs, the layout of each and of dy, the values of the options."""
    inputs: list[np.ndarray | None]
    layouts: dict[str, str]
    options: dict[str, Any]


# --- problems ---------------------------------------------------------------------------------------------------------

@st.composite
def cases(draw, test: Marked):
    choose = strategies.decisions(draw)
    dtype = choose(test.dtypes)
    sizes = strategies.SmallFirst(choose, declared=test.inputs)
    options = {name: choose(values) if isinstance(values, between | list | tuple) else values
               for name, values in test.options.items()}
    inputs = strategies.drawn_inputs(draw, choose, sizes, test.inputs, lambda x: dtype, test.ranges)
    layouts = {}
    if choose([False, True]):
        names = [x.name for x, given in zip(test.inputs, inputs, strict=True) if given is not None]
        layouts = {name: choose([*LAYOUTS]) for name in [*names, "dy"]}
    return Case(inputs, {name: layout for name, layout in layouts.items() if layout != "C"}, options)


def callable_of(test: Marked, case: Case) -> Callable:
    """The test's function of the drawn inputs alone, in their layouts."""
    names = [x.name for x in test.inputs]

    def function(*inputs):
        return test.function(**dict(zip(names, inputs, strict=True)), **case.options, **test.fixtures)

    function.__name__ = test.name.rpartition(".")[2]
    function.__signature__ = inspect.Signature(                                             # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    return laid_out(function, **case.layouts)


def as_python(test: Marked, case: Case, seed: int, checked: bool = True) -> str:
    """The case as Python to paste: a call of gradcheck, or of the function alone, whose y breaks a promise."""
    names = [x.name for x in test.inputs]
    imports = ["import numpy as np", f"from {test.module} import {test.name.partition('.')[0].removesuffix('()')}",
               "from pyllama.testing import gradcheck"]
    called = "checked"
    if case.layouts:
        imports.append("from pyllama.testing.layouts import laid_out")
        called = f"laid_out(checked, {listed(case.layouts)})"
    arrays = [f"{name} = {literal(x, len(name) + 3)}" for name, x in zip(names, case.inputs, strict=True)]
    if any("ml_dtypes." in line for line in arrays):
        imports.insert(0, "import ml_dtypes")
    inputs = ", ".join(names)
    arguments = ", ".join([*(f"{name}={name}" for name in names), listed({**case.options, **test.fixtures})])
    keywords = listed({**test.forwarded, "seed": seed})
    last = f"gradcheck({called}, [{inputs}], {keywords})" if checked else f"y, back = {called}({inputs})"
    return "\n".join([*imports, "", *arrays, "", f"def checked({inputs}):",
                      f"    return {test.name}({arguments.removesuffix(', ')})", "",
                      last])


def listed(keywords: dict[str, Any]) -> str:
    """Keywords of a call; objects that cannot be written down, such as most fixtures, stand for themselves."""
    plain = (str, bytes, bool, int, float, type(None))
    return ", ".join(f"{name}={value!r}" if isinstance(value, plain) else f"{name}={name}"
                     for name, value in keywords.items())


# --- the search -------------------------------------------------------------------------------------------------------

class Search:
    """Check drawn cases; keep the case at hand and the report of the last one that fails."""

    def __init__(self, test: Marked, seed: int, facts: dict):
        self.test, self.seed, self.facts = test, seed, facts
        self.left = SHRINKS
        self.case: Case | None = None
        self.failure: tuple[Report, Case] | None = None
        self.richest: Case | None = None                # that failed: zeros and ones hide why
        self.complaints: set[str] = set()               # what the first failure was about
        self.undecided: dict[str, Report] = {}          # by the pair of input and output
        self.judged: set[str] = set()

    def check(self, case: Case) -> None:
        """Raises Wrong if the gradient is wrong in the way in which that of the first failure was."""
        if self.left == 0:
            raise Enough
        self.left -= self.failure is not None
        self.case = case
        report = self.report(case, fast_mode=True, explain=False)
        self.facts["examples"] += not self.failure
        found = complaints(report)
        if not found:
            self.facts["error"] = max(self.facts["error"], *measured(report))
            for pair in report.pairs:
                if pair.worst.status == "undecided":
                    self.undecided[pair_name(pair)] = report
                elif all(x is None or x.size for x in case.inputs):
                    self.judged.add(pair_name(pair))
        self.complaints = self.complaints or found
        if found & self.complaints:
            self.failure = report, case
            self.richest = max(self.richest or case, case, key=richness)
            raise Wrong

    def report(self, case: Case, **options) -> Report:
        """What gradcheck says of this case, but for other values: these are drawn, and only what is drawn shrinks."""
        names, outputs = ([x.name for x in side] for side in (self.test.inputs, self.test.outputs))
        y = self.in_its_precision(case, names)
        report = gradcheck(callable_of(self.test, case), case.inputs, budget=None, seed=self.seed, other_values=False,
                           raise_exception=False, names=names, output_names=outputs,
                           **{**options, **self.test.forwarded})
        faults = broken(report.function, (self.test.inputs, self.test.outputs), case.inputs, y)
        return dataclasses.replace(report, faults=(*report.faults, *faults))

    def in_its_precision(self, case: Case, names: list[str]) -> Any:
        """y of the case as drawn.  Raises what either pass raises: gradcheck takes some of that for a refusal."""
        function = brought(callable_of(self.test, case), case.inputs, None, False, None, names)
        outputs, back = function(function.leaves)
        rng = np.random.default_rng(self.seed)
        back(tuple(rng.standard_normal(a.shape).astype(a.dtype) if is_float(a) else np.zeros(a.shape)
                   for a in outputs))
        return function.func(*function.arguments([x if x is None else x.copy() for x in case.inputs]))[0]

    def never_judged(self) -> Report | None:
        """The report of a pair that was undecided in each case."""
        return next((report for name, report in self.undecided.items() if name not in self.judged), None)


def complaints(report: Report) -> set[str]:
    """What is wrong: the kinds of faults, and the names of pairs."""
    return {fault.kind for fault in report.faults} | {pair_name(pair) for pair in report.pairs if pair.wrong}


def measured(report: Report) -> list[float]:
    """The errors, in tolerances, of all verdicts with numbers; of an empty array there are none."""
    return [0.0, *(verdict.severity for pair in report.pairs for verdict in pair.verdicts
                   if verdict.error == verdict.error)]


def pair_name(pair) -> str:
    return f"{pair.input} -> {pair.output}"


def search(hunt: Search, examples: int) -> None:
    """Draw cases until one fails, and shrink it."""
    @seed(hunt.seed)
    @settings(max_examples=examples, phases=[Phase.generate, Phase.shrink], database=None, deadline=None,
              derandomize=False, verbosity=Verbosity.quiet, print_blob=False, report_multiple_bugs=False,
              suppress_health_check=[*HealthCheck])
    @given(cases(hunt.test))
    def check(case):
        hunt.check(case)

    check()


def run(item, seed: int, examples: int, facts: dict) -> None:
    """Run the test.  Facts for the report of the run are put into `facts`.

    Fails, without a traceback, if a gradient is wrong or the test is not one; raises what the user's code raises.
    """
    started = time.perf_counter()
    command = f"pytest {shlex.quote(item.config.cwd_relative_nodeid(item.nodeid))} --gradcheck-seed={seed} " \
              f"--gradcheck-examples={examples}"
    facts.update(examples=0, error=0.0, seed=seed, command=command, message="")
    try:
        message = outcome(item, seed, examples, facts, command)
    finally:
        facts["seconds"] = time.perf_counter() - started
    if message:
        facts["message"] = message
        pytest.fail(message, pytrace=False)


def outcome(item, seed, examples, facts, command) -> str:
    """What is wrong; "" if nothing is."""
    hunt: Any = None
    try:
        hunt = Search(marked(item), seed, facts)
        search(hunt, examples)
    except Misuse as error:
        return str(error)
    except Unsatisfiable:
        return f"gradcheck: {item.originalname}() assumes away all that is drawn; give ranges of its inputs instead"
    except (Wrong, Enough, Flaky):
        if hunt.failure is None:
            return f"{item.originalname}() raised an error, but not with the same inputs again: it is not " \
                   f"deterministic; let its results depend on its inputs alone\n\n{command}"
        return failure(hunt, facts, command)
    except Exception as error:
        if hunt is None or hunt.case is None:
            raise
        drawn = as_python(hunt.test, hunt.case, seed)
        if by_gradcheck(error):
            return "\n\n".join([f"{error}{cure(error)}", "It was called so:\n\n" + indented(drawn), command])
        precision = ", ".join(sorted({x.dtype.name for x in hunt.case.inputs if is_float(x)}))
        facts["drawn"] = f"It was called in {precision}:\n\n{drawn}\n\n{command}"
        raise
    if (report := hunt.never_judged()) is not None:
        return "\n\n".join([str(report), f"No case of {facts['examples']} could be judged.", command])
    return ""


def failure(hunt: Any, facts: dict, command: str) -> str:
    """The report of a failing case, now with the reasons, which take their time, and the smallest case."""
    short, case = hunt.failure
    facts["error"] = short.error
    shown = hunt.richest if richness(hunt.richest) > richness(case) else case
    reports = hunt.report(shown), short
    report = next(report for report in reports if complaints(report))
    notes = report.notes if shown is case else (*report.notes, LARGER)
    python = as_python(hunt.test, case, hunt.seed, checked=complaints(report) - PROMISES != set())
    return f"{dataclasses.replace(report, notes=notes, case=python, replay='')}\n\n{command}"


def richness(case: Case) -> int:
    """How many numbers are not zero; 0 for a large case, which would take long to explain."""
    floating = [x for x in case.inputs if x is not None and x.dtype.kind not in "iub"]
    return sum(map(np.count_nonzero, floating)) if sum(x.size for x in floating) <= EXPLAINED else 0


def by_gradcheck(error: Exception) -> bool:
    """Was it gradcheck that refused what the function returned, not the function itself that failed?"""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = frame.f_globals.get("__name__", "")
    return isinstance(error, TypeError | ValueError) and module.startswith("pyllama.testing")


def cure(error: Exception) -> str:
    return "; the marker takes ranges, such as x=between(0.5, 2)" if "NaN" in str(error) else ""


def indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())
