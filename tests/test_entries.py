"""The derivative entry by entry: exact or with an error bar that holds, at entries of any size and at borders."""
import time

import numpy as np
import pytest

from pyllama.testing.methods.compare import direction, entrywise
from pyllama.testing.methods.entries import entries

RNG = np.random.default_rng(0)
X = RNG.standard_normal(6)
WIDE = np.array([1e-30, 1.0, 0.0, 1e30, -3.0])
P = np.array([1e-9, 0.3, 0.999, 1 - 1e-9])


def real(f):
    """f, which refuses complex numbers."""
    def g(x):
        if np.iscomplexobj(x):
            raise TypeError("real numbers only")
        return f(x)
    return g


def lines(f, x):
    def along(index, t):
        moved = x.astype(np.result_type(x, type(t)))
        moved[index] += t
        with np.errstate(all="ignore"):
            return np.ravel(f(moved))
    return along


def softmax(x):
    p = np.exp(x)
    return p / p.sum()


def softmax_back(x, dy):
    p = softmax(x)
    return p * (dy - (p * dy).sum())


FUNCTIONS = {
    "square": (lambda x: x * x, lambda x, dy: 2 * x * dy, WIDE),
    "log": (np.log, lambda x, dy: dy / x, np.array([1e-30, 1.0, 1e30, 2.0])),
    "a sum": (lambda x: x.sum(), lambda x, dy: dy + 0 * x, np.array([1e-30, 1.0, 0.0, 3.0])),
    "softmax": (softmax, softmax_back, X),
    "arctanh": (np.arctanh, lambda x, dy: dy / ((1 - x) * (1 + x)), np.array([0.999999, 0.5, 0.0, -0.9])),
    "entropy": (lambda p: -np.log(p) - 2 * np.log1p(-p), lambda p, dy: dy * (2 / (1 - p) - 1 / p), P),
    "some axes": (lambda x: np.cumsum(x)[1::2], lambda x, dy: np.cumsum(dy[::-1])[::-1][[0, 0, 1, 1, 2, 2]], X),
}


