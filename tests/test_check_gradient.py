"""check_gradient accepts right backward passes of all kinds and refuses wrong ones."""
import ctypes
import re

import numpy as np
import pytest

from pyllama import check_gradient
from pyllama.models.layers import project
from pyllama.ops import embedding, rms_norm
from pyllama.testing import GradcheckError
from tests.test_testing import blur

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((3, 4)), RNG.standard_normal(4)


# A complex step is exact to 1e-11 of the terms of <dx, v>.  So are differences of smooth functions: freed of the h² and
# h⁴ of truncation they have, at the best width, an error of some eps^(6/7).  In the sum of terms for a random v, two
# digits of them may cancel.
SHARP = 1e-9


def exact(report):
    """Is each gradient right, by a complex step, to 1e-11 of the slope?"""
    steps = [verdict for pair in report.pairs for verdict in pair.verdicts if verdict.method == "complex step"]
    assert len(steps) == len(report.pairs)
    return bool(report) and blur(report) < SHARP and all(step.error < 1e-11 * abs(step.measured) for step in steps)


def methods(report):
    return {verdict.method for pair in report.pairs for verdict in pair.verdicts}


def scaled(times):
    """x³ with a gradient that is off by a factor."""
    return lambda x: (x ** 3, lambda dy: times * 3 * x * x * dy)


def absolute(times):
    """|x|, which is not holomorphic: a complex step alone would call the right gradient wrong."""
    return lambda x: (np.abs(x), lambda dy: times * np.sign(x) * dy)


def real_only(times):
    """A function that refuses complex numbers."""
    def f(x):
        if np.iscomplexobj(x):
            raise TypeError("real numbers only")
        return np.exp(x), lambda dy: times * np.exp(x) * dy
    return f


@pytest.mark.parametrize("f", [scaled, absolute, real_only])
def test_the_right_gradient_passes_and_one_that_is_off_by_a_little_does_not(f):
    assert blur(check_gradient(f(1.0), [X], seed=0)) < SHARP
    with pytest.raises(GradcheckError, match="The gradient of y with respect to x is wrong"):
        check_gradient(f(1.0 + 1e-6), [X])


def test_a_holomorphic_function_is_checked_to_rounding():
    assert exact(check_gradient(scaled(1.0), [X], seed=0))
    with pytest.raises(GradcheckError):
        check_gradient(scaled(1.0 + 1e-10), [X])


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_the_error_is_relative_to_the_gradient_however_small_it_is(scale):
    def scaled_mean(times):
        return lambda x: (scale * x.mean(), lambda dy: np.full(x.shape, times * scale * dy / x.size))

    assert exact(check_gradient(scaled_mean(1.0), [X], seed=0))
    for times in (0.0, 1.01):
        with pytest.raises(GradcheckError):
            check_gradient(scaled_mean(times), [X])


def test_rounding_where_the_true_gradient_is_zero_is_not_an_error():
    """The softmax of any scores sums to one."""
    def total(x):
        p = np.exp(x) / np.exp(x).sum()
        return p.sum(), lambda dy: p * (dy - (p * dy).sum())

    check_gradient(total, [10 * X])


def refuses_by_assertion(x):
    assert x.dtype == np.float64
    return x * x, lambda dy: 2 * x * dy


def refuses_by_an_error_of_its_own(x):
    if np.iscomplexobj(x):
        raise RuntimeError("real numbers only")
    return x * x, lambda dy: 2 * x * dy


def drops_the_imaginary_part(x):
    x = np.asarray(x, float)
    return x * x, lambda dy: 2 * x * dy


@pytest.mark.parametrize("f", [refuses_by_assertion, refuses_by_an_error_of_its_own, drops_the_imaginary_part])
def test_a_function_may_refuse_complex_numbers_in_any_way(f):
    assert blur(check_gradient(f, [X], seed=0)) < SHARP


def test_ops_and_layers_with_integers_and_trees_pass():
    assert exact(check_gradient(rms_norm, [X, W], seed=0))
    assert exact(check_gradient(embedding, [np.array([[0, 2, 2]]), X], seed=0))
    assert exact(check_gradient(project, [X, {"weight": RNG.standard_normal((2, 4)), "bias": np.ones(2)}], seed=0))


