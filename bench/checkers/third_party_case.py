"""A function of another library, how gradcheck should judge it, and how it does."""
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pyllama.testing import gradcheck

RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Case:
    """A function and its gradients.

    name        of the function, with what is special about the call
    func        as gradcheck takes it
    inputs      its arguments
    expected    "right", "wrong", or a sentence: why the gradient is not the derivative, though nobody planted that
    keyword     of a planted bug: what the diagnosis must say
    options     of gradcheck
    check       gradcheck, gradgradcheck or check_grads
    """
    name: str
    func: Callable
    inputs: list
    expected: str = RIGHT
    keyword: str = ""
    options: dict = field(default_factory=dict)
    check: Callable = gradcheck


@dataclass(frozen=True)
class Outcome:
    """What gradcheck said of a case: its verdict, how, and whether that was expected."""
    case: Case
    passed: bool
    as_expected: bool
    method: str
    error: float
    said: str
    seconds: float


def judged(case: Case, seed: int) -> Outcome:
    """Run gradcheck without a budget, so that the seed alone decides."""
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # those of the other library
            report = case.check(case.func, case.inputs, raise_exception=False, seed=seed, budget=None, **case.options)
    except Exception as error:                          # a function that refuses may be known to
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        return Outcome(case, False, case.expected not in {RIGHT, WRONG}, "", float("nan"), said,
                       time.perf_counter() - begun)
    passed, said = bool(report), sentence(report, case.keyword)
    expected = passed == (case.expected == RIGHT) and case.keyword.lower() in said.lower()
    worst = report.pairs[-1].worst if report.pairs else None
    return Outcome(case, passed, expected, worst.method if worst else "", report.error, said,
                   time.perf_counter() - begun)


def causes(report) -> list[str]:
    """All causes that the report gives, those of the worst pair first."""
    return [*(fault.sentence for fault in report.faults),
            *(cause for pair in reversed(report.pairs) for cause in pair.diagnoses)]


def sentence(report, keyword: str) -> str:
    """The cause with this word, else the first one, else the inequality of the worst pair."""
    if report:
        return ""
    named = [cause for cause in causes(report) if keyword.lower() in cause.lower()]
    return (named or causes(report) or [report.pairs[-1].worst.why])[0]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def between(low: float, high: float, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)