@pytest.mark.parametrize("kind", ["complex", "real"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_bar_holds_and_is_narrow(name, kind):
    """By a complex step 1e-11, by differences 1e-8, less near the end of a domain.

    At a distance of 1e-6, a step of 1e-7 is rounded to a multiple of 1e-16, so that 1e-9 is lost; at 1e-9, 1e-6.  The
    bar has room for all terms of the extrapolation, neighbors and noise at its worst: a factor of 10⁴ covers them.
    """
    f, back, x = FUNCTIONS[name]
    dy = RNG.standard_normal(np.size(f(np.abs(x) if name == "log" else x)))
    found = entries(lines(f if kind == "complex" else real(f), x), dy, x)
    right = back(x, dy)
    assert found.holomorphic == (kind == "complex")
    assert (np.abs(found.value - right) <= found.error).all()
    largest = np.where(x == 1 - 1e-9, 1e-2, 1e-5 if name == "arctanh" else 1e-8) if kind == "real" else 1e-9
    assert (found.error <= largest * np.maximum(np.abs(right), np.abs(dy).max() if name == "softmax" else 0) +
            (right == 0) * 1e-9).all()


def test_a_function_that_drops_imaginary_parts_is_measured_by_differences():
    for f in (np.abs, lambda x: np.asarray(x.real), lambda x: x * np.conj(x), lambda x: np.maximum(x, 0)):
        x = np.append(X, 0.0)
        assert not entries(lines(f, x), np.ones(7), x).holomorphic


def test_kinks_have_the_slopes_of_both_sides_as_their_error():
    x = np.array([0.0, 1.0, -2.0, 1e-20])
    found = entries(lines(np.abs, x), np.array([3.0, 1.0, 1.0, 1.0]), x)
    assert found.kink.tolist() == [True, False, False, False]
    assert found.value == pytest.approx([0, 1, -1, 1], abs=1e-9)
    assert found.error[0] == pytest.approx(3, rel=1e-9)
    assert (found.error[1:] < 1e-9).all()
    ties = entries(lines(lambda x: x.max(), np.ones(4)), np.ones(1), np.ones(4))
    assert ties.kink.all()
    assert (ties.value, ties.error) == (pytest.approx(np.full(4, 0.5)), pytest.approx(np.full(4, 0.5)))


def test_an_extremum_is_not_a_kink():
    x = np.array([0.0, 1.0])
    assert not entries(lines(real(np.square), x), np.ones(2), x).kink.any()


def test_borders_are_measured_from_inside():
    def inside(x):
        return np.where((x < 0) | (x > 1), np.nan, x * (2 + x))

    x = np.array([0.0, 1.0, 0.5])
    found = entries(lines(real(inside), x), np.ones(3), x)
    assert found.value == pytest.approx([2, 4, 3], rel=1e-8)
    assert (np.abs(found.value - [2, 4, 3]) <= found.error).all()


def test_a_function_that_raises_outside_its_domain_is_measured_inside():
    def root(x):
        if (x < 0).any():
            raise ValueError("negative")
        return np.sqrt(x)

    x = np.array([1e-12, 1.0])
    assert entries(lines(real(root), x), np.ones(2), x).value == pytest.approx([5e5, 0.5], rel=1e-8)


@pytest.mark.parametrize("f", [np.sqrt, real(np.sqrt)])
def test_an_infinite_slope_is_not_measured(f):
    x = np.array([0.0, 1.0])
    found = entries(lines(f, x), np.ones(2), x)
    assert np.isnan(found.value[0])
    assert found.value[1] == pytest.approx(0.5)


def test_infinite_entries_are_left_out():
    x = np.array([1.0, np.inf])
    found = entries(lines(lambda x: np.exp(-x), x), np.ones(2), x)
    assert np.isnan(found.value).tolist() == [False, True]


def test_what_comes_after_the_deadline_is_not_measured():
    found = entries(lines(np.exp, X), np.ones(6), X, deadline=time.monotonic())
    assert np.isnan(found.value).all()
    assert np.isnan(entries(lines(np.exp, X), np.ones(6), X, which=[(2,)]).value).sum() == 5


def test_a_function_in_float32_has_the_error_of_float32():
    """Its best step is 1e-2 or so: the noise of 6e-8 is 6e-6 of the slope there, and less than 1e-3 with its bound."""
    def single(x):
        return np.tanh(x.astype(np.complex64 if np.iscomplexobj(x) else np.float32)).astype(np.result_type(x, float))

    found = entries(lines(single, X), np.ones(6), X)
    right = 1 / np.cosh(X) ** 2
    assert not found.holomorphic
    assert (np.abs(found.value - right) <= found.error).all()
    assert (found.error < 1e-3 * right).all()


def test_what_an_output_rounds_away_does_not_contradict_a_complex_step():
    """The large outputs of a softmax move by 1e-18: no difference shows that."""
    x = np.array([0.3, 1.0, -40.0])
    dy = np.array([1.0, -2.0, 0.5])
    found = entries(lines(softmax, x), dy, x)
    right = softmax_back(x, dy)
    assert found.holomorphic
    assert (np.abs(found.value - right) <= found.error).all()
    assert found.value[2] == pytest.approx(right[2], rel=1e-6)


def test_without_complex_steps_what_an_output_rounds_away_is_unknown_not_zero():
    """At 40, tanh is 1 for all steps."""
    x = np.array([40.0])
    found = entries(lines(real(np.tanh), x), np.ones(1), x)
    assert found.value.tolist() == [0]
    assert 1e-17 < found.error[0] < 1e-13


def test_the_error_of_numbers_whose_squares_vanish_is_not_zero():
    x = np.array([-390.0, 100.0])
    found = entries(lines(real(np.exp), x), np.ones(2), x)
    assert (np.abs(found.value - np.exp(x)) <= found.error).all()


@pytest.mark.parametrize("f", [np.exp, lambda x: 1 / (1 + np.exp(-x))])
def test_a_complex_step_stays_precise_where_its_usual_imaginary_part_would_be_subnormal(f):
    x = np.array([-690.0, 1.0])
    found = entries(lines(f, x), np.ones(2), x)
    assert found.holomorphic
    assert found.value[0] == pytest.approx(np.exp(-690.0), rel=1e-11)


def test_a_small_entry_does_not_hide_in_the_rounding_of_a_large_sum():
    scales = np.array([1e8, 1, 1, 1, 1, 1e-8])
    found = entries(lines(lambda x: (scales * x).sum(), X), np.ones(1), X)
    assert (np.abs(found.value - scales) <= found.error).all()
    assert found.error[5] < 1e-2 * scales[5]


# --- the verdict ------------------------------------------------------------------------------------------------------

def judged(dx, again=None, f=np.exp, x=X):
    return entrywise(entries(lines(f, x), np.ones(x.size), x), np.asarray(dx), 2.0 ** -52, again)


def test_the_worst_entry_is_named_and_its_numbers_are_given():
    dx = np.exp(X) * [1, 1, 1 + 1e-9, 1, 1 + 1e-6, 1]
    verdict, index = judged(dx)
    assert (verdict.status, index) == ("wrong", (4,))
    assert (verdict.claimed, verdict.measured) == (dx[4], pytest.approx(np.exp(X[4])))
    assert verdict.error == pytest.approx(1e-6 * np.exp(X[4]), rel=1e-4)
    assert judged(np.exp(X))[0].status == "passed"
    assert judged(np.exp(X))[0].method == "complex step"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_entry_that_is_not_a_number_is_wrong(value):
    dx = np.exp(X)
    dx[2] = value
    verdict, index = judged(dx)
    assert (verdict.status, index) == ("wrong", (2,))


def test_a_0_d_input_is_judged():
    x = np.array(0.5)
    assert judged(np.exp(x), f=np.exp, x=x)[0].status == "passed"
    assert judged(1.01 * np.exp(x), f=np.exp, x=x, again=lambda k, index: (1.01, 1.0))[0].status == "wrong"


def test_rounding_of_the_gradient_is_measured_where_an_entry_looks_wrong():
    """An error that is drawn anew at each neighbor is rounding; one that stays is not."""
    noise = np.random.default_rng(1)
    dx = np.exp(X) + np.array([0, 0, 0, 1e-10, 0, 0])
    assert judged(dx, lambda k, index: (noise.normal(scale=1e-10), 0.0))[0].status == "passed"
    assert judged(dx, lambda k, index: (1e-10, 0.0))[0].status == "wrong"


def test_without_a_measured_entry_nothing_is_said():
    found = entries(lines(np.exp, X), np.ones(6), X, deadline=time.monotonic())
    assert entrywise(found, 0 * X, 2.0 ** -52)[0].status == "undecided"


def test_a_zero_is_moved_as_far_as_most_numbers_not_as_their_mean():
    v = direction(np.array([0.0, 1.0, -2.0, 1e30]), np.random.default_rng(0))
    assert abs(v[0]) < 10
    assert (direction(np.array([0.0, np.inf]), np.random.default_rng(0)) == 0).tolist() == [False, True]
