"""What users of other gradient checkers complained of does not happen here."""
import re

import numpy as np
import pytest

from pyllama.testing import gradcheck

RNG = np.random.default_rng(0)


def checked(func, inputs, **options):
    return gradcheck(func, inputs, raise_exception=False, seed=0, budget=None, **options)


def by(report, method):
    return next(verdict for verdict in report.pairs[-1].verdicts if verdict.method == method)


def real_only(f):
    """f as a function that refuses complex numbers, so that only differences and the order are left."""
    def g(*inputs):
        assert not any(np.iscomplexobj(x) for x in inputs)
        return f(*inputs)
    return g


@pytest.mark.parametrize(("times", "status"), [(1.0, "passed"), (1.001, "wrong")])
def test_there_is_a_verdict_without_an_eps(times, status):
    """tesseract-core#740 asks for a verdict of the Taylor remainder, in place of a step that the user must choose."""
    report = checked(real_only(np.tanh), [RNG.standard_normal(5)],
                     backward=lambda dy, x: times * dy * (1 - np.tanh(x) ** 2), methods=["order"])
    assert by(report, "order").status == status
    assert bool(report) == (status == "passed")


def test_inputs_of_very_different_sizes_pass():
    """tesseract-core#706: 400 of 400 right gradients failed, since an eps that was documented as relative was absolute.

    There, inputs of 1e-12 to 1e12 were moved by the same step.
    """
    sizes = 10.0 ** np.arange(-12, 13, 3)
    for k, f in enumerate([np.square, np.sqrt, np.log, np.reciprocal]):
        df = [lambda x: 2 * x, lambda x: 0.5 / np.sqrt(x), lambda x: 1 / x, lambda x: -1 / x ** 2][k]
        for how in (f, real_only(f)):
            x = sizes * RNG.uniform(1, 2, sizes.shape)
            assert checked(how, [x], backward=lambda dy, x, df=df: dy * df(x))
            assert not checked(how, [x], backward=lambda dy, x, df=df: 1.01 * dy * df(x))


def test_the_report_says_which_side_is_which():
    """jax PR #39821 (for jax#7742): the two numbers of a failed check had no names."""
    report = checked(np.square, [np.array([3.0])], backward=lambda dy, x: dy * x)
    worst = report.pairs[0].worst
    assert worst.measured == pytest.approx(2 * worst.claimed)
    text = str(report)
    assert "claimed" in text.splitlines()[2]
    assert "(back says)" in text.splitlines()[3]
    assert "(f does)" in text.splitlines()[3]
    assert f"back says {worst.claimed:.9g}, f does {worst.measured:.9g}" in worst.why


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_step_does_not_vanish_in_half_precision(dtype):
    """jax PR #39821: a step of 1e-4 is rounded away beside 1 in these types, so that every difference is 0."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = np.array([1.0, 2.0, -3.0]).astype(dtype)
    assert checked(np.square, [x], backward=lambda dy, x: (x + x) * dy)
    wrong = checked(np.square, [x], backward=lambda dy, x: x * dy).pairs[0].worst
    assert wrong.measured == pytest.approx(2 * wrong.claimed)


def test_a_function_of_float16_alone_is_judged_and_the_report_says_how_well():
    def as_given(x):
        assert x.dtype == np.float16, "half precision only"
        return x * x

    for times in (1, 2):
        report = checked(as_given, [np.array([1.0, 2.0, -3.0], np.float16)],
                         backward=lambda dy, x, times=times: x.dtype.type(2 * times) * x * dy)
        assert bool(report) == (times == 1), str(report)
        assert any("because it refuses float64: AssertionError: half precision only" in note for note in report.notes)
    note = gradcheck(as_given, [np.array([1.0, 2.0, -3.0], np.float16)], backward=lambda dy, x: (x + x) * dy, seed=0
                     ).notes[-1]
    assert re.fullmatch("in float16 alone, an error of less than [1-4] % of a gradient may not show", note)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nan_is_one_sentence_where_warnings_are_errors(dtype):
    """They are in these tests."""
    with pytest.raises(ValueError, match=r"^log returned NaN; check it at inputs where it is defined"):
        checked(np.log, [np.array([-1.0, 2.0], dtype)], backward=lambda dy, x: dy / x)


def test_a_warning_of_the_function_stays_an_error_if_its_outputs_are_numbers():
    def logistic(x):
        return 1 / (1 + np.exp(-x))                         # exp overflows, and the result is 0

    with pytest.raises(RuntimeWarning, match="overflow"):
        checked(logistic, [np.array([-1e4, 2.0])], backward=lambda dy, x: dy * logistic(x) * logistic(-x))


def test_a_relative_error_of_a_thousand_does_not_pass():
    """warp#508: a relative error of 1.6e3 was PASS, because the absolute error was below atol."""
    x = 1e-6 * RNG.standard_normal(4)
    for f in (np.square, real_only(np.square)):
        report = checked(f, [x], backward=lambda dy, x: 1.6e3 * 2 * x * dy)
        assert not report
        assert report.pairs[0].worst.severity > 1e3


def test_the_report_states_the_inequality_that_the_tolerance_applies_to():
    """Enzyme.jl#2724: nobody could say which numbers a tolerance was compared with."""
    for times in (1, 2):
        for verdict in checked(np.square, [np.array([3.0, 1.5])], backward=lambda dy, x: times * 2 * x * dy  # noqa: B023
                               ).pairs[0].verdicts:
            assert verdict.error == pytest.approx(abs(verdict.claimed - verdict.measured), abs=1e-15)
            assert (verdict.error <= verdict.tolerance) == (verdict.status == "passed")
    text = str(checked(np.square, [np.array([3.0])], backward=lambda dy, x: x * dy))
    assert "|claimed - measured|" in text
    assert "≤ tolerance" in text
    assert "> " in text.splitlines()[4]


def test_inputs_of_zeros_and_ones_hide_nothing():
    """OpenMDAO's POEM 28: a derivative with a missing factor is right where the factor is 1, or the term 0."""
    w, b = np.ones(3), np.zeros(3)
    x = RNG.standard_normal((2, 3))

    def affine(x, w, b):
        return x * w + b * b

    def backward(dy, x, w, b):
        return dy, (dy * x).sum(0), dy.sum(0) * b           # w is missing, and the factor 2

    assert {pair.input for pair in checked(affine, [x, w, b], backward=backward).pairs if pair.wrong} == {"x", "b"}
