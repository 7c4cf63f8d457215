"""Right gradients of functions that lose digits: rounding, however large, is no mistake."""
import math

import numpy as np
import pytest

from pyllama.testing import gradcheck
from pyllama.testing.methods.entries import entries


def gelu(x):
    """The tanh form, by hand: 1 + t cancels where x < -5."""
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x ** 3))
    dt = (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    return x * (1 + t) / 2, lambda dy: dy * ((1 + t) / 2 + x * dt / 2)


def softplus(x):
    return np.log(1 + np.exp(x)), lambda dy: dy / (1 + np.exp(-x))


def mish(x):
    t = np.tanh(np.log(1 + np.exp(x)))
    return x * t, lambda dy: dy * (t + x * (1 - t * t) / (1 + np.exp(-x)))


def one_minus_sigmoid(x):
    s = 1 / (1 + np.exp(-x))
    return 1 - s, lambda dy: -dy * s * (1 - s)


def one_minus_cosine(x):
    return 1 - np.cos(x), lambda dy: dy * np.sin(x)


def expm1_by_hand(x):
    return np.exp(x) - 1, lambda dy: dy * np.exp(x)


def gelu_by_erf(x):
    """1 + erf cancels near -8, where a few roundings of 1 are left; erf() of math refuses complex numbers."""
    p = (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2))) / 2
    return x * p, lambda dy: dy * (p + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi))


def one_plus_tanh(x):
    t = np.tanh(x)
    return 1 + t, lambda dy: dy * (1 - t * t)


def root_minus_x(x):
    root = np.sqrt(x * x + 1)
    return root - x, lambda dy: dy * (x / root - 1)


def refuses_complex(f):
    def g(x):
        assert not np.iscomplexobj(x)
        return f(x)
    return g


PLACES = [(gelu, -5.0), (gelu, -5.95), (gelu, -6.2), (softplus, -30.0), (softplus, -36.0), (mish, -30.0),
          (one_minus_sigmoid, 30.0), (one_minus_sigmoid, 35.0), (one_minus_cosine, 1e-7), (one_minus_cosine, 1e-9),
          (expm1_by_hand, 1e-10), (expm1_by_hand, 1e-14)]


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(("f", "at"), PLACES)
def test_digits_that_cancel_are_no_fault(f, at, size):
    for seed in range(10):
        x = at * (1 + 1e-3 * np.random.default_rng(seed).standard_normal(size))
        report = gradcheck(f, [x], seed=seed, budget=None, raise_exception=False)
        assert not any(pair.wrong for pair in report.pairs), report


RANGES = [(gelu, -7, -5), (gelu_by_erf, -8.5, -7), (one_plus_tanh, -20, -5), (one_minus_sigmoid, 20, 45),
          (root_minus_x, 5e5, 2e6), (one_minus_cosine, 5e-8, 2e-7), (expm1_by_hand, -2e-12, -5e-13)]


@pytest.mark.parametrize(("f", "low", "high"), RANGES)
@pytest.mark.parametrize("seed", range(8))
def test_digits_that_cancel_differently_at_each_entry_are_no_fault(f, low, high, seed):
    """In all layouts, for every dy: also a rounding that SIMD changes, or one that is the same at all neighbors."""
    x = np.random.default_rng(seed).uniform(low, high, 6)
    report = gradcheck(f, [x], seed=seed, budget=None, raise_exception=False, explain=False)
    assert not report.faults
    assert not any(pair.wrong for pair in report.pairs), report


@pytest.mark.parametrize("f", [lambda x: np.exp(np.lib.stride_tricks.as_strided(x, x.shape, (8,))) - 1,
                               lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (8,)) ** 2])
def test_tiny_outputs_that_misread_memory_are_a_fault(f):
    """Though y changes by less than a rounding of 1."""
    x = -1e-12 * np.random.default_rng(0).uniform(0.5, 2, 6)
    report = gradcheck(lambda x: (f(x), lambda dy: dy), [x], seed=0, raise_exception=False, explain=False)
    assert "layout" in [fault.kind for fault in report.faults]


@pytest.mark.parametrize("at", [-5.0, -5.95])
def test_a_wrong_gradient_is_wrong_where_digits_cancel(at):
    """By a percent: rounding is less, because it differs between neighbors."""
    def wrong(x):
        y, back = gelu(x)
        return y, lambda dy: 1.01 * back(dy)

    for seed in range(10):
        x = at * (1 + 1e-3 * np.random.default_rng(seed).standard_normal(5))
        assert not gradcheck(wrong, [x], seed=seed, budget=None, raise_exception=False)


def test_small_numbers_are_no_rounding():
    """1e-30 is far below the rounding of 1, but all of these numbers are small."""
    x = 1e-30 * np.random.default_rng(0).standard_normal(5)
    for f in (lambda x: (x * x, lambda dy: x * dy), refuses_complex(lambda x: (x * x, lambda dy: x * dy))):
        assert any(pair.wrong for pair in gradcheck(f, [x], seed=0, raise_exception=False).pairs)


# --- entries of very different size -----------------------------------------------------------------------------------

def root_minus_one(scale, factor=1.0):
    def f(x):
        return (np.sqrt(1 + x * x) - 1) * scale, lambda dy: factor * dy * scale * x / np.sqrt(1 + x * x)
    return f