def test_several_outputs_have_a_gradient_each():
    def parts(x):
        return (np.sin(x), x.sum()), lambda dy: np.cos(x) * dy[0] + dy[1]

    assert exact(check_gradient(parts, [X], seed=0))
    with pytest.raises(GradcheckError):
        check_gradient(lambda x: ((np.sin(x), x.sum()), lambda dy: np.cos(x) * dy[0]), [X])


def test_the_array_that_is_wrong_is_named():
    def affine(x, p):
        return p["scale"] * x + p["shift"], lambda dy: (p["scale"] * dy, {"scale": dy * x, "shift": 2 * dy})

    with pytest.raises(GradcheckError, match="The gradient of y with respect to p at shift is wrong"):
        check_gradient(affine, [X, {"scale": X + 2, "shift": X - 1}])


def test_float32_inputs_are_checked_in_float64():
    assert exact(check_gradient(scaled(1.0), [X.astype(np.float32)], seed=0))


def test_a_gradient_that_is_not_a_number_is_wrong():
    with pytest.raises(GradcheckError):
        check_gradient(lambda x: (x, lambda dy: dy * np.nan), [X])


@pytest.mark.parametrize(("back", "kind", "message"), [
    (lambda dy: None, "no gradient", "no gradient for x, which is floating"),
    (lambda dy: dy.sum(), "wrong shape", r"the gradient of x has shape \(\), the input has \(3, 4\)"),
    (lambda dy: dy[None], "wrong shape", r"shape \(1, 3, 4\), .*; sum it over the axes along which x was broadcast"),
    (lambda dy: dy + 0j, "wrong dtype", "x is complex128, but the input is float64; return that precision"),
    (lambda dy: dy.astype(np.float32), "wrong dtype", "the gradient of x is float32, but the input is float64"),
    (lambda dy: np.ones(X.shape, int), "wrong dtype", "the gradient of x is int64"),
    (lambda dy: dy.astype(object), "wrong dtype", "the gradient of x is object"),
])
def test_anything_but_a_gradient_is_a_fault_with_its_cause_and_cure(back, kind, message):
    report = check_gradient(lambda x: (x, back), [X], raise_exception=False)
    assert not report
    fault, *_ = report.faults
    assert fault.kind == kind
    assert re.search(message, fault.sentence)


def test_another_number_of_gradients_is_refused():
    with pytest.raises(TypeError, match="back returned a tuple of 2 for 1 input"):
        check_gradient(lambda x: (x, lambda dy: (dy, dy)), [X])


def test_one_array_is_one_input():
    assert check_gradient(scaled(1.0), X)


