"""Correct functions of all kinds and scales do not alarm, and wrong gradients do: a small part of bench/alarms.py."""
import numpy as np
import pytest

from bench.alarms import drawn, in_float32, lowered, rounded, times, vanishes, verdicts
from bench.functions import CASES
from pyllama.testing import gradcheck

SCALED = range(len(CASES), 2 * len(CASES))          # the first round of cases has no scales
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def wrong(name, f, inputs, k):
    """The methods that call a gradient wrong."""
    return {method for method, verdict in verdicts(name, f, inputs, np.random.default_rng(k), few=2)
            if verdict.status == "wrong"}


@pytest.mark.parametrize("k", SCALED, ids=list(CASES))
def test_each_method_accepts_the_right_gradient_and_one_refuses_another(k):
    name, f, inputs, _ = drawn(k)
    assert not wrong(name, f, inputs, k)
    assert not wrong(name, in_float32(f), lowered(inputs), k)
    assert all(verdict.status != "wrong" for verdict in rounded(f, inputs, k))
    if not vanishes(f, inputs):
        assert wrong(name, times(f, 1 + 1e-6 if CASES[name].exact else 1.01), inputs, k)


@pytest.mark.parametrize("k", SCALED[::9])
def test_gradcheck_accepts_the_right_gradient_and_refuses_others(k):
    _, f, inputs, _ = drawn(k)
    assert gradcheck(f, inputs, seed=k, budget=None, raise_exception=False)
    for factor in (1.01, -1.0, 0.0):
        assert vanishes(f, inputs) or not gradcheck(times(f, factor), inputs, seed=k, budget=None,
                                                    raise_exception=False)
