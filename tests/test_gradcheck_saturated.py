"""gradcheck where an output or an entry is tiny beside others, and where functions are saturated."""
import numpy as np
import pytest

from pyllama.testing import gradcheck

RNG = np.random.default_rng(0)


def gauss(x):
    y = np.exp(-x * x / 2)
    return y, lambda dy: -x * y * dy


def sigmoid(x):
    with np.errstate(over="ignore"):
        y = 1 / (1 + np.exp(-x))
    return y, lambda dy: dy * y * (1 - y)


def softmax(x):
    p = np.exp(x - x.real.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p, lambda dy: p * (dy - (dy * p).sum(-1, keepdims=True))


@pytest.mark.parametrize("f", [gauss, sigmoid, softmax])
@pytest.mark.parametrize("scale", [10, 30, 100, 300])
def test_where_an_output_is_tiny_a_right_gradient_is_right(f, scale):
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((2, 4)) * scale
        assert gradcheck(f, [x], seed=seed, budget=None, explain=False)


def test_where_an_output_is_tiny_a_wrong_gradient_is_wrong():
    x = np.array([0.3, 1.0, -20.0])
    for i in range(3):
        dropped = np.where(np.arange(3) == i, 1.01, 1.0)
        wrong = lambda x: (softmax(x)[0], lambda dy: dropped * softmax(x)[1](dy))         # noqa: B023, E731
        assert not gradcheck(wrong, [x], seed=0, budget=None, explain=False, raise_exception=False)


def test_a_small_entry_is_checked_beside_a_large_sum():
    scales = np.array([1e8, 1, 1, 1, 1, 1e-8])
    wrong = scales * [1, 1, 1, 1, 1, 2]
    x = RNG.standard_normal(6)
    assert gradcheck(lambda x: ((scales * x).sum(), lambda dy: dy * scales), [x], seed=0)
    report = gradcheck(lambda x: ((scales * x).sum(), lambda dy: dy * wrong), [x], seed=0, raise_exception=False)
    assert report.pairs[0].index == (5,)


@pytest.mark.parametrize("f", [lambda x: 1e-18 * x * np.abs(x), lambda x: 1e-15 * x])
def test_a_gradient_of_zeros_is_wrong_where_outputs_are_tiny_without_cancellation(f):
    """1e-12 is less than a rounding of the inputs, but f changes by much less than that."""
    x = np.array([1000.0, 0.0])
    report = gradcheck(lambda x: (f(x), lambda dy: 0 * x * dy), [x], seed=0, raise_exception=False)
    assert report.pairs[0].wrong


def test_the_case_of_a_mistake_in_float32_is_in_float32():
    def f(x):
        factor = 3 if x.dtype == np.float32 else 2
        return x * x, lambda dy: (factor * x * dy).astype(x.dtype)

    report = gradcheck(f, [np.float32([0.5, 1.25, 3.0])], seed=1, raise_exception=False)
    assert "x = np.array([0.5, 1.25, 3.0], dtype=np.float32)" in report.case
