"""Functions of torch, JAX and numba become functions of NumPy arrays.  The libraries here are small stand-ins; the real
ones run in `make bench-checkers`."""
import sys

import numpy as np
import pytest

from pyllama.testing import foreign, gradcheck, gradgradcheck
from pyllama.testing.second import unmarked
from tests import small_jax, small_torch
from tests.small_torch import Function, Tensor

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 4))


@pytest.fixture
def torch(monkeypatch):
    small_torch.installed(monkeypatch)


def same_bits(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- torch ------------------------------------------------------------------------------------------------------------

class Scaled(Function):
    """x factor, where factor is a constant."""
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return Tensor(x.data * factor)

    @staticmethod
    def backward(ctx, dy):
        return Tensor(dy.data * ctx.factor), None


def test_a_function_of_arrays_is_left_alone(torch):
    assert foreign.adapted(lambda x: (x, lambda dy: dy), [X, {"w": W}, 2.0]) is None


@pytest.mark.usefixtures("torch")
class TestTorch:
    def test_a_function_of_tensors_returns_y_and_back(self):
        a = foreign.adapted(lambda x, w: x * w, [Tensor(X), Tensor(W)])
        y, back = a.f(X, W)
        assert a.names == ["x", "w"]
        assert same_bits(y, X * W)
        assert all(map(same_bits, back(2 * y), (2 * y * W, 2 * y * X)))

    def test_a_function_class_is_called_by_its_apply_and_numbers_are_constants(self):
        a = foreign.adapted(Scaled, [Tensor(X), 3.0])
        y, back = a.f(X)
        assert a.names == ["x"]
        assert same_bits(back(y)[0], 3.0 * y)

    def test_the_precision_is_that_of_the_arrays(self):
        a = foreign.adapted(Scaled, [Tensor(X.astype(np.float32)), 3.0])
        assert a.inputs[0].dtype == np.float32
        for dtype in (np.float32, np.float64, np.complex128):
            assert a.f(X.astype(dtype))[0].dtype == dtype

    def test_trees_of_tensors_are_named_by_path(self):
        a = foreign.adapted(lambda p, xs: p["w"] * xs[0], [{"w": Tensor(W)}, [Tensor(X)]])
        assert a.names == ["p at w", "xs at 0"]
        assert same_bits(a.f(W, X)[0], W * X)

    def test_only_tensors_that_require_a_gradient_are_inputs_if_one_does(self):
        a = foreign.adapted(lambda x, w: x * w, [Tensor(X, requires_grad=True), Tensor(W)])
        assert a.names == ["x"]
        assert same_bits(a.f(2 * X)[0], 2 * X * W)

    def test_integers_are_inputs_without_a_gradient(self):
        class Rows(Function):
            @staticmethod
            def forward(ctx, x, ids):
                ctx.ids, ctx.shape = ids.data, x.shape
                return Tensor(x.data[ids.data])

            @staticmethod
            def backward(ctx, dy):
                dx = np.zeros(ctx.shape)
                np.add.at(dx, ctx.ids, dy.data)
                return Tensor(dx), None

        a = foreign.adapted(Rows, [Tensor(X), Tensor(np.array([1, 1]))])
        dx, none = a.f(X, np.array([2, 2]))[1](np.ones((2, 4)))
        assert none is None
        assert dx[:, 0].tolist() == [0, 0, 2]

    def test_several_outputs_are_a_tuple_and_each_has_its_gradient(self):
        class Both(Function):
            @staticmethod
            def forward(ctx, x):
                return Tensor(2 * x.data), Tensor(3 * x.data)

            @staticmethod
            def backward(ctx, da, db):
                return Tensor(2 * da.data + 3 * db.data)

        (a, b), back = foreign.adapted(Both, [Tensor(X)]).f(X)
        assert same_bits(b, 3 * X)
        assert np.allclose(back((a, b))[0], 2 * a + 3 * b, rtol=1e-15)

    def test_an_input_without_a_gradient_gets_zeros_and_a_note(self):
        a = foreign.adapted(lambda x, w: Scaled.apply(x, 2.0), [Tensor(X), Tensor(W)])
        _, back = a.f(X, W)
        assert not back(X)[1].any()
        back(X)
        assert a.notes == ["torch has no gradient for w: it counts as zero"]

    def test_a_backward_that_changes_dy_is_seen(self):
        class Doubles(Scaled):
            @staticmethod
            def backward(ctx, dy):
                dy.data *= 2
                return dy, None

        dy = np.ones((3, 4))
        foreign.adapted(Doubles, [Tensor(X), 2.0]).f(X)[1](dy)
        assert (dy == 2).all()

    @pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.repeat(2, 1)[:, ::2]], ids=["contiguous", "strided"])
    def test_a_forward_that_changes_its_input_is_seen(self, layout):
        class Zeroes(Scaled):
            @staticmethod
            def forward(ctx, x, factor):
                x.data[...] = 0
                return Tensor(x.data + factor)

        x = X.copy()
        foreign.adapted(Zeroes, [Tensor(layout(X)), 2.0]).f(x)
        assert not x.any()

    def test_the_function_sees_the_strides_that_were_given(self):
        steps = []

        class Looks(Scaled):
            @staticmethod
            def forward(ctx, x, factor):
                steps.append(x.stride())
                ctx.factor = factor
                return Tensor(factor * x.data)

        foreign.adapted(Looks, [Tensor(X.repeat(2, 1)[:, ::2]), 2.0]).f(X.copy())
        assert steps[-1] == [8, 2]

    def test_a_strided_or_broadcast_dy_arrives_with_its_strides(self):
        steps = []

        class Looks(Scaled):
            @staticmethod
            def backward(ctx, dy):
                steps.append(dy.stride())
                return dy, None

        _, back = foreign.adapted(Looks, [Tensor(X), 1.0]).f(X)
        for dy in (X.repeat(2, 1)[:, ::2], np.broadcast_to(1.0, (3, 4))):
            back(dy)
        assert steps == [[8, 2], [0, 0]]

    def test_a_read_only_or_reversed_dy_is_copied(self):
        _, back = foreign.adapted(Scaled, [Tensor(X), 2.0]).f(X)
        frozen = X.copy()
        frozen.flags.writeable = False
        for dy in (frozen, X[::-1]):
            assert same_bits(back(dy)[0], 2 * dy)

    def test_forward_mode_is_offered_where_the_function_has_it(self):
        a = foreign.adapted(lambda x, w: x * w, [Tensor(X), Tensor(W)])
        assert same_bits(a.jvp([X, W], [W, X]), W * W + X * X)
        assert foreign.adapted(Scaled, [Tensor(X), 2.0]).jvp is None


    def test_dy_and_tangents_get_the_precision_of_the_tensors(self):
        seen = []

        class Looks(Scaled):
            @staticmethod
            def backward(ctx, dy):
                seen.append(dy.data.dtype)
                return dy, None

        foreign.adapted(Looks, [Tensor(X), 2.0]).f(X.astype(np.float32))[1](X)
        a = foreign.adapted(lambda x, w: x * w, [Tensor(X), Tensor(W)])
        assert seen == [np.float32]
        assert a.jvp([X.astype(np.float32), W.astype(np.float32)], [W, X]).dtype == np.float32

    def test_outputs_without_a_gradient_are_left_out_and_one_is_needed(self):
        a = foreign.adapted(lambda x: (x * x, None, Tensor(np.arange(3))), [Tensor(X)])
        assert len(a.f(X)[0]) == 1
        with pytest.raises(TypeError, match="returned no floating array, so there is no gradient to check"):
            foreign.adapted(lambda x: Tensor(np.arange(3)), [Tensor(X)]).f(X)

    @pytest.mark.parametrize(("said", "error"), [("returned an invalid gradient at index 0", ValueError),
                                                 ("returned an incorrect number of gradients", ValueError),
                                                 ("out of memory", RuntimeError)])
    def test_what_torch_says_of_the_form_of_gradients_is_a_wrong_use(self, said, error):
        class Raises(Scaled):
            @staticmethod
            def backward(ctx, dy):
                raise RuntimeError(f"function RaisesBackward {said}")

        with pytest.raises(error, match=said):
            foreign.adapted(Raises, [Tensor(X), 1.0]).f(X)[1](X)

    @pytest.mark.parametrize(("times", "right"), [(1.0, True), (1.001, False)])
    def test_gradcheck_takes_a_function_of_tensors(self, times, right):
        class Off(Scaled):
            @staticmethod
            def backward(ctx, dy):
                return Tensor(times * dy.data * ctx.factor), None

        report = gradcheck(Off, [Tensor(X), 3.0], raise_exception=False, seed=0)
        assert bool(report) == right
        assert [pair.input for pair in report.pairs] == ["x"]
        assert right or report.case.endswith("# call gradcheck(Off, ...) with arrays of its library that hold these")

    def test_a_given_dy_that_requires_a_gradient_is_an_input_beside_the_others(self):
        """torch's own gradgradcheck takes such tensors, and the adapter checks those alone that are marked."""
        dy, = unmarked(foreign.torch_functions, (Tensor(X, requires_grad=True),))
        assert not dy.requires_grad
        assert same_bits(dy.data, X)

    def test_a_function_is_called_by_the_name_of_its_class(self):
        report = gradcheck(small_torch.Multiply.apply, [Tensor(X), Tensor(W)], seed=0)
        assert str(report).startswith("Multiply.apply: 2 gradients right")

    def test_a_backward_pass_beside_that_of_torch_is_refused(self):
        """It would not be called, and a wrong one would pass."""
        def backward(dy, x):
            return 3 * dy

        with pytest.raises(TypeError, match="backward pass is given, but f takes arrays of a library that has its own"):
            gradcheck(lambda x: x * x, [Tensor(X)], backward=backward)
        with pytest.raises(TypeError, match="backward pass is given"):
            gradgradcheck(lambda x: x * x, [Tensor(X)], backward2=backward)

    def test_gradcheck_uses_the_forward_mode_of_torch(self):
        report = gradcheck(lambda x, w: x * w, [Tensor(X), Tensor(W)], seed=0)
        assert "dot product" in {verdict.method for pair in report.pairs for verdict in pair.verdicts}

    def test_gradcheck_reports_the_notes_of_the_adapter(self):
        report = gradcheck(lambda x, w: Scaled.apply(x, 2.0), [Tensor(X), Tensor(W)], seed=0)
        assert "torch has no gradient for w: it counts as zero" in report.notes


