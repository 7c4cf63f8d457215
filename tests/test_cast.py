"""Casts between float32 and the halves: every half, and the bits of float32 at each half's neighbors and midpoints."""
import ml_dtypes
import numpy as np
import pytest

from pyllama import backend, params
from pyllama.params import cast
from tests.fence import can_fence, fence_results, fenced

each_half = pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
EVERY = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(autouse=True, scope="module", params=backend.available())
def on(request):
    with backend.use(request.param):
        yield request.param


def assert_cast(x, dtype):
    """As NumPy casts it, to the bit; a NaN stays one and keeps its sign.  The cast array."""
    y = cast(x, dtype)
    assert y.dtype == dtype
    assert y.flags.owndata
    with np.errstate(over="ignore", invalid="ignore"):                      # of a signaling NaN: isnan itself
        wanted, nan = x.astype(dtype), np.isnan(x)
        np.testing.assert_array_equal(np.isnan(y), nan)
    bits = f"u{y.itemsize}"
    np.testing.assert_array_equal(y.view(bits)[~nan], wanted.view(bits)[~nan])
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
    return y


@each_half
def test_every_half_comes_back_as_it_was(half):
    wide = assert_cast(EVERY.view(half), np.float32)
    back = assert_cast(wide, half).view(np.uint16)
    np.testing.assert_array_equal(back[~np.isnan(wide)], EVERY[~np.isnan(wide)])


@each_half
def test_every_half_is_the_nearest_of_what_lies_about_it(half):
    """Its neighbors in float32, and those of the midpoints on both sides, which round to even; into infinity too."""
    exact = EVERY.view(half).astype(np.float32).view(np.uint32)
    around = np.arange(-2, 3)[:, None, None]
    shifts = np.array([0, *(sign << bit for bit in range(10, 24) for sign in (1, -1))])[:, None]
    assert_cast((exact + shifts + around).astype(np.uint32).view(np.float32), half)


@each_half
def test_any_bits(half):
    assert_cast(np.random.default_rng(0).integers(2 ** 32, size=2 ** 20, dtype=np.uint32).view(np.float32), half)


@each_half
def test_any_length_layout_and_thread_count(half):
    x = np.random.default_rng(0).standard_normal((3, 40_001)).astype(np.float32)
    narrow = x.astype(half)
    before = backend.cpu.threads() if backend.cpu else None
    for threads in (1, 2, 3) if before else (None,):
        if before:
            backend.cpu.set_threads(threads)
        np.testing.assert_array_equal(cast(x, half), narrow)
        np.testing.assert_array_equal(cast(narrow, np.float32), narrow.astype(np.float32))
    if before:
        backend.cpu.set_threads(before)
    for n in range(70):
        np.testing.assert_array_equal(cast(x[0, :n], half), narrow[0, :n])
        np.testing.assert_array_equal(cast(narrow[0, :n], np.float32), narrow[0, :n].astype(np.float32))
    for a in x.T, x[:, ::2], x[::-1], x[0, 0], x.astype(">f4"):
        a = np.asarray(a)
        np.testing.assert_array_equal(cast(a, half), a.astype(half))
    for a in narrow.T, narrow[:, ::2], np.asarray(narrow[0, 0]):
        np.testing.assert_array_equal(cast(a, np.float32), a.astype(np.float32))


@can_fence
@each_half
@pytest.mark.parametrize("behind", [True, False])
def test_casts_touch_nothing_beyond_their_arrays(half, behind, monkeypatch):
    fence_results(monkeypatch, behind)
    for n in (1, 8, 37):
        for x, to in (np.ones(n, np.float32), half), (np.ones(n, half), np.float32):
            y = cast(fenced(x, behind), to)
            assert (y == 1).all()


@pytest.mark.parametrize(("dtype", "to"), [
    ("float32", "float32"), ("float32", "float64"), ("float64", "float32"), ("float64", "float16"), ("float16", ">f4"),
    ("float32", ">f2"), (">f2", "float32"), ("float16", "float16"), ("int32", "float32"), ("float32", "int64")])
def test_other_casts_are_numpy_s(dtype, to):
    x = np.array([0, 1, 3, 4], dtype)
    y = cast(x, to)
    np.testing.assert_array_equal(y, [0, 1, 3, 4])
    assert y.dtype == np.dtype(to)
    assert not np.shares_memory(x, y)


def test_weights_in_halves_are_named_in_the_precision_of_the_tree():
    tree = {"a": np.zeros(3, np.float32), "b": [np.zeros((1, 2), np.float32)]}
    halves = {"a": np.array([1, 2 ** -24, np.inf], np.float16), "b.0": np.array([[1, -3e38]], ml_dtypes.bfloat16)}
    named = params.named(tree, halves)
    np.testing.assert_array_equal(named["a"], np.array([1, 2 ** -24, np.inf], np.float32))
    np.testing.assert_array_equal(named["b"][0], halves["b.0"].astype(np.float32))
    assert {a.dtype for _, a in params.leaves(named)} == {np.dtype(np.float32)}