@pytest.mark.parametrize(("f", "message"), [
    (lambda x: x, "f returned an array; return y, back"),
    (lambda x: (x, x), "f returned a tuple of 2; return y, back"),
    (lambda x: (x, x, lambda dy: dy), "f returned a tuple of 3; return y, back"),
    (lambda x: (x + 0j, lambda dy: dy), "f returned complex128; .* the real and the imaginary part are two outputs"),
    (lambda x: (x * np.nan, lambda dy: dy), "f returned NaN; check it at inputs where it is defined"),
])
def test_a_forward_pass_of_another_form_is_refused_in_one_sentence(f, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_gradient(f, [X])


@pytest.mark.parametrize(("x", "message"), [
    (np.array([1, 2, 3]), "no input is floating, so there is no gradient to check"),
    (X + 0j, "x is complex128; .* the real and the imaginary part are two inputs"),
    (np.array(["a"]), "x is <U1; give floating arrays"),
])
def test_inputs_without_a_gradient_to_check_are_refused(x, message):
    """They used to pass, whatever back returned."""
    with pytest.raises(TypeError, match=message):
        check_gradient(lambda x: (x, lambda dy: 0 * dy), [x])


# --- functions that are not holomorphic -------------------------------------------------------------------------------

def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def single(x):
    """tanh of a complex or real x in half of the precision of float64."""
    return np.tanh(x.astype(np.complex64 if np.iscomplexobj(x) else np.float32))


HOLOMORPHIC = {
    "exp": (np.exp, np.exp, X),
    "relu by maximum": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0, X),
    "relu by where": (lambda x: np.where(x > 0, x, 0), lambda x: (x > 0) * 1.0, X),
    "clip": (lambda x: np.clip(x, -1, 1), lambda x: (np.abs(x) < 1) * 1.0, X),
    "log of all sizes": (np.log, lambda x: 1 / x, np.array([1e-9, 1.0, 1e3])),
    "an offset": (lambda x: 1e6 + x, np.ones_like, X),
    "a fast sine": (lambda x: np.sin(1e3 * x), lambda x: 1e3 * np.cos(1e3 * x), X),
    "an inner maximum": (lambda x: np.exp(x - x.real.max()) * np.exp(x.real.max()), np.exp, X),
}
OTHERS = {
    "abs": (np.abs, np.sign, X),
    "huber": (lambda x: np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5), lambda x: np.clip(x, -1, 1), X),
    "softplus": (softplus, sigmoid, 10 * X),
    "softplus far out": (softplus, sigmoid, np.array([24.0])),
    "x sign(x)": (lambda x: x * np.sign(x), np.sign, X),
    "root of abs": (lambda x: np.sqrt(np.abs(x)), lambda x: np.sign(x) / 2 / np.sqrt(np.abs(x)), X),
    "the real part": (lambda x: x.real ** 2, lambda x: 2 * x, X),
    "conj": (lambda x: x * np.conj(x), lambda x: 2 * x, X),
    "one branch": (lambda x: np.where(x.real > 0, np.abs(x) ** 3, x ** 3), lambda x: 3 * x * x, X),
    "a millionth": (lambda x: x ** 3 + 1e-6 * np.abs(x), lambda x: 3 * x * x + 1e-6 * np.sign(x), X),
    "a cast": (lambda x: np.tanh(np.asarray(x, float)), lambda x: 1 - np.tanh(x) ** 2, X),
    "arctan2": (lambda x: np.arctan2(x, 2.0), lambda x: 2 / (4 + x * x), X),
    "tiny": (lambda x: 1e-12 * np.abs(x), lambda x: 1e-12 * np.sign(x), X),
    "huge": (lambda x: 1e12 * np.abs(x), lambda x: 1e12 * np.sign(x), X),
    "abs at 0": (np.abs, np.sign, np.array([0.0, 1.0, -2.0, 0.0])),
    "float32 within": (lambda x: single(x).astype(np.result_type(single(x), float)), lambda x: 1 - np.tanh(x) ** 2, X),
}


# How exactly a function can be judged that computes with a precision of its own, or with numbers beside its inputs: two
# digits, as for SHARP, more than 64 eps of float32, and than 4 eps of 1e6.
ROUNDED = {"float32 within": 1e-3, "an offset": 1e-7}


def reduced(f, df, how, times):
    """f of an array, or its sum or mean, with a gradient that is off by a factor."""
    def of_array(x):
        return f(x), lambda dy: times * df(x) * dy

    def of_sum(x):
        size = x.size if how == "mean" else 1
        return np.sum(f(x)) / size, lambda dy: times * df(x) * dy / size

    return of_array if how == "array" else of_sum


@pytest.mark.parametrize("how", ["array", "sum", "mean"])
@pytest.mark.parametrize("name", [*HOLOMORPHIC, *OTHERS])
def test_every_function_is_judged_rightly_and_the_result_says_how(name, how):
    f, df, x = (HOLOMORPHIC | OTHERS)[name]
    report = check_gradient(reduced(f, df, how, 1.0), [x], seed=0)
    assert blur(report) < ROUNDED.get(name, SHARP)
    if name in HOLOMORPHIC:
        assert "complex step" in methods(report)
    elif name != "float32 within":                  # complex64 is holomorphic, but not exact
        assert "differences" in methods(report)
    for times in (0.0, 1.01, -1.0):
        with pytest.raises(GradcheckError):
            check_gradient(reduced(f, df, how, times), [x])


def test_a_row_norm_is_judged_by_differences():
    def unit(x):
        n = np.linalg.norm(x, axis=-1, keepdims=True)
        y = x / n
        return y, lambda dy: (dy - y * (dy * y).sum(-1, keepdims=True)) / n

    report = check_gradient(unit, [X], seed=0)
    assert "differences" in methods(report)
    assert blur(report) < SHARP
    with pytest.raises(GradcheckError, match="differences"):
        check_gradient(lambda x: (unit(x)[0], lambda dy: dy / np.linalg.norm(x, axis=-1, keepdims=True)), [X])


