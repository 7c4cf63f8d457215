"""Right gradients of functions that lose digits: rounding, however large, is no mistake."""
import numpy as np
import pytest

from pyllama.testing import gradcheck


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
