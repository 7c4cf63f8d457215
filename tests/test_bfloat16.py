"""bfloat16: what is rounded and what is not."""
import ml_dtypes
import numpy as np
import pytest

from pyllama import backend
from pyllama.op import Op

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
pytestmark = pytest.mark.usefixtures("unregistered")


def doubled(x, *others):
    return 2 * x, ()


def doubled_backward(dy):
    return dy + dy, None


def scaled(x, w, *, power=1):
    assert x.dtype == w.dtype == "float32"
    return x * w ** power, (x, w, x + 1)


def scaled_backward(dy, x, w, computed, *, power=1):
    assert dy.dtype == x.dtype == w.dtype == computed.dtype == "float32"
    np.testing.assert_array_equal(computed, x + 1)
    return dy * w ** power, (dy * x * power * w ** (power - 1)).sum(axis=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_call_in_bfloat16_computes_in_float32_and_rounds_once(precision):
    """1 + 2⁻⁷ is bfloat16's successor of 1; its cube and its product with 3 are not in bfloat16."""
    op = Op("x[N D], w[D] -> y[N D]", scaled, scaled_backward, name="scaled")
    x = np.array([[3.0], [1 + 2.0 ** -7]]).astype(BFLOAT16)
    w = np.array([1 + 2.0 ** -7]).astype(precision)
    y, back = op(x, w, power=3)
    dx, dw = back(y)
    exact = x.astype("float32") * w.astype("float32") ** 3
    assert y.dtype == dx.dtype == BFLOAT16
    np.testing.assert_array_equal(y, exact.astype(BFLOAT16))
    np.testing.assert_array_equal(dx, (y.astype("float32") * w.astype("float32") ** 3).astype(BFLOAT16))
    assert dw.dtype == "float32"
    assert dw[0] != dw[0].astype(BFLOAT16)
    with pytest.raises(TypeError, match="dy is float32 but y is bfloat16; convert one"):
        back(exact)


def test_only_float32_may_stand_beside_bfloat16_and_not_first():
    op = Op("x[... D], w[D] -> y[... D]", doubled, doubled_backward)
    low = np.ones(3, BFLOAT16)
    for x, w, message in [(low, np.ones(3), "w is float64 but x is bfloat16"),
                          (low, np.ones(3, "float16"), "w is float16 but x is bfloat16"),
                          (np.ones(3, "float32"), low, "w is bfloat16 but x is float32")]:
        with pytest.raises(TypeError, match=message):
            op(x, w)


def test_back_in_bfloat16_keeps_what_was_given_and_what_it_returned():
    def squared(x):
        y = x * x
        return y, (x, y)

    op = Op("x[D] -> y[D]", squared, lambda dy, x, y: (2 * x * dy + 0 * y,), name="squared")
    x = np.arange(3).astype(BFLOAT16)
    result, *_ = op.run([x], {}, "bfloat16")
    y, saved = result
    assert len([a for a in saved if isinstance(a, np.ndarray)]) == 2
    assert saved[-2] is x
    assert saved[-1] is y


def test_a_number_that_a_call_in_bfloat16_returns_is_float32():
    op = Op("x[D] -> loss[]", lambda x: (np.sum(x), (x,)), lambda dloss, x: (np.full_like(x, dloss),), name="sum")
    loss, back = op(np.array([1, 2.0 ** -9]).astype(BFLOAT16))
    assert loss == np.float32(1 + 2.0 ** -9)
    dx, = back(1 + 2.0 ** -9)
    assert dx.tolist() == [1, 1]


@pytest.mark.parametrize("takes", [True, False])
def test_only_the_kernels_that_a_module_lists_take_bfloat16(monkeypatch, takes):
    """The others run on widened inputs."""
    seen = []

    class Kernels:
        LOW = frozenset({"doubled"} if takes else {})
        doubled_backward = staticmethod(doubled_backward)

        @staticmethod
        def doubled(x):
            seen.append(x.dtype)
            return x + x, ()

    def forward(x):
        raise AssertionError("the kernels run")

    forward.__module__ = "pyllama.ops.doubled"
    monkeypatch.setattr(backend, "cpu", Kernels)
    y, back = Op("x[D] -> y[D]", forward, doubled_backward)(np.ones(2, BFLOAT16))
    dx, = back(y)
    assert (y.tolist(), dx.tolist()) == ([2, 2], [4, 4])
    assert dx.dtype == BFLOAT16
    assert seen == [BFLOAT16 if takes else np.float32]
