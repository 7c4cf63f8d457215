"""Functions of float16 and bfloat16 alone: right gradients pass, wrong ones are found, and the rest is said."""
import ml_dtypes
import numpy as np
import pytest

from pyllama.testing import gradcheck
from pyllama.testing.methods.integral import verdict
from pyllama.testing.passes import eps_of

DTYPES = [np.float16, ml_dtypes.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])


def halves_alone(*arrays):
    assert all(x.dtype.itemsize == 2 for x in arrays), "half precision only"


def product(x, w):
    halves_alone(x, w)
    return x * w, lambda dy: (dy * w, dy * x)


def tanh(x):
    halves_alone(x)
    y = np.tanh(x)
    return y, lambda dy: dy * (1 - y * y)


def softmax(x):
    halves_alone(x)
    e = np.exp(x - x.max())
    p = e / e.sum()
    return p, lambda dy: p * (dy - (p * dy).sum())


def linear(x, w):
    halves_alone(x, w)
    return x @ w.T, lambda dy: (dy @ w, dy.T @ x)


def norm(x, w):
    halves_alone(x, w)
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-5))

    def back(dy):
        g = dy * w
        return r * g - x * r ** 3 * (g * x).mean(-1, keepdims=True), (dy * x * r).sum(0)
    return x * r * w, back


RIGHT = {product: [(8,), (8,)], tanh: [(8,)], softmax: [(8,)], linear: [(3, 8), (8, 8)], norm: [(3, 8), (8,)]}
each_function = pytest.mark.parametrize("f", RIGHT, ids=[f.__name__ for f in RIGHT])


def checked(f, like, dtype, seed):
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal(shape).astype(dtype) for shape in RIGHT[like]]
    return gradcheck(f, inputs, seed=seed, budget=None, raise_exception=False, explain=False)


@each_dtype
@each_function
def test_right_gradients_pass(f, dtype):
    """12 eps may be hidden: 4 of y, over half a line, and 4 of its gradient.  Those drawn at each node hide less."""
    most = 100 * 2 * 12 * eps_of(dtype)
    for seed in range(4):
        report = checked(f, f, dtype, seed)
        assert report, str(report)
        percent = int(report.notes[-1].split(" %")[0].split()[-1])
        assert 1 <= percent <= most, report.notes[-1]


def with_first(f, change):
    """f, whose first gradient is changed."""
    def g(*inputs):
        y, back = f(*inputs)

        def changed(dy):
            grads = back(dy)
            first, *rest = grads if isinstance(grads, tuple) else (grads,)
            return (change(first), *rest)
        return y, changed
    return g


CHANGES = {"twice": lambda dx: dx + dx, "the sign": lambda dx: -dx, "a half": lambda dx: dx * dx.dtype.type(0.5),
           "zero": lambda dx: 0 * dx}


@each_dtype
@pytest.mark.parametrize("change", CHANGES)
@each_function
def test_wrong_gradients_are_found(f, change, dtype):
    for seed in range(2):
        assert any(pair.wrong for pair in checked(with_first(f, CHANGES[change]), f, dtype, seed).pairs)


def softmax_without_its_sum(x):
    p, _ = softmax(x)
    return p, lambda dy: p * dy


def norm_without_its_mean(x, w):
    y, back = norm(x, w)
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-5))
    return y, lambda dy: (r * dy * w, back(dy)[1])


@each_dtype
@pytest.mark.parametrize(("f", "like"), [(softmax_without_its_sum, softmax), (norm_without_its_mean, norm)])
def test_a_missing_term_is_found(f, like, dtype):
    for seed in range(3):
        assert any(pair.wrong for pair in checked(f, like, dtype, seed).pairs)


def test_one_wrong_entry_is_found():
    def wrong(x, w):
        y, back = product(x, w)

        def changed(dy):
            dx, dw = back(dy)
            dx[3] *= 2
            return dx, dw
        return y, changed

    for seed in range(4):
        assert [pair.input for pair in checked(wrong, product, np.float16, seed).pairs if pair.wrong] == ["x"]


def test_float32_takes_the_place_of_float64_where_only_that_is_refused():
    def tripled(times):
        def f(x):
            assert x.dtype != np.float64, "no doubles"
            return x ** 3, lambda dy: times * 3 * x * x * dy
        return f

    x = np.linspace(0.5, 2, 5).astype(np.float16)
    report = gradcheck(tripled(1), [x], seed=0)
    assert "f was checked in float32, because it refuses float64: AssertionError: no doubles" in report.notes[0]
    assert {verdict.method for verdict in report.pairs[0].verdicts} >= {"differences", "rounding"}
    assert not gradcheck(tripled(x.dtype.type(1.03125)), [x], seed=0, raise_exception=False)


# --- the method itself ------------------------------------------------------------------------------------------------

X = np.array([0.7, -1.3, 2.1, 0.4], np.float16)
ONES = np.ones(4)


def judged(f, df, x=X, dy=ONES):
    return verdict(f, df, x, [x], dy, 2.0 ** -10)


def test_a_kink_on_the_line_and_at_its_middle_is_integrated():
    for corner in (0.0, 0.8):
        relu = lambda x, corner=corner: np.maximum(x - x.dtype.type(corner), 0)         # noqa: E731
        slope = lambda x, corner=corner: (x > corner).astype(x.dtype)                   # noqa: E731
        assert judged(relu, slope).status == "passed"
        assert judged(relu, lambda x, slope=slope: 2 * slope(x)).status == "wrong"


def test_a_jump_is_not_called_wrong():
    assert judged(np.round, np.zeros_like).status != "wrong"
    assert judged(lambda x: x + 3 * (x > 0.75), np.ones_like).status == "undecided"


def test_a_constant_function_has_the_gradient_zero():
    assert judged(lambda x: np.ones_like(x), np.zeros_like).status == "passed"
    assert judged(lambda x: np.ones_like(x), np.ones_like).status == "wrong"


def test_what_rounding_hides_is_undecided():
    """1 + x/4096 is 1 in float16, whatever back says of its slope."""
    def flat(x):
        return 1 + x * x.dtype.type(2.0 ** -12)

    for times in (1, 2):
        found = judged(flat, lambda x, times=times: np.full_like(x, times * 2.0 ** -12))
        assert found.status == "undecided"
        assert found.why.startswith("rounding hides less than")


def test_a_slope_that_rounding_hides_far_beyond_the_line_is_undecided():
    """1 + x/32768 is 1 in float16 for all |x| below 8; a slope of 1/256 would show there."""
    def flat(x):
        return 1 + x * x.dtype.type(2.0 ** -15)

    x = np.array([0.7, 0.9, 0.4], np.float16)
    for slope, status in ((2.0 ** -15, "undecided"), (2.0 ** -8, "wrong")):
        assert judged(flat, lambda x, slope=slope: np.full_like(x, slope), x, np.ones(3)).status == status


def test_a_function_that_ends_on_the_line_is_judged_on_a_narrower_one():
    x = np.array([0.2, 0.5, 0.9], np.float16)
    assert judged(lambda x: np.log(1 - x), lambda x: -1 / (1 - x), x, np.ones(3)).status == "passed"
    assert judged(lambda x: np.log(1 - x), lambda x: 1 / (1 - x), x, np.ones(3)).status == "wrong"


def test_subnormal_numbers_have_fewer_digits():
    x = np.array([1e-3, 2e-3], np.float16)
    assert judged(lambda x: x * x, lambda x: 2 * x, x, np.ones(2)).status in ("passed", "undecided")
