"""The parts below every op: shape lines, the choice of a backend, random numbers, recomputation."""
import threading
import types
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama import op as op_module
from pyllama.models.recompute import recomputed
from pyllama.op import Op
from pyllama.ops import cross_entropy, dropout, linear, rms_norm, swiglu
from pyllama.rng import generator
from pyllama.shapes import fits


@pytest.fixture
def unregistered(monkeypatch):
    """Ops made in a test do not join those of the library."""
    monkeypatch.setattr(op_module, "OPS", {})


def double(x, *others, **options):
    return 2 * x, ()


def double_backward(dy, **options):
    return (2 * dy,)


def shaped(line):
    return Op(line, double, double_backward)


# --- shape lines ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("axes", "shape", "sizes"), [
    ("... D", (5,), {"...": (), "D": 5}),
    ("... D", (2, 3, 5), {"...": (2, 3), "D": 5}),
    ("... T 2*P", (7, 4, 6), {"...": (7,), "T": 4, "P": 3}),
    ("B 3", (2, 3), {"B": 2}),
    ("B B", (4, 4), {"B": 4}),
    ("B 2*B", (4, 8), {"B": 4}),
    ("H H*K", (4, 12), {"H": 4, "K": 3}),
    ("H H*K", (0, 0), {"H": 0, "K": 0}),
    ("N D", (0, 5), {"N": 0, "D": 5}),
    ("2*P", (0,), {"P": 0}),
    ("", (), {}),
])
def test_shapes_that_fit_tell_the_sizes(axes, shape, sizes):
    found = {}
    assert fits(tuple(axes.split()), shape, found)
    assert found == sizes


@pytest.mark.parametrize(("axes", "shape"), [
    ("... D", ()), ("N D", (5,)), ("N D", (2, 3, 5)), ("2*P", (5,)), ("B 3", (2, 4)), ("B B", (4, 5)),
    ("B 2*B", (4, 9)), ("B 2*B", (0, 8)), ("H H*K", (0, 5)), ("", (1,)), ("... T K", (3,)), ("A ... B", (5,)),
])
def test_shapes_that_do_not_fit(axes, shape):
    assert not fits(tuple(axes.split()), shape, {})


@st.composite
def shape_lines(draw):
    """The axes of an input, and a shape made from drawn sizes."""
    sizes = {axis: draw(st.integers(0, 5)) for axis in "ABC"} | {"...": draw(st.lists(st.integers(0, 3), max_size=3))}
    axes = draw(st.lists(st.sampled_from(["A", "B", "C", "2*A", "3*B", "4"]), max_size=4))
    if draw(st.booleans()):
        axes.insert(draw(st.integers(0, len(axes))), "...")
    shape = []
    for axis in axes:
        number, _, letter = axis.rpartition("*")
        shape += sizes["..."] if axis == "..." else [4] if axis == "4" else [int(number or 1) * sizes[letter]]
    return tuple(axes), tuple(shape)


@given(line=shape_lines(), data=st.data())
def test_shapes_made_from_sizes_fit_and_others_do_not(line, data):
    """Twice the same axes: the second input must have the first one's sizes, every one of them and no more."""
    axes, shape = line
    sizes = {}
    assert fits(axes, shape, sizes)
    assert fits(axes, shape, sizes)
    wrong = list(shape)
    if wrong and data.draw(st.booleans()):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] += data.draw(st.sampled_from([1, 2, 12]))
    else:
        wrong.insert(data.draw(st.integers(0, len(wrong))), data.draw(st.integers(1, 5)))
    assert not fits(axes, tuple(wrong), sizes)


