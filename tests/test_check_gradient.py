"""check_gradient accepts right backward passes of all kinds and refuses wrong ones."""
import numpy as np
import pytest

from pyllama.models.layers import project
from pyllama.ops import embedding, rms_norm
from pyllama.testing import check_gradient
from pyllama.testing.function import WrongGradient

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((3, 4)), RNG.standard_normal(4)


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
    assert check_gradient(f(1.0), [X]) < 1e-9
    with pytest.raises(WrongGradient, match="the gradient of input 0 is wrong"):
        check_gradient(f(1.0 + 1e-6), [X])


def test_a_holomorphic_function_is_checked_to_rounding():
    assert check_gradient(scaled(1.0), [X]) < 1e-11
    with pytest.raises(WrongGradient):
        check_gradient(scaled(1.0 + 1e-10), [X])


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_the_error_is_relative_to_the_gradient_however_small_it_is(scale):
    def scaled_mean(times):
        return lambda x: (scale * x.mean(), lambda dy: np.full(x.shape, times * scale * dy / x.size))

    assert check_gradient(scaled_mean(1.0), [X]) < 1e-11
    for times in (0.0, 1.01):
        with pytest.raises(WrongGradient):
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
    assert check_gradient(f, [X]) < 1e-9


def test_ops_and_layers_with_integers_and_trees_pass():
    assert check_gradient(rms_norm, [X, W]) < 1e-11
    assert check_gradient(embedding, [np.array([[0, 2, 2]]), X]) < 1e-11
    assert check_gradient(project, [X, {"weight": RNG.standard_normal((2, 4)), "bias": np.ones(2)}]) < 1e-11


def test_several_outputs_have_a_gradient_each():
    def parts(x):
        return (np.sin(x), x.sum()), lambda dy: np.cos(x) * dy[0] + dy[1]

    assert check_gradient(parts, [X]) < 1e-11
    with pytest.raises(WrongGradient):
        check_gradient(lambda x: ((np.sin(x), x.sum()), lambda dy: np.cos(x) * dy[0]), [X])


def test_the_array_that_is_wrong_is_named():
    def affine(x, p):
        return p["scale"] * x + p["shift"], lambda dy: (p["scale"] * dy, {"scale": dy * x, "shift": 2 * dy})

    with pytest.raises(WrongGradient, match="the gradient of input 1 at shift is wrong"):
        check_gradient(affine, [X, {"scale": X + 2, "shift": X - 1}])


def test_float32_inputs_are_checked_in_float64():
    assert check_gradient(scaled(1.0), [X.astype(np.float32)]) < 1e-11


def test_a_gradient_that_is_not_a_number_is_wrong():
    with pytest.raises(WrongGradient):
        check_gradient(lambda x: (x, lambda dy: dy * np.nan), [X])


@pytest.mark.parametrize(("back", "message"), [
    (lambda dy: None, "no gradient for input 0, which is floating"),
    (lambda dy: dy.sum(), r"the gradient of input 0 has shape \(\), the input has \(3, 4\)"),
    (lambda dy: (dy, dy), "back returned 2 gradients for 1 inputs"),
])
def test_anything_but_a_gradient_is_refused_in_one_sentence(back, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_gradient(lambda x: (x, back), [X])


def test_an_array_in_the_place_of_the_list_of_inputs_is_refused():
    with pytest.raises(TypeError, match="inputs is a ndarray; give a list"):
        check_gradient(scaled(1.0), X)
