"""Products with matrices as files store them: within their bounds, and to the bit wherever they are computed."""
import itertools

import ml_dtypes
import numpy as np
import pytest

from pyllama import backend
from pyllama.quantization import blocks
from tests.fence import can_fence, fence_results, fenced

cpu = backend.cpu
pytestmark = pytest.mark.skipif(cpu is None, reason=backend.why_no_cpu)

BLOCKS = ["q8_0", "q4_0"]
KINDS = ["reals", "f16", "bf16", *BLOCKS]
SHAPES = [(1, 32), (16, 64), (37, 4096), (50, 288), (100, 768)]                     # E, D
ULP = 2.0**-24                                                                      # of float32: half of its epsilon
each_kind = pytest.mark.parametrize("kind", KINDS)
each_blocks = pytest.mark.parametrize("kind", BLOCKS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def raw_blocks(kind, E, D, scales=None, seed=0):
    """E rows of GGUF's blocks, of any quants; the scales [E, D / 32] are normal numbers unless they are given."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (E, D // 32, blocks.FORMATS[kind].bytes), np.uint8)
    scales = random.standard_normal((E, D // 32)) if scales is None else np.broadcast_to(scales, (E, D // 32))
    raw[..., :2] = scales.astype("float16")[..., None].view(np.uint8)
    return raw.reshape(E, D // 32 * raw.shape[2])


def matrix(kind, E, D, seed=0):
    """A random matrix as the kernels take it, and decoded, in float64."""
    if kind in BLOCKS:
        raw = raw_blocks(kind, E, D, seed=seed)
        return cpu.interleaved(raw, kind, E, D), decoded(raw, kind)
    w = normal(E, D, seed=seed).astype({"reals": "float32", "f16": "float16", "bf16": ml_dtypes.bfloat16}[kind])
    return w, w.astype("float64")


def decoded(raw, kind):
    return blocks.decode(raw, kind).astype("float64")


def scales_of(x):
    """The scale of each number of x, as it is rounded to int8 in its block."""
    high = np.abs(x).reshape(len(x), -1, 32).max(axis=2).astype("float32")
    return np.maximum(high / np.float32(127), np.float32(2.0**-126)).repeat(32, axis=1).astype("float64")


def bound(x, w, kind):
    """What a product may be wrong by.  See csrc/cpu/stored.c for x as int8.

    A float sum of n terms, each rounded r times, is wrong by (n + r) ULP of the sum of their magnitudes, and by the
    least number for each term that is below the normal range.
    """
    x, w, terms, wrong = np.abs(x.astype("float64")), np.abs(w), x.shape[1], 0
    if kind in BLOCKS:
        scale, terms = scales_of(x), terms // 32
        x, wrong = x + scale, scale @ w.T * (0.5 + 2.0**-16)
    return wrong + 1.01 * (terms + 3) * (ULP * (x @ w.T) + 2.0**-149)


def assert_close(y, x, w, kind):
    assert y.dtype == "float32"
    assert y.shape == (len(x), len(w))
    assert np.all(np.abs(y - x.astype("float64") @ w.T) <= bound(x, w, kind))


# --- values -----------------------------------------------------------------------------------------------------------

@each_kind
@pytest.mark.parametrize(("E", "D"), SHAPES)
def test_a_product_is_within_its_bound(kind, E, D):
    stored, w = matrix(kind, E, D)
    for N in (*range(1, 21), 70) if E * D < 2**16 else (1, 4, 17):
        x = normal(N, D, seed=N)
        assert_close(cpu.stored_product(x, stored, kind, E, D), x, w, kind)


@pytest.mark.parametrize("kind", ["reals", "f16", "bf16"])
@pytest.mark.parametrize("D", [0, 1, 7, 31, 33, 385, 1000])
def test_a_row_of_any_length_is_multiplied(kind, D):
    stored, w = matrix(kind, 21, D)
    for N in (1, 2, 3, 40):
        x = normal(N, D, seed=N)
        assert_close(cpu.stored_product(x, stored, kind, 21, D), x, w, kind)


def test_reals_are_of_both_precisions():
    x, w = normal(3, 45).astype("float64"), normal(37, 45, seed=1).astype("float64")
    y = cpu.stored_product(x, w, "reals", 37, 45)
    assert np.all(np.abs(y - x @ w.T) <= 45 * 2.0**-52 * (np.abs(x) @ np.abs(w.T)))
    np.testing.assert_array_equal(cpu.stored_row(w, "reals", 37, 45, 5, "float64"), w[5])


@each_blocks
@pytest.mark.parametrize("quant", [0, 127, 128, 255, 0x0f, 0xf0, 0x88])                 # of q8_0, 128 is -128
def test_blocks_at_the_ends_of_their_ranges(kind, quant):
    """All of one sign, the sums of whole numbers are as large as they can be; scales and x are huge, tiny or 0."""
    for scale, size in itertools.product([65504, -65504, 2.0**-24, -0.0, 1], [3e28, 1, 2.0**-126, 2.0**-149, 0]):
        raw = raw_blocks(kind, 17, 96, scale)
        raw.reshape(17, 3, -1)[..., 2:] = quant
        x = np.float32(size) * np.stack([np.ones(96), -np.ones(96), np.cos(np.arange(96))]).astype("float32")
        y = cpu.stored_product(x, cpu.interleaved(raw, kind, 17, 96), kind, 17, 96)
        assert_close(y, x, decoded(raw, kind), kind)


@each_blocks
def test_a_scale_that_is_not_finite_reaches_its_row_alone(kind):
    raw = raw_blocks(kind, 20, 64)
    raw.reshape(20, 2, -1)[[3, 18], 1, :2] = np.array([[np.inf], [np.nan]], "float16").view(np.uint8)
    x, stored = normal(7, 64), cpu.interleaved(raw, kind, 20, 64)
    y = cpu.stored_product(x, stored, kind, 20, 64)
    assert not np.isfinite(y[:, [3, 18]]).any()
    rest = np.delete(np.arange(20), [3, 18])
    assert_close(y[:, rest], x, decoded(raw[rest], kind), kind)
    assert not np.isfinite(cpu.stored_row(stored, kind, 20, 64, 3)[32:]).any()


@each_kind
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_an_x_that_is_not_finite_reaches_its_row_alone(kind, odd):
    stored, w = matrix(kind, 20, 64)
    x = normal(7, 64)
    x[2, 40] = odd
    y = cpu.stored_product(x, stored, kind, 20, 64)
    assert not np.isfinite(y[2]).any()
    rest = np.delete(np.arange(7), 2)
    assert_close(y[rest], x[rest], w, kind)


@each_kind
def test_a_row_is_decoded_exactly(kind):
    E, D = 37, 96
    stored, w = matrix(kind, E, D)
    for e in range(E):
        np.testing.assert_array_equal(cpu.stored_row(stored, kind, E, D, e), w[e])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_half_is_decoded_as_numpy_does(kind):
    every = np.arange(1 << 16, dtype=np.uint16).view({"f16": "float16", "bf16": ml_dtypes.bfloat16}[kind])
    np.testing.assert_array_equal(cpu.stored_row(every, kind, 1, 1 << 16, 0), every.astype("float32"))


# --- what the bits may not depend on ----------------------------------------------------------------------------------

@each_kind
@pytest.mark.parametrize(("E", "D"), SHAPES)
def test_no_bit_depends_on_the_other_rows_or_on_the_cuts(kind, E, D):
    stored, _ = matrix(kind, E, D)
    x = normal(20 if kind in BLOCKS else cpu.same_bits, D)
    alone = np.concatenate([cpu.stored_product(row[None], stored, kind, E, D) for row in x])
    for N in range(1, len(x) + 1):
        np.testing.assert_array_equal(cpu.stored_product(x[:N], stored, kind, E, D), alone[:N])
    for cuts in (range(16, E, 16), range(32, E, 32)):
        np.testing.assert_array_equal(cpu.stored_product(x, stored, kind, E, D, cuts), alone)


@each_blocks
@pytest.mark.parametrize("D", [32, 64, 96, 2**15])                      # the last is more than the working room holds
@pytest.mark.parametrize("N", [17, 24, 59])
def test_no_bit_of_quants_depends_on_how_many_rows_there_are(kind, D, N):
    E = 77
    stored, _ = matrix(kind, E, D)
    x, into = normal(N, D), normal(N, E, seed=1)
    alone = np.concatenate([cpu.stored_product(row[None], stored, kind, E, D) for row in x])
    for cuts in ((), (16, 32, 64)):
        np.testing.assert_array_equal(cpu.stored_product(x, stored, kind, E, D, cuts), alone)
    np.testing.assert_array_equal(cpu.stored_product(x, stored, kind, E, D, into=into.copy()), into + alone)


@pytest.mark.parametrize("kind", ["reals", "f16", "bf16"])
@pytest.mark.parametrize("D", [45, 384, 385, 1000])
def test_the_bits_of_many_rows_are_those_of_a_product_of_plain_matrices(kind, D):
    stored, w = matrix(kind, 53, D)
    x = normal(cpu.same_bits + 4, D)
    plain = cpu.matmul(x, w.astype("float32").T, x)
    for cuts in ((), [16], [32, 48]):
        np.testing.assert_array_equal(cpu.stored_product(x, stored, kind, 53, D, cuts), plain)


@each_kind
@pytest.mark.parametrize("N", [1, 3, 20])
def test_a_product_is_added_to_an_array(kind, N):
    E, D = 37, 800
    stored, w = matrix(kind, E, D)
    x, into = normal(N, D), normal(N, E, seed=1)
    product, before = cpu.stored_product(x, stored, kind, E, D), into.copy()
    assert cpu.stored_product(x, stored, kind, E, D, into=into) is into
    if cpu.same_bits >= N or kind in BLOCKS:
        np.testing.assert_array_equal(into, before + product)
    else:                                               # 3 parts of the sum are added one by one: 3 roundings for each
        assert np.all(np.abs(into - (before + product)) <= 6 * ULP * (np.abs(before) + np.abs(x) @ np.abs(w.T)))


# --- layout -----------------------------------------------------------------------------------------------------------

@each_blocks
@pytest.mark.parametrize(("E", "D"), [(1, 32), (16, 32), (17, 64), (50, 288), (3, 0), (0, 32)])
def test_blocks_lie_where_the_kernels_want_them(kind, E, D):
    raw = raw_blocks(kind, E, D)
    size = blocks.FORMATS[kind].bytes - 2
    packed = cpu.interleaved(raw, kind, E, D)
    assert packed.size == -(-E // 16) * (D // 32) * 16 * (size + 2)
    for e, b in np.ndindex(E, D // 32):
        at = packed.reshape(-1, D // 32, 16 * (size + 2))[e // 16, b]
        given = raw[e].reshape(D // 32, -1)[b]
        quants = at[:16 * size].reshape(size // 4, 16, 4)[:, e % 16].ravel()
        np.testing.assert_array_equal(quants ^ (128 if kind == "q8_0" else 0), given[2:])
        np.testing.assert_array_equal(at[16 * size:].reshape(16, 2)[e % 16], given[:2])
    np.testing.assert_array_equal(cpu.deinterleaved(packed, kind, E, D), raw)


@can_fence
@each_kind
@pytest.mark.parametrize("behind", [True, False])
def test_nothing_beyond_the_arrays_is_touched(kind, behind, monkeypatch):
    E, D = 37, 96
    stored, w = matrix(kind, E, D)
    for N in (1, 2, 3, 7, 20):
        x = normal(N, D)
        with monkeypatch.context() as patch:
            fence_results(patch, behind)
            y = cpu.stored_product(fenced(x, behind), fenced(stored, behind), kind, E, D)
            row = cpu.stored_row(fenced(stored, behind), kind, E, D, E - 1)
        assert_close(np.array(y), x, w, kind)
        np.testing.assert_array_equal(row, w[-1])


# --- refusals ---------------------------------------------------------------------------------------------------------

@each_kind
def test_what_does_not_fit_is_refused(kind):
    stored, _ = matrix(kind, 16, 64)
    x = normal(2, 64)
    for E, D in ((32, 64), (16, 96), (17, 64)):
        with pytest.raises(ValueError, match="bytes cannot be"):
            cpu.stored_product(np.zeros((2, D), "float32"), stored, kind, E, D)
    with pytest.raises(ValueError, match="times float32 rows of shape"):
        cpu.stored_product(x[:, :32], stored, kind, 16, 64)
    with pytest.raises(ValueError, match="added to float32 of shape"):
        cpu.stored_product(x, stored, kind, 16, 64, into=np.zeros((2, 15), "float32"))
    with pytest.raises(ValueError, match="added to float64"):
        cpu.stored_product(x, stored, kind, 16, 64, into=np.zeros((2, 16)))
    with pytest.raises(ValueError, match=r"times float64|bytes cannot be"):
        cpu.stored_product(x.astype("float64"), stored, kind, 16, 64)
    for cuts in ([8], [32, 16], [-16], [17]):
        with pytest.raises(ValueError, match="multiples of 16"):
            cpu.stored_product(x, stored, kind, 16, 64, cuts)
    with pytest.raises(ValueError, match=r"decoded to float32|bytes cannot be"):
        cpu.stored_row(stored, kind, 16, 64, 0, "float64")
    for e in (-1, 16):
        with pytest.raises(IndexError, match=f"row {e} of 16"):
            cpu.stored_row(stored, kind, 16, 64, e)


@each_blocks
def test_rows_that_are_not_blocks_are_refused(kind):
    raw = raw_blocks(kind, 3, 64)
    with pytest.raises(ValueError, match="a row of 63 numbers in blocks of 32"):
        cpu.interleaved(raw, kind, 3, 63)
    with pytest.raises(ValueError, match="bytes cannot be"):
        cpu.interleaved(raw, kind, 4, 64)
    with pytest.raises(ValueError, match="bytes cannot be"):
        cpu.deinterleaved(cpu.interleaved(raw, kind, 3, 64)[:-1], kind, 3, 64)
