"""The parts below every op: the choice of a backend, random numbers, recomputation."""
import threading
import types
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend
from pyllama.models.recompute import recomputed
from pyllama.ops import cross_entropy, dropout, linear, rms_norm, swiglu
from pyllama.rng import generator

# --- the choice of a backend ------------------------------------------------------------------------------------------

def test_kernels_run_on_real_arrays_of_one_precision(kernels):
    x = np.zeros(3)
    assert backend.kernels_for([x, x]) is kernels
    assert backend.kernels_for([x.astype("float32"), np.zeros(3, int)]) is kernels
    for inputs in ([x, x + 0j], [x.astype("float32"), x], [x.astype("float16")], [x.view(np.matrix)], [x.astype(int)]):
        assert backend.kernels_for(inputs) is None


def test_kernels_take_bfloat16_beside_float32_in_arrays_of_one_type(monkeypatch):
    """Whichever type comes first, and whichever a set yields first."""
    class Device(np.ndarray):
        pass

    low, x = np.zeros(3, ml_dtypes.bfloat16), np.zeros(3, "float32")
    monkeypatch.setattr(backend, "module", lambda kind: types)
    assert backend.kernels_for([low, x]) is not None
    assert backend.kernels_for([low.view(Device), x.view(Device)]) is not None
    for inputs in ([low, x.view(Device)], [low.view(Device), x], [low, low.view(Device)], [x, x.view(Device)]):
        assert backend.kernels_for(inputs) is None


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
