"""An op's kernels, and where its gradients go."""
import weakref

import numpy as np
import pytest

from pyllama import params
from pyllama.op import Op
from tests.test_op import shaped


@pytest.mark.usefixtures("unregistered")
def test_a_kernel_may_decline(kernels):
    """Then the reference runs in both passes; each call asks again."""
    def thrice(x, **options):
        return (3 * x, (3,)) if x.size < 3 else NotImplemented

    kernels.doubled = thrice
    kernels.doubled_backward = lambda dy, factor: (factor * dy,)
    op = shaped("x[D] -> y[D]")
    for size, factor in ((2, 3), (3, 2), (2, 3)):
        x = np.arange(1.0, size + 1)
        y, back = op(x)
        np.testing.assert_array_equal(y, factor * x)
        np.testing.assert_array_equal(back(x)[0], factor * x)


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("returns", ["place", "nothing", "sum"])
def test_a_forward_pass_may_add_a_gradient_ahead(returns):
    """If the context allows it, and then for a gradient of 1 alone; a pass that cannot add returns the gradient."""
    given = []

    def forward(x, w, *, into=None):
        given.append(into)
        dw = np.ones(2)
        if into is not None and returns != "sum":
            into[1] += dw
            dw = into[1] if returns == "place" else None
        return np.float64(x @ w), (w, dw)

    op = Op("x[D], w[D] -> y[]", forward, lambda dy, w, dw: (dy * w, dw), weights=("w",), ahead="w")
    x, w, place = np.ones(2), np.ones(2), np.zeros(2)
    with params.adding([w], [place], ahead=True):
        _, back = op(x, w)
        with pytest.raises(ValueError, match=r"has added a gradient, for dy = 1; not 2"):
            back(2.0)
        dx, left = back(1.0)
    assert given.pop()[1] is place
    np.testing.assert_array_equal(place, [1, 1])
    np.testing.assert_array_equal(dx, w)
    assert left == 0
    with params.adding([w], [place]):
        op(x, w)[1](2.0)
    assert given.pop() is None


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("ahead", [False, True])
def test_the_only_backward_pass_of_a_step_frees_what_the_op_has_saved(ahead):
    """The gradients of the ops below take its place; elsewhere a backward pass may run again."""
    op = Op("x[D], w[D] -> y[D]", lambda x, w: (x * w, (x, w)), lambda dy, x, w: (dy * w, dy * x), weights=("w",))
    x, w = np.ones(2), np.ones(2)
    with params.adding([w], [np.zeros(2)], ahead=ahead):
        y, back = op(x, w)
        saved = weakref.ref(x)
        del x
        assert saved() is not None
        back(y)
    assert (saved() is None) == ahead


@pytest.mark.usefixtures("unregistered")
def test_a_forward_pass_leaves_out_the_gradient_of_a_frozen_weight():
    def forward(x, w, *, into=None):
        return np.float64(x @ w), (w, np.ones(2) if into is None else into[1])

    op = Op("x[D], w[D] -> y[]", forward, lambda dy, w, dw: (dy * w, dw), weights=("w",), ahead="w")
    x, w = np.ones(2), np.ones(2)
    with params.adding([w], [params.NONE]):
        _, back = op(x, w)
        dx, dw = back(2.0)
    np.testing.assert_array_equal(dx, [2, 2])
    assert dw == 0
    assert op(x, w)[1](1.0)[1].tolist() == [1, 1]


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("adds", "declines", "total"), [(True, False, 30), (False, False, 3), (True, True, 2)])
def test_a_kernel_may_add_its_gradient_to_the_place(kernels, adds, declines, total):
    """One that has and one that has not are found by the name; the reference never sees the place."""
    def into_place(dy, *, into):
        if adds:
            into[0] += 30 * dy
        return (into[0] if adds else 3 * dy,)

    kernels.doubled = lambda x: NotImplemented if declines else (3 * x, ())
    kernels.doubled_backward_into = into_place
    x, place = np.ones(2), np.zeros(2)
    with params.adding([x], [place]):
        y, back = shaped("x[D] -> y[D]")(x)
        (left,) = back(np.ones_like(y))
    np.testing.assert_array_equal(place, [total, total])
    assert left == 0
    assert np.ndim(left) == 0
