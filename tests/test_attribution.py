"""Attributions of any function: completeness, and its order."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllama.study.attribution import FEWEST, gradient_times_input, integrated_gradients

numbers = st.floats(-2, 2).map(lambda x: round(x, 3))
vectors = arrays(np.float64, (3, 2), elements=numbers)


def exponential(weights):
    """f(x) = exp(w · x), whose slope on a line is an exponential, too."""
    def f(x):
        y = np.exp((weights * x).sum(axis=(1, 2)))
        return y, lambda d: (d * y)[:, None, None] * weights
    return f


@given(weights=vectors, x=vectors, baseline=vectors)
def test_attributions_of_a_linear_function_are_its_terms(weights, x, baseline):
    def f(x):
        return (weights * x).sum(axis=(1, 2)), lambda d: d[:, None, None] * weights

    for method in gradient_times_input, integrated_gradients:
        found = method(f, x, baseline)
        np.testing.assert_allclose(found.shares, (weights * (x - baseline)).sum(axis=1), rtol=0, atol=1e-13)
        assert abs(found.gap) <= 1e-13                      # sums of six numbers, each at most 16


@pytest.mark.parametrize("steps", [8, 16, 32])
@example(weights=np.ones((3, 2)), x=np.ones((3, 2)) / 2, baseline=np.zeros((3, 2)))
@given(weights=vectors, x=vectors, baseline=vectors)
def test_the_gap_is_the_error_of_simpson_s_rule(weights, x, baseline, steps):
    """E = (g‴(1) - g‴(0)) h⁴/180 - (g⁽⁵⁾(1) - g⁽⁵⁾(0)) h⁶/1512 + ..., here with g = r f and g‴ = r⁴ f.

    The terms alternate, and fall as long as r h is less than 1: then the error of the first is less than the second.
    """
    rate = float((weights * (x - baseline)).sum())
    rate, scale = (rate, 1.0) if abs(rate) < 4 else (3.0, 3.0 / rate)
    f = exponential(scale * weights)
    found = integrated_gradients(f, x, baseline, tolerance=0, most=steps)
    low, high = f(np.stack([baseline, x]))[0]
    third, fifth = (rate ** (order + 1) * (high - low) for order in (3, 5))
    leading, bound = third / steps ** 4 / 180, abs(fifth) / steps ** 6 / 1512
    rounding = 1e-14 * (1 + abs(rate)) * max(low, high)     # of a weighted mean of up to 33 numbers
    assert abs(found.gap - leading) <= bound + rounding
    assert found.steps == steps or found.gap == 0


def test_the_steps_are_doubled_until_the_gap_is_small():
    weights = np.full((3, 2), 1.5)
    f, x, zero = exponential(weights), np.ones((3, 2)), np.zeros((3, 2))
    loose, tight = (integrated_gradients(f, x, zero, tolerance) for tolerance in (1e-2, 1e-9))
    assert loose.steps < tight.steps
    for found, tolerance in ((loose, 1e-2), (tight, 1e-9)):
        assert abs(found.gap) <= tolerance * np.abs(found.shares).sum()
    before = integrated_gradients(f, x, zero, 1e-9, most=tight.steps // 2)
    assert abs(before.gap) > 1e-9 * np.abs(before.shares).sum()
    assert loose.steps >= FEWEST


def test_no_step_is_computed_twice():
    seen = []

    def f(x):
        seen.extend(x[:, 0, 0].tolist())
        return np.exp(9 * x[:, 0, 0]), lambda d: (9 * d * np.exp(9 * x[:, 0, 0]))[:, None, None]

    found = integrated_gradients(f, np.ones((1, 1)), np.zeros((1, 1)), tolerance=1e-6)
    assert sorted(seen) == [i / found.steps for i in range(found.steps + 1)]


def test_a_kink_leaves_a_gap_that_is_reported():
    """f = max(x - 1/3, 0): g jumps from 0 to 1, where no step's end is; the error is at most a step."""
    def f(x):
        return np.maximum(x - 1 / 3, 0).sum(axis=(1, 2)), lambda d: d[:, None, None] * (x > 1 / 3)

    found = integrated_gradients(f, np.ones((1, 1)), np.zeros((1, 1)), tolerance=0, most=64)
    assert 0 < abs(found.gap) <= 1 / 64
    assert found.steps == 64