def arrays(*shapes, dtype="float64"):
    return [np.zeros(shape, dtype) for shape in shapes]


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("inputs", "error", "message"), [
    (arrays((2, 3)), TypeError, "test_framework takes x[... D], w[D], b[E]?; got 1 inputs"),
    (arrays((2, 3), 3, 4, 4), TypeError, "takes x[... D], w[D], b[E]?; got 4 inputs"),
    (arrays((2, 3), 4), ValueError, "w has shape (4,), which does not fit w[D] with {'...': (2,), 'D': 3}"),
    (arrays((), 4), ValueError, "x has shape (), which does not fit x[... D]"),
    ([np.zeros((2, 3), "int64"), np.zeros(3)], TypeError, "x must be floating, not int64"),
    ([np.zeros((2, 3), "float32"), np.zeros(3)], TypeError, "w is float64 but x is float32; convert one"),
    ([np.zeros((2, 3)), np.zeros(3), np.zeros(4, "complex64")], TypeError, "b is complex64 but x is float64"),
])
def test_a_call_that_does_not_fit_says_why(inputs, error, message):
    with pytest.raises(error) as refused:
        shaped("x[... D], w[D], b[E]? -> y[... D]")(*inputs)
    assert message in str(refused.value)


@pytest.mark.usefixtures("unregistered")
def test_calls_that_fit():
    """Complex stands for the real precision of its parts; bounded inputs are integers of any type, or truth values."""
    op = shaped("x[... D], w[D], ids[B]<V? -> y[... D]")
    assert [(wanted.name, wanted.below, wanted.optional) for wanted in op.inputs] == [
        ("x", "", False), ("w", "", False), ("ids", "V", True)]
    op(*arrays((3,), 3))
    op(np.zeros((0, 3), complex), np.zeros(3))
    for kind in ("int64", "uint16", "bool"):
        op(*arrays((2, 3), 3), np.zeros(4, kind))
    with pytest.raises(TypeError, match="ids must be integer, not float64"):
        op(*arrays((2, 3), 3, 4))


@pytest.mark.usefixtures("unregistered")
def test_a_valid_call_does_not_let_invalid_ones_pass():
    """The check runs once for each combination of shapes and dtypes: others must not slip through."""
    op = shaped("x[... D], w[D] -> y[... D]")
    for _ in range(2):
        op(*arrays((2, 3), 3))
        for wrong in (arrays((2, 3), 2), [np.zeros((2, 3)), np.zeros(3, "float32")], arrays((2, 3))):
            with pytest.raises((TypeError, ValueError)):
                op(*wrong)


@pytest.mark.usefixtures("unregistered")
def test_back_gives_one_gradient_for_each_input_and_refuses_another_precision():
    y, back = Op("x[D], b[D]? -> y[D]", lambda x, b=0: (x + b, ()), lambda dy: (dy, dy))(np.ones(3))
    assert len(back(y)) == 1
    with pytest.raises(TypeError, match="dy is float32 but y is float64"):
        back(y.astype("float32"))


@pytest.mark.usefixtures("unregistered")
def test_several_outputs_are_given_and_taken_as_a_tuple():
    op = Op("x[D] -> s[D], p[]", lambda x: ((x + 1, np.sum(x * x)), (x,)), lambda dy, x: (dy[0] + 2 * dy[1] * x,))
    x = np.arange(3.0)
    (s, p), back = op(x)
    np.testing.assert_array_equal(s, [1, 2, 3])
    assert p == 5
    dx, = back((s, p))
    np.testing.assert_array_equal(dx, [1, 12, 23])
    with pytest.raises(ValueError, match=r"dp has shape \(3,\), p has \(\)"):
        back((s, s))
    with pytest.raises(TypeError, match="ds is float32 but s is float64"):
        back((s.astype("float32"), p))
    for wrong in (s, (s,), (s, p, p)):
        with pytest.raises(TypeError, match=rf"returns s\[D\], p\[\]: pass one gradient for each, not {len(wrong)}"):
            back(wrong)


# --- the choice of a backend ------------------------------------------------------------------------------------------

@pytest.fixture
def kernels(monkeypatch):
    """Stands for the compiled module, built or not."""
    module = types.SimpleNamespace()
    monkeypatch.setattr(backend, "cpu", module)
    return module


