"""The order of the Taylor remainder: right, wrong and undecided slopes, with the range found by itself."""
import math

import numpy as np
import pytest

from pyllama.testing.methods.order import order

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal(50), RNG.standard_normal(50)
V = X * RNG.standard_normal(50)


def single(f):
    """<dy, f(x + t v)>, computed in float32."""
    return lambda t: float(DY @ f((X + t * V).astype(np.float32)).astype(float))


SMOOTH = {
    "exp": (math.exp, 1.0),
    "linear": (lambda t: 3 * t + 1, 3.0),
    "an offset": (lambda t: 1e6 + t, 1.0),
    "huge": (lambda t: 1e30 * math.exp(t), 1e30),
    "tiny": (lambda t: 1e-30 * math.exp(t), 1e-30),
    "no second derivative": (lambda t: t ** 3 + t, 1.0),
    "a fast sine": (lambda t: math.sin(1e3 * t + 1), 1e3 * math.cos(1)),
    "a very fast sine": (lambda t: math.sin(1e6 * t + 1), 1e6 * math.cos(1)),
    "undefined nearby": (lambda t: math.log(0.1 + t), 10.0),
    "a kink in the range": (lambda t: max(t - 1e-4, 0) + t * t + t, 1.0),
    "a kink against the bend": (lambda t: max(t - 1e-5, 0) - t * t + t, 1.0),
    "a kink very near": (lambda t: max(t - 1e-9, 0) + t * t + t, 1.0),
    "relu": (lambda t: float(DY @ np.maximum(X + t * V, 0)), float(DY @ (V * (X > 0)))),
    "float32": (single(np.tanh), float(DY @ (V / np.cosh(X) ** 2))),
    "float32, linear": (single(lambda x: 3 * x), float(3 * DY @ V)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_right_slope_passes_and_others_do_not(name):
    """A percent is 30 times the error that float32 leaves in these sums, at the best step."""
    phi, slope = SMOOTH[name]
    right = order(phi, slope)
    assert right.status == "passed"
    assert right.error <= right.tolerance
    for times in (0.99, 1.01, -1.0, 2.0):
        wrong = order(phi, times * slope)
        assert wrong.status == "wrong"
        assert wrong.error > wrong.tolerance


@pytest.mark.parametrize("name", ["exp", "linear", "an offset", "huge", "tiny", "relu", "a kink in the range"])
def test_a_millionth_is_seen_in_float64(name):
    """Rounding hides R below h = √eps, 1e-8, where R/h is 1e-8 of φ's second derivative."""
    phi, slope = SMOOTH[name]
    assert order(phi, slope * (1 + 1e-6)).status == "wrong"


@pytest.mark.parametrize("slope", [0.0, 1e-3, 1.0])
def test_a_slope_of_zero_is_judged(slope):
    for phi in (math.cos, lambda t: t ** 3, lambda t: abs(t) ** 1.5, lambda t: 5.0):
        assert order(phi, 0.0).status == "passed"
        assert phi(1.0) == 1.0 or order(phi, 1e-3).status == "wrong"


@pytest.mark.parametrize("claimed", [-1.0, -0.3, 0.0, 0.7, 1.0])
def test_a_kink_at_the_inputs_is_undecided_between_its_slopes(claimed):
    verdict = order(abs, claimed)
    assert verdict.status == "undecided"
    assert "not alike on both sides" in verdict.why


@pytest.mark.parametrize("claimed", [-1.01, 1.01, 3.0])
def test_a_slope_beyond_those_of_a_kink_is_wrong(claimed):
    assert order(abs, claimed).status == "wrong"


NOISE = np.random.default_rng(0)
HOPELESS = {
    "noise": (lambda t: NOISE.standard_normal(), 1e6),
    "too fast": (lambda t: math.sin(1e15 * (1 + t)), 1e15 * math.cos(1e15)),
    "one-sided": (math.sqrt, 1.0),
    "a staircase": (lambda t: round(1e3 * t + 0.2), 0.0),
    "never defined": (lambda t: math.nan, 1.0),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_without_a_converging_range_nothing_is_called_wrong(name):
    verdict = order(*HOPELESS[name])
    assert verdict.status == "undecided"
    assert verdict.severity == 0
    assert verdict.why


def test_a_constant_with_a_slope_is_wrong():
    assert order(lambda t: 5.0, 1e-6).status == "wrong"


def test_a_slope_that_is_not_a_number_is_wrong():
    assert order(math.exp, math.nan).status == "wrong"
    assert order(math.sqrt, math.inf).status == "undecided"             # the slope of a root at 0
