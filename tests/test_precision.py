"""Low precision beside float64: what rounding explains passes, whatever the dtype; needless losses are wrong."""
import ml_dtypes
import numpy as np
import pytest

from pyllama.testing.methods.precision import bounds, check

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((8, 64)), RNG.standard_normal((64, 16))
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def judged(f, inputs, dtype=np.float32, dy=None):
    """The verdicts of y and of each gradient."""
    def run(inputs, dys):
        with np.errstate(all="ignore"):
            y, back = f(*inputs)
            return (y,), back(dys[0])

    low = [x.astype(dtype) for x in inputs]
    with np.errstate(all="ignore"):
        shape = np.shape(f(*low)[0])
    dy = np.asarray(RNG.standard_normal(shape) if dy is None else dy).astype(dtype)
    return check(run, low, [dy])


def softmax(x, shift=True):
    e = np.exp(x - x.max(-1, keepdims=True) if shift else x)
    p = e / e.sum(-1, keepdims=True)
    return p, lambda dy: (p * (dy - (p * dy).sum(-1, keepdims=True)),)


def matmul(x, w):
    return x @ w, lambda dy: (dy @ w.T, x.T @ dy)


def in_order(x):
    """A sum of one term after the other."""
    return np.cumsum(x, dtype=x.dtype)[-1], lambda dy: (np.full_like(x, dy),)


RIGHT = {
    "matmul": (matmul, [X, W]),
    "softmax": (softmax, [3 * X]),
    "tanh": (lambda x: (np.tanh(x), lambda dy: (dy * (1 - np.tanh(x) ** 2),)), [X]),
    "a norm": (lambda x: (x / np.sqrt((x * x).sum(-1, keepdims=True)), lambda dy: (dy,)), [X]),
    "no numbers": (lambda x: (2 * x, lambda dy: (2 * dy,)), [np.ones((0, 3))]),
    "one number": (lambda x: (x * x, lambda dy: (2 * x * dy,)), [np.array(3.0)]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_functions_pass_in_every_precision(name, dtype):
    assert {verdict.status for verdict in judged(*RIGHT[name], dtype=dtype)} == {"passed"}


@pytest.mark.parametrize("numbers", [np.abs(RNG.standard_normal(100_000)), RNG.standard_normal(100_000)])
def test_the_rounding_of_a_long_sum_is_explained(numbers):
    """An error of some √n eps, which no change of the terms by an eps gives."""
    assert judged(in_order, [numbers])[0].status == "passed"


def rounded_in_back(x, w):
    """A float32 layer whose gradient of w is rounded to half precision (as in pytorch#190828)."""
    def half(a):
        return a.astype(np.float16).astype(a.dtype) if a.dtype == np.float32 else a
    return x @ w, lambda dy: (dy @ w.T, half(x.T @ dy))


def far_variance(x):
    mean = x.mean(-1, keepdims=True)
    return np.mean(x * x, -1) - mean[:, 0] ** 2, lambda dy: (2 * dy[:, None] * (x - mean) / x.shape[1],)


def far_offset(x):
    million = x.dtype.type(1e6)
    return (x + million) - million, lambda dy: (dy,)


NEEDLESS = {
    "half precision in back": (rounded_in_back, [X, W], ["passed", "passed", "wrong"]),
    "E x² - (E x)²": (far_variance, [1000 + X], ["wrong", "passed"]),
    "+ 1e6 - 1e6": (far_offset, [X], ["wrong", "passed"]),
    "log(1 + x)": (lambda x: (np.log(1 + x), lambda dy: (dy / (1 + x),)), [1e-6 * np.abs(X)], ["wrong", "passed"]),
    "exp(x) - 1": (lambda x: (np.exp(x) - 1, lambda dy: (dy * np.exp(x),)), [1e-4 * X], ["wrong", "passed"]),
    "exp(x) without a shift": (lambda x: softmax(x, shift=False), [100 * X], ["wrong", "wrong"]),
}


@pytest.mark.parametrize("name", NEEDLESS)
def test_digits_that_need_not_be_lost_are_missed(name):
    """Each loses 30 times what conditioning explains, at least; another algorithm has these digits."""
    f, inputs, expected = NEEDLESS[name]
    verdicts = judged(f, inputs)
    assert [verdict.status for verdict in verdicts] == expected
    for verdict in verdicts:
        assert verdict.status == "passed" or "float32" in verdict.why


def test_the_verdict_says_where_and_how_much_is_explained():
    why = judged(rounded_in_back, [X, W])[2].why
    assert why.startswith("float32 error 0.00")
    assert ", at most " in why
    assert why.endswith(" explained")
    assert " at [" in why


def test_cancellation_inside_that_cannot_be_seen_is_undecided():
    """log Σ exp x - x₀ where x₀ dominates: 1e-8 is left of numbers of 20."""
    def loss(x):
        top = x.max(-1, keepdims=True)
        total = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
        return total - x[:, 0], lambda dy: (np.zeros_like(x),)

    x = X.copy()
    x[:, 0] += 22
    assert judged(loss, [x])[0].status == "undecided"


def test_an_overflow_is_wrong_only_below_the_largest_numbers():
    big = np.full(4, 300.0)
    assert judged(lambda x: (x * x, lambda dy: (2 * x * dy,)), [big], np.float16)[0].status == "undecided"
    assert judged(lambda x: (x * x / 300, lambda dy: (2 * x * dy / 300,)), [big], np.float16)[0].status == "wrong"


def test_ill_conditioning_is_explained_and_noted():
    """(x - 1)³ near 1: of its distance from 1 x has three of seven digits, and 256 roundings may take two more."""
    def cubed(x):
        return (x - 1) ** 3, lambda dy: (3 * (x - 1) ** 2 * dy,)

    y, dx = judged(cubed, [1 + 1e-4 * X])
    assert (y.status, dx.status) == ("passed", "passed")
    assert y.why == "ill-conditioned: 1 digit left"


def test_a_bound_is_that_of_the_number_and_grows_with_eps():
    def run(inputs, dys):
        return [inputs[0] ** 2], [2 * inputs[0] * dys[0]]

    fine, rough = (bounds(run, [np.array([1.0, 1e3])], [np.ones(2)], eps)[0] for eps in (2.0 ** -23, 2.0 ** -10))
    assert fine.exact.tolist() == [1, 1e6]
    assert rough.explained == pytest.approx(2 ** 13 * fine.explained, rel=1e-2)