def test_kernels_run_on_real_arrays_of_one_precision(kernels):
    x = np.zeros(3)
    assert backend.kernels_for([x, x]) is kernels
    assert backend.kernels_for([x.astype("float32"), np.zeros(3, int)]) is kernels
    for inputs in ([x, x + 0j], [x.astype("float32"), x], [x.astype("float16")], [x.view(np.matrix)], [x.astype(int)]):
        assert backend.kernels_for(inputs) is None


@pytest.mark.usefixtures("unregistered")
def test_a_kernel_may_decline(kernels):
    """Then the reference runs in both passes; each call asks again."""
    def thrice(x, **options):
        return (3 * x, (3,)) if x.size < 3 else NotImplemented

    kernels.test_framework = thrice
    kernels.test_framework_backward = lambda dy, factor: (factor * dy,)
    op = shaped("x[D] -> y[D]")
    for size, factor in ((2, 3), (3, 2), (2, 3)):
        x = np.arange(1.0, size + 1)
        y, back = op(x)
        np.testing.assert_array_equal(y, factor * x)
        np.testing.assert_array_equal(back(x)[0], factor * x)


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(("adds", "declines", "total"), [(True, False, 30), (False, False, 3), (True, True, 2)])
def test_a_kernel_may_add_its_gradient_to_the_place(kernels, adds, declines, total):
    """One that has and one that has not are found by the name; the reference never sees the place."""
    def into_place(dy, *, into):
        if adds:
            into[0] += 30 * dy
        return (into[0] if adds else 3 * dy,)

    kernels.test_framework = lambda x: NotImplemented if declines else (3 * x, ())
    kernels.test_framework_backward_into = into_place
    x, place = np.ones(2), np.zeros(2)
    with params.adding([x], [place]):
        y, back = shaped("x[D] -> y[D]")(x)
        (left,) = back(np.ones_like(y))
    np.testing.assert_array_equal(place, [total, total])
    assert left == 0
    assert np.ndim(left) == 0


def test_use_nests_and_ends_however_it_is_left(kernels):
    inputs = [np.zeros(3)]
    with backend.use("numpy"):
        assert backend.kernels_for(inputs) is None
        with backend.use("cpu"):
            assert backend.kernels_for(inputs) is kernels
        assert backend.kernels_for(inputs) is None
        with pytest.raises(ZeroDivisionError), backend.use("cpu"):
            _ = 1 / 0
        assert backend.kernels_for(inputs) is None
    assert backend.kernels_for(inputs) is kernels


def test_use_holds_for_its_own_thread(kernels):
    seen = []
    with backend.use("numpy"):
        other = threading.Thread(target=lambda: seen.append(backend.kernels_for([np.zeros(3)])))
        other.start()
        other.join()
    assert seen == [kernels]


def test_use_of_an_unknown_backend_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"'gpu' is not available; choose among \['numpy'"), backend.use("gpu"):
        pass
    monkeypatch.setattr(backend, "cpu", None)
    monkeypatch.setattr(backend, "why_no_cpu", "not built")
    with pytest.raises(ValueError, match=r"'cpu' is not available; choose among \['numpy'\]: not"), backend.use("cpu"):
        pass


# --- random numbers ---------------------------------------------------------------------------------------------------

key_parts = st.one_of(st.integers(0, 3), st.integers(0, 2 ** 70), st.sampled_from(["", "init", "data", "dropout"]))
random_keys = st.lists(key_parts, min_size=1, max_size=5).map(tuple)


@given(key=random_keys, other=random_keys)
def test_a_key_is_a_stream(key, other):
    """Whatever was drawn before; two keys agree in 256 bits only if they are one."""
    def draw(key):
        return generator(*key).bit_generator.random_raw(4).tolist()

    first = draw(key)
    assert (draw(other) == first) == (other == key)
    assert draw(key) == first