def test_a_kink_at_the_inputs_is_avoided():
    """The largest of equal numbers: each subgradient is right, but beside them there is only one."""
    def largest(x):
        return x.max(), lambda dy: dy * (np.arange(x.size) == x.argmax())

    assert blur(check_gradient(largest, [np.ones(4)], seed=0)) < SHARP
    with pytest.raises(GradcheckError):
        check_gradient(lambda x: (x.max(), lambda dy: dy * np.ones(4)), [np.ones(4)])


def test_a_function_without_a_slope_anywhere_is_not_judged():
    noise = np.random.default_rng(0)
    with pytest.raises(ValueError, match="is random: two calls"):
        check_gradient(lambda x: (noise.standard_normal(x.shape), lambda dy: 0 * dy), [X])


def test_a_function_of_float32_alone_is_called_with_float32():
    def f(x, times=1.0):
        assert x.dtype == np.float32
        return x * x, lambda dy: np.float32(2 * times) * x * dy

    assert check_gradient(f, [X.astype(np.float32)])
    for times in (0.5, 1.001):
        with pytest.raises(GradcheckError):
            check_gradient(lambda x, times=times: f(x, times), [X.astype(np.float32)], seed=0)


def test_a_gradient_may_have_the_precision_that_the_inputs_had():
    """A loss may be a Python number, whose precision nobody knows."""
    def f(x, times=1.0):
        x = x.astype(np.float32)
        return float(np.sum(x * x)), lambda dy: np.float32(2 * times) * x * np.float32(dy)

    assert check_gradient(f, [X.astype(np.float32)])
    with pytest.raises(GradcheckError, match="The gradient of y with respect to x is wrong"):
        check_gradient(lambda x: f(x, 1.01), [X.astype(np.float32)], seed=0)
    with pytest.raises(GradcheckError, match="the gradient of x is float32, but the input is float64"):
        check_gradient(f, [X])


def test_a_function_in_c_that_takes_no_complex_array_is_judged_by_differences():
    """It reads the numbers of any array as doubles."""
    memory = ctypes.pythonapi.PyMemoryView_FromMemory
    memory.restype, memory.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]

    def cubed(x):
        x = np.ascontiguousarray(x)
        a = np.frombuffer(memory(x.ctypes.data, 8 * x.size, 0x100), float).reshape(x.shape)
        return a ** 3

    report = check_gradient(lambda x: (cubed(x), lambda dy: 3 * x * x * dy), [X], seed=0)
    assert "differences" in methods(report)
    assert blur(report) < SHARP
    with pytest.raises(GradcheckError):
        check_gradient(lambda x: (cubed(x), lambda dy: x * x * dy), [X])


# --- passes that change what is not theirs ----------------------------------------------------------------------------

def changes_its_input(x):
    x *= 2
    return x.copy(), lambda dy: 2 * dy


def changes_dy(x):
    def back(dy):
        dy *= x
        return 2 * dy.copy()
    return x * x, back


def changes_the_input_later(x):
    def back(dy):
        dx = 2 * x * dy
        x[:] = 0
        return dx
    return x * x, back


def changes_the_output(x):
    y = np.exp(x)

    def back(dy):
        y[:] *= dy
        return y.copy()
    return y, back


@pytest.mark.parametrize(("f", "message"), [
    (changes_its_input, "changes its inputs in place"), (changes_dy, "back changes dy in place"),
    (changes_the_input_later, "back changes the inputs in place"), (changes_the_output, "back changes y in place")])
def test_a_pass_that_changes_an_array_in_place_is_refused(f, message):
    x = X.copy()
    with pytest.raises(GradcheckError, match=message):
        check_gradient(f, [x])
    np.testing.assert_array_equal(x, X)                     # the array of the caller stays


def test_a_second_call_of_back_must_give_the_same():
    def f(x):
        slope = 2 * x

        def back(dy):
            dx = dy * slope
            slope[:] = 0
            return dx
        return x * x, back

    with pytest.raises(GradcheckError, match="the second call of back gives another gradient of x"):
        check_gradient(f, [X])
