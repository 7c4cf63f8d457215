"""The gradient norm and clipping: at every magnitude, with infinities and NaN, on every backend."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllama import backend
from pyllama.errors import UserError
from pyllama.training import optim
from pyllama.training.optim import SGD, clip_scale, global_norm, sum_and_norm

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True, scope="module", params=backend.available())
def on(request):
    with backend.use(request.param):
        yield request.param


def clipped(g, max_norm):
    """What a step takes for the gradient g: plain SGD subtracts it from p, here 0."""
    p = np.zeros_like(g)
    SGD(g.size, g.dtype, matrices=[]).step(p, g, 1.0, 0.0, clip_scale(global_norm(g), max_norm))
    return -p


@each_dtype
@given(data=st.data(), max_norm=st.floats(1e-6, 1e6), block=st.integers(1, 9))
def test_clipping(dtype, data, max_norm, block):
    """‖g‖ as an exact sum gives it, and g on its ray at the length max_norm, at most; float32 at all its magnitudes."""
    exponents = st.floats(*((-30, 30) if dtype == np.float32 else (-100, 100)))
    g = np.array(data.draw(st.lists(exponents.map(lambda e: 10.0 ** e) | st.just(0.0), min_size=1, max_size=8)), dtype)
    g *= data.draw(arrays(dtype, g.size, elements=st.sampled_from([-1.0, 1.0])))
    g.setflags(write=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "BLOCK", block)
        norm, after = global_norm(g), clipped(g, max_norm)
    # float64: n squares and n sums of positive numbers, √ halves their (n + 1)/2 eps; with n <= 8 below 4 eps.
    assert norm == pytest.approx(math.hypot(*map(float, g)), rel=4 * 2.0 ** -52)
    if norm <= max_norm:
        assert clip_scale(norm, max_norm) == 1
        np.testing.assert_array_equal(after, g)
    else:
        # Quotient and product in float64 and the rounding to dtype: below 2 eps; underflow loses half a subnormal.
        expected = g.astype(np.longdouble) * max_norm / norm
        allowed = 2 * np.finfo(dtype).eps * abs(expected) + np.finfo(dtype).smallest_subnormal
        assert (abs(after - expected) <= allowed).all()
    assert after.dtype == dtype


@each_dtype
@given(data=st.data(), lanes=st.integers(1, 4), n=st.sampled_from([0, 1, 7, 63, 64, 65, 130, 5000, 70_001]))
def test_lanes_are_added_in_their_order_and_the_norm_is_that_of_the_sum(dtype, data, lanes, n):
    seed = data.draw(st.integers(0, 99))
    gs = list(np.random.default_rng(seed).standard_normal((lanes, n)).astype(dtype))
    total = gs[0].copy()
    for g in gs[1:]:
        total += g
        g.setflags(write=False)
    norm = sum_and_norm(gs)
    np.testing.assert_array_equal(gs[0], total)
    assert norm == global_norm(total)
    # n squares and sums, in any order, and √, which halves their error: below (n + 3)/4 eps in float64.
    exact = np.sqrt(np.sum(total.astype(np.longdouble) ** 2))
    assert abs(norm - exact) <= (n + 3) / 4 * 2.0 ** -52 * exact


@pytest.mark.skipif(backend.cpu is None, reason=backend.why_no_cpu)
@each_dtype
@pytest.mark.parametrize("n", [1000, 300_007])
def test_no_bit_depends_on_the_thread_count_or_on_addresses(dtype, n):
    """The larger n is more than a chunk of each part; the norm and the sum are right there as well."""
    rows = np.random.default_rng(0).standard_normal((3, n)).astype(dtype)
    total = rows[0] + rows[1] + rows[2]
    before, results = backend.cpu.threads(), []
    for threads, offset in (1, 0), (2, 1), (3, 2), (7, 5):
        room = np.empty((3, n + 8), dtype)
        gs = list(room[:, offset:offset + n])
        for g, row in zip(gs, rows, strict=True):
            g[:] = row
        backend.cpu.set_threads(threads)
        results.append((sum_and_norm(gs), gs[0].tobytes()))
    backend.cpu.set_threads(before)
    assert len(set(results)) == 1
    norm, summed = results[0]
    assert summed == total.tobytes()
    exact = np.sqrt(np.sum(total.astype(np.longdouble) ** 2))
    assert abs(norm - exact) <= (n + 3) / 4 * 2.0 ** -52 * exact           # as above


def test_lanes_that_differ_are_refused():
    g = np.ones(4, np.float32)
    for other in np.ones(3, np.float32), np.ones((2, 2), np.float32):
        with pytest.raises(ValueError, match="shape"):
            sum_and_norm([g, other])
    g.setflags(write=False)
    with pytest.raises(ValueError, match=r"updated in place|read-only"):
        sum_and_norm([g, np.ones(4, np.float32)])


@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [1, 40_000])
def test_a_norm_that_is_not_a_number_is_returned_and_clips_nothing(dtype, bad, at):
    g = np.ones(70_000, dtype)
    g[at] = bad
    for norm in global_norm(g), sum_and_norm([np.ones_like(g), g]):
        assert math.isnan(norm) if np.isnan(bad) else norm == math.inf
        assert clip_scale(norm, 1.0) == 1


def test_clipping_off_zero_and_wrong():
    g = np.array([3.0, 4.0], np.float32)
    assert global_norm(g) == 5.0
    assert [clip_scale(5.0, none) for none in (None, 0, 0.0, 5.0)] == [1.0] * 4
    assert clip_scale(5.0, 2.5) == 0.5
    assert g.tolist() == [3.0, 4.0]
    assert global_norm(np.zeros(3, np.float32)) == 0.0
    assert clip_scale(0.0, 1.0) == 1.0
    assert global_norm(np.zeros(0, np.float32)) == 0.0
    for wrong in -1.0, math.nan:
        with pytest.raises(UserError, match="make it positive, or 0 for no clipping"):
            clip_scale(5.0, wrong)


def test_extremes_neither_overflow_nor_vanish():
    big, small = np.full(4, 3e38, np.float32), np.full(4, 1e-40, np.float32)
    assert global_norm(big) == pytest.approx(2 * float(np.float32(3e38)), rel=1e-15)
    np.testing.assert_array_equal(clipped(big, 1.0), np.full(4, 0.5, np.float32))
    assert global_norm(small) == pytest.approx(2 * float(np.float32(1e-40)), rel=1e-15)
    assert global_norm(np.full(4, 1e200)) == math.inf
    assert sum_and_norm([big, big]) == math.inf