def of_mixed_scale(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(3) * 10.0 ** rng.integers(-8, -1, 3)


@pytest.mark.parametrize("form", [lambda f: f, refuses_complex])
@pytest.mark.parametrize("scale", [1, 1e8, 1e20])
@pytest.mark.parametrize("seed", [0, 2, 7, 9, 12, 19, 23])
def test_digits_that_cancel_beside_larger_entries_are_no_fault(form, scale, seed):
    """Nor beside a factor, which makes the numbers that cancel larger than 1."""
    report = gradcheck(form(root_minus_one(scale)), [of_mixed_scale(seed)], seed=seed, budget=None,
                       raise_exception=False, explain=False)
    assert not any(pair.wrong for pair in report.pairs), report


@pytest.mark.parametrize("form", [lambda f: f, refuses_complex])
@pytest.mark.parametrize("scale", [1, 1e8])
def test_a_wrong_gradient_is_wrong_beside_entries_whose_digits_cancel(form, scale):
    x = np.array([1e-9, 1e-2])
    report = gradcheck(form(root_minus_one(scale, 1.01)), [x], seed=0, raise_exception=False, explain=False)
    assert report.pairs[0].wrong


@pytest.mark.parametrize("form", [lambda f: f, refuses_complex])
@pytest.mark.parametrize("scale", [1, 1e8])
@pytest.mark.parametrize("factor", [0, 1.01])
def test_the_gradient_of_a_tiny_square_is_no_rounding(form, scale, factor):
    """It is as large as that of sqrt(1 + 2x²), but its changes are finer than the rounding of 1."""
    factors = np.array([factor, 1.0])

    def square(x):
        return scale * x * x, lambda dy: factors * 2 * scale * x * dy

    report = gradcheck(form(square), [np.array([1e-9, 1e-3])], seed=0, raise_exception=False, explain=False)
    assert report.pairs[0].wrong


# --- infinite slopes and gradients ------------------------------------------------------------------------------------

def x_log_x(x):
    log = np.log(np.where(x > 0, x, 1))
    return x * log * (x > 0), lambda dy: dy * (log + 1)


def test_a_slope_that_is_infinite_on_one_side_is_undecided():
    """x log x is constant to the left of 0; that slope says nothing of the right."""
    dy, x = np.ones(3), np.array([0.0, 0.5, 1.0])

    def along(index, t):
        moved = x.copy()
        moved[index] += t
        return x_log_x(moved)[0]

    found = entries(along, dy, x)
    np.testing.assert_array_equal(np.isnan(found.value), [True, False, False])


def test_a_gradient_that_is_not_finite_is_linear():
    """0 times NaN is NaN: the fault is the NaN alone."""
    def sinc(x):
        angle = np.pi * x
        return np.sinc(x), lambda dy: dy * (np.cos(angle) * angle - np.sin(angle)) / (angle * x)

    with np.errstate(all="ignore"):
        report = gradcheck(sinc, [np.array([0.0, 1.5, 0.4])], seed=0, raise_exception=False)
    assert not report.faults
    assert report.pairs[0].diagnoses[0] == "Not finite: claimed is nan at x[0]."


def test_a_kink_is_noted_once():
    relu = gradcheck(lambda x: (np.maximum(x, 0), lambda dy: dy * (x > 0)), [np.array([0.0, 1.0, -1.0])], seed=0)
    assert relu.notes == ("y has a kink in x",)


# --- y in float32, and exceptions -------------------------------------------------------------------------------------

def variance(x):
    """Of numbers that are far from 0: in float32 nothing is left of it."""
    return np.mean(x * x) - np.mean(x) ** 2, lambda dy: 2 * dy * (x - np.mean(x)) / x.size


def test_a_forward_pass_that_loses_digits_is_a_fault():
    x = (1000 + np.random.default_rng(0).standard_normal(100)).astype(np.float32)
    report = gradcheck(variance, [x], seed=0, raise_exception=False)
    (fault,) = report.faults
    assert fault.kind == "loses digits"
    assert fault.sentence.startswith("y loses digits in float32: float32 error")


def test_an_exception_of_back_says_which_call_it_was():
    def back(dy):
        raise IndexError("of the user")

    with pytest.raises(IndexError, match="of the user") as caught:
        gradcheck(lambda x: (2 * x, back), [np.ones(2)])
    assert "call back(dy)" in caught.value.__notes__[0]


def tanh_in_single(x):
    slope = 1 - np.tanh(x.astype(np.float32)).astype(float) ** 2
    return np.tanh(x), lambda dy: dy * slope


def product_in_single(x, w):
    return x @ w, lambda dy: (dy @ w.T, (x.astype(np.float32).T @ dy.astype(np.float32)).astype(float))


@pytest.mark.parametrize("f", [tanh_in_single, product_in_single])
@pytest.mark.parametrize("seed", range(3))
def test_a_hidden_cast_to_float32_in_back_is_a_fault(f, seed):
    """Its error changes from input to input as rounding does, but float64 does not round that much."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((6, 5)), rng.standard_normal((5, 4))][:f.__code__.co_argcount]
    assert not gradcheck(f, inputs, seed=seed, budget=None, raise_exception=False)


# --- float32 alone, at small inputs -----------------------------------------------------------------------------------

def exp_in_single(factor):
    def exp(x):
        if x.dtype != np.float32:
            raise TypeError("float32 alone")
        return np.exp(x), lambda dy: np.float32(factor) * dy * np.exp(x)
    return exp


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e-2])
def test_a_tolerance_of_more_than_a_percent_passes_nothing(scale):
    """A change of 1e-4 is a thousand roundings of exp(x) in float32; wider steps show the slope to a percent."""
    x = (np.random.default_rng(0).standard_normal(7) * scale).astype(np.float32)
    wrong, right = ([gradcheck(exp_in_single(factor), [x], seed=seed, raise_exception=False, explain=False)
                     for seed in range(6)] for factor in (1.03, 1.0))
    assert not any(wrong)
    assert any(right)
    assert not any(report.pairs[0].wrong for report in right)
