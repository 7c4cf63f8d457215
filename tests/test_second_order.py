"""Second derivatives: a backward pass of the backward pass, or the symmetry of the Hessian; orders and modes."""
import numpy as np
import pytest

from pyllama.testing import GradcheckError
from pyllama.testing.second import check_grads, gradgradcheck
from tests import small_jax

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((2, 3)), RNG.standard_normal(3)


def cube(x):
    return x ** 3, lambda dy: 3 * x ** 2 * dy


def cube_backward2(times):
    return lambda ddx, dy, x: (3 * x ** 2 * ddx, times * 6 * x * dy * ddx)


def rms_norm(forgotten=1.0):
    """Right if nothing of the second term is forgotten."""
    def f(x, w):
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)

        def back(dy):
            g = w * dy
            return r * (g - forgotten * x * r * r * (g * x).mean(-1, keepdims=True)), (dy * x * r).sum(0)

        return w * x * r, back
    return f


# --- gradgradcheck ----------------------------------------------------------------------------------------------------

def test_a_backward_pass_of_the_backward_pass_is_checked():
    report = gradgradcheck(cube, [X], backward2=cube_backward2(1.0), seed=0)
    assert {pair.input for pair in report.pairs} == {"dy", "x"}
    with pytest.raises(GradcheckError):
        gradgradcheck(cube, [X], backward2=cube_backward2(1.001), seed=0)


def test_the_gradient_of_dy_is_checked_too():
    report = gradgradcheck(cube, [X], backward2=lambda ddx, dy, x: (2 * x ** 2 * ddx, 6 * x * dy * ddx),
                           raise_exception=False, seed=0)
    assert [(pair.input, pair.wrong) for pair in report.pairs] == [("x", False), ("dy", True)]


def test_several_inputs_outputs_and_integers():
    def rows(x, ids, w):
        def back(dy):
            dx = np.zeros_like(x)
            np.add.at(dx, ids, dy[0] * w)
            return dx, None, (dy[0] * x[ids]).sum(0) + 3 * w ** 2 * dy[1]
        return (x[ids] * w, w ** 3), back

    def backward2(ddx, dy, x, ids, w):
        (a, _, b), (dy, dz) = ddx, dy
        dx = np.zeros_like(x)
        np.add.at(dx, ids, dy * b)
        dw = (dy * a[ids]).sum(0) + 6 * w * dz * b
        return (a[ids] * w + b * x[ids], 3 * w ** 2 * b), dx, None, dw

    report = gradgradcheck(rows, [X, np.array([1, 1, 0]), W], backward2=backward2, seed=0)
    assert {pair.input for pair in report.pairs} == {"dy 0", "dy 1", "x", "w"}


def test_without_one_the_hessian_is_checked_for_symmetry_and_the_report_says_so():
    report = gradgradcheck(rms_norm(), [X, W], seed=0)
    assert report
    assert len(report.pairs) == 3                       # x with x, x with w, w with w
    assert any("the Hessian was checked for symmetry, no more" in note for note in report.notes)


def test_a_term_that_is_forgotten_makes_the_hessian_asymmetric():
    report = gradgradcheck(rms_norm(0.99), [X, W], raise_exception=False, seed=0)
    assert [pair.wrong for pair in report.pairs] == [False, True, True]
    assert "the Hessian is not symmetric" in report.pairs[-1].worst.why


def test_an_asymmetry_of_rounding_is_not_an_error():
    """Right Hessians, also after a shift that costs ten digits."""
    for seed in range(100):
        x = np.random.default_rng(seed).standard_normal((2, 3))
        assert gradgradcheck(rms_norm(), [x, W], raise_exception=False, seed=seed)
        assert gradgradcheck(lambda x: ((x - 1e10) ** 3, lambda dy: 3 * (x - 1e10) ** 2 * dy), [1e10 + x],
                             raise_exception=False, seed=seed)


def test_a_kink_of_the_gradient_is_left_for_a_neighbor():
    assert gradgradcheck(lambda x: (np.maximum(x, 0) ** 2, lambda dy: 2 * np.maximum(x, 0) * dy),
                         [np.array([0.0, 1.0, -1.0])], seed=0)


def test_a_function_of_float32_alone_is_checked_in_float32():
    def f(x):
        if x.dtype != np.float32:
            raise TypeError("float32 only")
        return rms_norm()(x, W.astype(np.float32))[0], lambda dy: rms_norm()(x, W.astype(np.float32))[1](dy)[0]

    assert gradgradcheck(f, [X.astype(np.float32)], seed=0)


def test_tolerances_that_are_not_used_are_named():
    assert any("do not apply to the symmetry" in note for note in gradgradcheck(cube, [X], atol=1e-3, seed=0).notes)
    assert not any("do not apply" in note for note in gradgradcheck(cube, [X], seed=0).notes)


def test_a_back_of_another_form_is_a_fault():
    report = gradgradcheck(lambda x: (x ** 3, lambda dy: (3 * x ** 2 * dy).sum(0)), [X], raise_exception=False, seed=0)
    assert not report
    assert [fault.kind for fault in report.faults] == ["wrong shape"]


