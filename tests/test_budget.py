"""A budget in seconds: a check of a slow function ends soon after it, and the report names what was skipped."""
import numpy as np
import pytest

from pyllama.testing import gradcheck
from pyllama.testing.session import EXTRA

X = np.random.default_rng(0).standard_normal((3, 4))


@pytest.mark.parametrize("times", [1.0, 1.1])
def test_a_slow_function_is_called_a_few_times_after_the_budget(times, monkeypatch):
    """Forward twice, so that random functions show, and one complex step; a wrong gradient needs more."""
    clock, calls = [0.0], []

    def f(x):
        clock[0] += 1.5
        calls.append(None)
        return x ** 3, lambda dy: times * 3 * x * x * dy

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    report = gradcheck(f, [X], seed=0, budget=2.0, raise_exception=False)
    assert bool(report) == (times == 1)
    assert len(calls) <= (4 if report else 20)
    assert report.skipped


@pytest.mark.parametrize("seconds", [0.3, 0.1, 0.03, 0.01])
@pytest.mark.parametrize("f", [np.abs, np.square, lambda x: np.tanh(x.astype(np.float64)).astype(x.dtype)])
def test_an_explanation_takes_no_longer_than_it_may(f, seconds, monkeypatch):
    """No matter how long the verdict at the inputs took."""
    clock = [0.0]

    def slow(x):
        clock[0] += seconds
        return f(x), lambda dy: 1.1 * dy

    def seconds_of(explain):
        clock[0] = 0.0
        assert not gradcheck(slow, [X], seed=0, budget=2.0, raise_exception=False, explain=explain)
        return clock[0]

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert seconds_of(explain=True) <= max(2.0 + EXTRA, seconds_of(explain=False)) + 2 * seconds


def test_time_that_runs_out_is_not_taken_for_an_error_of_the_function(monkeypatch):
    """Nothing is said of points and entries that were not reached, and what was left out is named."""
    clock = [0.0]

    def f(x):
        clock[0] += 1
        return x ** 3, lambda dy: 3 * x * x * dy

    def calls_of(budget):
        clock[0] = 0.0
        report = gradcheck(f, [X], seed=0, budget=budget)
        assert not report.notes
        return clock[0], report.skipped

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    every, _ = calls_of(None)
    for budget in range(1, int(every), 3):
        calls, skipped = calls_of(budget)
        assert skipped or calls == every
        assert calls <= max(budget + 2, 4)