def test_the_numbers_of_a_key_are_for_ever():
    """A run resumed with another version of pyllama or NumPy draws what it would have drawn: dropout, the order of the
    data, new weights.  If this fails, a checkpoint from before no longer resumes bit for bit."""
    def draw():
        return generator(7, "dropout", 3, 0)

    assert draw().bit_generator.random_raw(3).tolist() == [
        17102985484909840084, 9481954904954648202, 13124629612792538655]
    assert draw().random(4, dtype=np.float32).tolist() == [
        0.8543475866317749, 0.9271546602249146, 0.6175569295883179, 0.5140177607536316]
    assert draw().permutation(8).tolist() == [7, 5, 3, 1, 0, 2, 6, 4]
    assert draw().integers(1000, size=5).tolist() == [854, 927, 617, 514, 465]
    assert draw().standard_normal(3) == pytest.approx(                                     # through the libm's log, exp
        [0.9326568087205873, 0.17985227321255465, 0.5634194167266022], rel=1e-14)


def test_a_part_of_a_key_may_be_any_integer():
    """NumPy's 3 is 3, and not the word "3"."""
    numbers = generator(np.int64(3), "data").random(8)
    np.testing.assert_array_equal(numbers, generator(3, "data").random(8))
    assert not np.array_equal(numbers, generator("3", "data").random(8))


@pytest.mark.parametrize(("key", "other"), [(("data",), ("data", 0)), ((7, "dropout", 0), (7, "dropout", 0, 0)),
                                            ((2 ** 32, 5), (0, 1, 5)), ((1, 2), (2, 1))])
def test_keys_that_look_alike_are_different(key, other):
    """Sequences of 32-bit words filled up with zeros, which NumPy's SeedSequence takes them for, would be the same."""
    assert not np.array_equal(generator(*key).random(8), generator(*other).random(8))


# --- recompute --------------------------------------------------------------------------------------------------------

def layer(x, w, u, key):
    """norm, product, gate, dropout: one of each kind"""
    n, norm_back = rms_norm(x, u)
    h, linear_back = linear(n, w)
    g, gate_back = swiglu(h, h)
    y, dropout_back = dropout(g, rate=0.5, key=key)

    def back(dy):
        dg, = dropout_back(dy)
        dn, dw = linear_back(sum(gate_back(dg)))
        dx, du = norm_back(dn)
        return dx, dw, du

    return y, back


@pytest.mark.parametrize("on", backend.available())
@given(seed=st.integers(0, 2 ** 32 - 1), dtype=st.sampled_from(["float32", "float64"]))
def test_recompute_gives_the_same_bits(on, seed, dtype):
    rng = np.random.default_rng(seed)
    x, w, u, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 8), (6, 8), 8, (5, 6)))
    with backend.use(on):
        y, back = layer(x, w, u, key=(seed, "layer"))
        z, back_again = recomputed(layer)(x, w, u, key=(seed, "layer"))
        np.testing.assert_array_equal(z, y, strict=True)
        for _ in range(2):                                                      # a back may be called twice
            for got, want in zip(back_again(dy), back(dy), strict=True):
                np.testing.assert_array_equal(got, want, strict=True)


def test_recompute_drops_the_activations():
    activations = []

    def square_of_exp(x):
        h = np.exp(x)
        activations.append(weakref.ref(h))
        return h * h, lambda dy: (2 * dy * h * h,)

    _, back = square_of_exp(np.ones(3))
    _, back_again = recomputed(square_of_exp)(np.ones(3))
    kept, dropped = activations
    assert kept() is not None
    assert dropped() is None
    np.testing.assert_array_equal(back_again(np.ones(3)), back(np.ones(3)))
    assert activations[-1]() is None


@pytest.mark.parametrize("on", backend.available())
@pytest.mark.parametrize("dloss", [2.0, np.float64(2), np.float32(2)], ids=["float", "float64", "float32"])
def test_a_number_as_the_gradient_of_a_loss_keeps_the_precision_of_the_inputs(dloss, on):
    z, t = np.ones((2, 3), np.float32), np.array([0, 2])
    with backend.use(on):
        _, back = cross_entropy(z, t)
        assert back(dloss)[0].dtype == np.float32