# --- JAX --------------------------------------------------------------------------------------------------------------

def test_a_function_of_jax_arrays_is_differentiated_with_x64(monkeypatch):
    small_jax.installed(monkeypatch)
    a = foreign.adapted(lambda x, factor: {"a": small_jax.cube(x), "b": factor * x}, [small_jax.array(X), 3.0])
    (y, z), back = a.f(X)
    assert a.names == ["x"]
    assert type(y) is type(z) is np.ndarray
    assert same_bits(y, X ** 3)
    assert np.allclose(back((y, z))[0], 3 * X ** 2 * y + 3 * z, rtol=1e-15)
    assert np.allclose(a.jvp([X], [W])[0], 3 * X ** 2 * W, rtol=1e-15)


def test_the_precision_of_jax_arrays_is_that_of_the_inputs(monkeypatch):
    small_jax.installed(monkeypatch)
    a = foreign.adapted(small_jax.cube, [small_jax.array(X.astype(np.float32))])
    assert a.inputs[0].dtype == np.float32
    for dtype in (np.float32, np.float64, np.complex128):
        assert a.f(X.astype(dtype))[0].dtype == dtype


def test_float32_is_computed_with_the_setting_of_the_process(monkeypatch):
    """With x64, a one_hot made by the function would be float64, and so would the gradient."""
    small_jax.installed(monkeypatch)
    wide = []

    def looks(x):
        wide.append(sys.modules["jax"].wide)
        return x * 2.0

    a = foreign.adapted(looks, [small_jax.array(X)])
    wide.clear()
    for dtype in (np.float32, np.float64):
        a.f(X.astype(dtype))
    assert wide == [False, True]


