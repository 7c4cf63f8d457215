"""The program that runs gradcheck on other libraries' functions: what it expects, what it forgets, what it prints."""
from types import SimpleNamespace

import numpy as np
import pytest

from bench.checkers import third_party
from bench.checkers.third_party_case import RIGHT, WRONG, Case, judged

X = np.array([1.0, -2.0, 3.0])


def square(times):
    return lambda x: (x * x, lambda dy: times * 2 * x * dy)


def refuses(x):
    raise NotImplementedError("not for\n  these")


@pytest.mark.parametrize(("times", "expected", "keyword", "as_expected"), [
    (1, RIGHT, "", True),
    (1, WRONG, "", False),
    (2, RIGHT, "", False),
    (2, WRONG, "", True),
    (2, "the authors want it so", "", True),
    (2, WRONG, "constant factor 2", True),
    (2, WRONG, "wrong sign", False),
])
def test_a_verdict_and_its_cause_are_compared_with_the_expected_ones(times, expected, keyword, as_expected):
    outcome = judged(Case("square", square(times), [X], expected, keyword), seed=0)
    assert outcome.passed == (times == 1)
    assert outcome.as_expected == as_expected


@pytest.mark.parametrize(("expected", "as_expected"), [(RIGHT, False), (WRONG, False), ("refuses complex", True)])
def test_a_function_that_raises_is_expected_only_if_it_is_known_to(expected, as_expected):
    outcome = judged(Case("refuses", refuses, [X], expected), seed=0)
    assert not outcome.passed
    assert outcome.as_expected == as_expected
    assert outcome.said == "NotImplementedError: not for these"


def run(monkeypatch, suite, all=False):
    monkeypatch.setattr(third_party.importlib, "import_module", lambda name: suite)
    return third_party.run("numba", SimpleNamespace(seed=0, all=all))


def test_a_suite_counts_what_is_unexpected_and_what_is_forgotten(monkeypatch, capsys):
    suite = SimpleNamespace(cases=lambda: [Case("square", square(1), [X]), Case("twice", square(2), [X])],
                            LEFT_OUT={"inverse": "complex"}, primitives=lambda: {"square", "inverse", "forgotten"})
    assert run(monkeypatch, suite) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("numba: kernels: 2 checked, 1 pass, ")
    assert lines[2].startswith("  UNEXPECTED fails twice: Constant factor 2")
    assert lines[3:] == ["  left out    inverse: complex", "  MISSING     forgotten: neither checked nor left out"]


def test_a_right_gradient_has_a_line_only_if_all_are_wanted(monkeypatch, capsys):
    suite = SimpleNamespace(cases=lambda: [Case("square", square(1), [X])])
    assert run(monkeypatch, suite) == 0
    assert "square" not in capsys.readouterr().out
    run(monkeypatch, suite, all=True)
    assert "  passes      square: " in capsys.readouterr().out