def test_the_gradients_of_a_tree_come_as_a_tree():
    def product(p):
        return p["a"] * p["b"], lambda dy: {"a": dy * p["b"], "b": dy * p["a"]}

    def backward2(times):
        return lambda d, dy, p: (d["a"] * p["b"] + d["b"] * p["a"], {"a": times * d["b"] * dy, "b": d["a"] * dy})

    inputs = [{"a": X, "b": X + 1}]
    assert gradgradcheck(product, inputs, backward2=backward2(1.0), seed=0)
    report = gradgradcheck(product, inputs, backward2=backward2(2.0), seed=0, raise_exception=False)
    assert not report
    assert report.replay == "gradgradcheck(product, inputs, ..., seed=0)"


@pytest.mark.parametrize(("inputs", "options", "message"), [
    ([np.arange(3)], {}, "no input is floating, so there is no gradient to check"),
    ([X], {"grad_outputs": np.ones(5)}, r"grad_outputs has the shapes \[\(5,\)\], the outputs have \[\(2, 3\)\]; give"),
    ([X], {"backward2": lambda ddx, dy, x: 3 * x ** 2 * ddx}, "backward2 returned an array; return a tuple"),
    ([X], {"backward2": 3}, "backward2 is an int; give a function"),
])
def test_wrong_use_is_refused_in_one_sentence(inputs, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gradgradcheck(cube, inputs, seed=0, **options)


def test_dy_can_be_given():
    """For dy = 0, nothing of the backward pass is seen."""
    assert gradgradcheck(rms_norm(0.5), [X, W], np.zeros((2, 3)), seed=0)
    with pytest.raises(GradcheckError):
        gradgradcheck(rms_norm(0.5), [X, W], np.ones((2, 3)), seed=0)


# --- check_grads ------------------------------------------------------------------------------------------------------

def tangent_of_cube(times):
    return lambda inputs, tangents: times * 3 * inputs[0] ** 2 * tangents[0]


def test_both_orders_are_in_one_report():
    report = check_grads(cube, (X,), 2, ["rev"], backward2=cube_backward2(1.0), seed=0)
    assert {pair.input for pair in report.pairs} == {"x", "x (order 2)", "dy (order 2)"}
    assert {pair.input for pair in check_grads(cube, (X,), 1, ["rev"], seed=0).pairs} == {"x"}


@pytest.mark.parametrize("order", [1, 2])
def test_a_wrong_first_order_is_found_at_each_order(order):
    with pytest.raises(GradcheckError):
        check_grads(lambda x: (x ** 3, lambda dy: 2 * x ** 2 * dy), (X,), order, ["rev"], seed=0)


def test_a_wrong_second_order_is_found_at_order_two_alone():
    assert check_grads(cube, (X,), 1, ["rev"], backward2=cube_backward2(2.0), seed=0)
    report = check_grads(cube, (X,), 2, ["rev"], backward2=cube_backward2(2.0), raise_exception=False, seed=0)
    assert report.pairs[-1].input == "x (order 2)"
    assert not report


@pytest.mark.parametrize("modes", [["fwd"], ["fwd", "rev"]])
def test_forward_mode_is_checked(modes):
    assert check_grads(cube, (X,), 1, modes, jvp=tangent_of_cube(1.0), seed=0)
    with pytest.raises(GradcheckError):
        check_grads(cube, (X,), 1, modes, jvp=tangent_of_cube(1.001), seed=0)


def test_forward_mode_alone_does_not_look_at_back():
    assert check_grads(lambda x: (x ** 3, lambda dy: dy), (X,), 1, ["fwd"], jvp=tangent_of_cube(1.0), seed=0)


def test_where_forward_mode_is_not_known_the_report_says_so():
    assert any("forward mode was left out" in note for note in check_grads(cube, (X,), 1, seed=0).notes)
    with pytest.raises(TypeError, match=r"cube has no forward mode; give jvp=, or modes=\['rev'\]"):
        check_grads(cube, (X,), 1, ["fwd"], seed=0)


def test_without_inputs_it_is_a_function_of_them_as_in_autograd():
    assert check_grads(rms_norm(), modes=["rev"], order=2, seed=0)(X, W)


@pytest.mark.parametrize(("order", "modes", "message"), [
    (3, ["rev"], "order is 3; give 1 or 2"),
    (1, "rev", "modes is 'rev'; give a list of 'fwd' and 'rev'"),
    (1, ["reverse"], r"modes is \['reverse'\]; give a list of"),
])
def test_other_orders_and_modes_are_refused(order, modes, message):
    with pytest.raises(ValueError, match=message):
        check_grads(cube, (X,), order, modes)


# --- a library that differentiates its own gradients ------------------------------------------------------------------

@pytest.mark.parametrize(("off", "right"), [(1.0, True), (1.001, False)])
def test_a_library_is_asked_for_its_second_derivatives(monkeypatch, off, right):
    """off: the library's derivative of its own gradient is wrong by this factor."""
    small_jax.installed(monkeypatch, second=off)
    f = small_jax.cube
    assert bool(check_grads(f, (small_jax.array(X),), 1, raise_exception=False, seed=0))
    assert bool(gradgradcheck(f, (small_jax.array(X),), raise_exception=False, seed=0)) == right
    report = check_grads(f, (small_jax.array(X),), 2, raise_exception=False, seed=0)
    assert bool(report) == right
    assert {"x", "x (order 2)", "dy (order 2)"} <= {pair.input for pair in report.pairs}
