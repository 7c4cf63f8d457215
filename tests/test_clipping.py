"""Clipping the gradient by its norm: at every magnitude, and with every number that is none."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllama import optim
from pyllama.errors import UserError
from pyllama.optim import clip_by_global_norm

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@each_dtype
@given(data=st.data(), max_norm=st.floats(1e-6, 1e6), block=st.integers(1, 9))
def test_clipping(dtype, data, max_norm, block):
    """‖g‖ as an exact sum gives it, and g on its ray at the length max_norm, at most; float32 at all its magnitudes."""
    exponents = st.floats(*((-30, 30) if dtype == np.float32 else (-100, 100)))
    g = np.array(data.draw(st.lists(exponents.map(lambda e: 10.0 ** e) | st.just(0.0), min_size=1, max_size=8)), dtype)
    g *= data.draw(arrays(dtype, g.size, elements=st.sampled_from([-1.0, 1.0])))
    clipped = g.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "BLOCK", block)
        norm = clip_by_global_norm(clipped, max_norm)
    # float64: n squares and n sums of positive numbers, √ halves their (n + 1)/2 eps; with n <= 8 below 4 eps.
    assert norm == pytest.approx(math.hypot(*map(float, g)), rel=4 * 2.0 ** -52)
    if norm <= max_norm:
        np.testing.assert_array_equal(clipped, g)
    else:
        # Quotient and product in float64 and the rounding to dtype: below 2 eps; underflow loses half a subnormal.
        expected = g.astype(np.longdouble) * max_norm / norm
        allowed = 2 * np.finfo(dtype).eps * abs(expected) + np.finfo(dtype).smallest_subnormal
        assert (abs(clipped - expected) <= allowed).all()
    assert clipped.dtype == dtype


@each_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_no_number_is_returned_and_g_left_alone(dtype, bad):
    g = np.array([3.0, bad, 4.0], dtype)
    before = g.copy()
    norm = clip_by_global_norm(g, 1.0)
    assert math.isnan(norm) if np.isnan(bad) else norm == math.inf
    np.testing.assert_array_equal(g, before)


def test_clipping_off_zero_and_wrong():
    g = np.array([3.0, 4.0], np.float32)
    assert [clip_by_global_norm(g, None), clip_by_global_norm(g, 0), clip_by_global_norm(g, 0.0)] == [5.0] * 3
    assert clip_by_global_norm(g, 5.0) == 5.0
    assert g.tolist() == [3.0, 4.0]
    zero = np.zeros(3, np.float32)
    assert clip_by_global_norm(zero, 1.0) == 0.0
    assert zero.tolist() == [0.0] * 3
    assert clip_by_global_norm(np.zeros(0, np.float32), 1.0) == 0.0
    for wrong in -1.0, math.nan:
        with pytest.raises(UserError, match="clip the gradient to a positive norm"):
            clip_by_global_norm(g, wrong)


def test_float32_extremes_neither_overflow_nor_vanish():
    big, small = np.full(4, 3e38, np.float32), np.full(4, 1e-40, np.float32)
    assert clip_by_global_norm(big, 1.0) == pytest.approx(2 * float(np.float32(3e38)), rel=1e-15)
    np.testing.assert_array_equal(big, np.full(4, 0.5, np.float32))
    assert clip_by_global_norm(small, 1.0) == pytest.approx(2 * float(np.float32(1e-40)), rel=1e-15)