def test_integers_of_jax_have_no_gradient(monkeypatch):
    small_jax.installed(monkeypatch)
    a = foreign.adapted(lambda x, ids: x, [small_jax.array(X), small_jax.array([0, 0])])
    dx, none = a.f(X, np.array([1, 1]))[1](W)
    assert none is None
    assert same_bits(dx, W)


def test_a_forward_rule_that_returns_another_y_is_refused(monkeypatch):
    small_jax.installed(monkeypatch)
    calls = []

    def other(x):
        calls.append(x)
        return x * (1.0 + 1e-6 * len(calls))

    _, back = foreign.adapted(other, [small_jax.array(X)]).f(X)
    with pytest.raises(ValueError, match="the forward rule of the custom_vjp returns another y than the function, by"):
        back(X)


# --- numba ------------------------------------------------------------------------------------------------------------

class Dispatcher:
    """A stand-in for a function that numba compiled for contiguous float64 alone."""
    __name__ = "kernel"

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        if x.dtype != np.float64:
            raise TypeError("no matching definition")
        assert x.flags.c_contiguous
        assert x.flags.writeable
        return 2 * x


Dispatcher.__module__ = "numba.core.registry"


def test_a_compiled_function_gets_contiguous_arrays():
    kernel = foreign.plain(Dispatcher())
    frozen = X[:, ::2]
    frozen.flags.writeable = False
    assert same_bits(kernel(frozen), 2 * frozen)
    assert kernel(np.array(1.0)).shape == ()


def test_gradcheck_takes_compiled_functions():
    assert gradcheck(Dispatcher(), [X], backward=lambda dy, x: 2 * dy, seed=0)
    assert not gradcheck(Dispatcher(), [X], backward=lambda dy, x: dy, seed=0, raise_exception=False)


def test_a_compiled_backward_may_fill_arrays():
    class Filler(Dispatcher):
        def __call__(self, dy, x, out):
            assert dy.flags.c_contiguous
            out[...] = 2 * x * dy

    assert gradcheck(np.square, [X], backward=Filler(), seed=0)


def test_a_compilation_that_fails_for_complex_numbers_is_not_tried_again():
    dispatcher = Dispatcher()
    kernel = foreign.plain(dispatcher)
    for _ in range(3):
        with pytest.raises(TypeError):
            kernel(X + 0j)
    assert dispatcher.calls == 1


def test_other_functions_stay_as_they_are():
    assert foreign.plain(np.sin) is np.sin
    assert foreign.plain(None) is None
