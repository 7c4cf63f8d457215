"""Shared by the files of laws: the decorator that runs a law on every backend, and a bound on rounding errors."""
import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend

ROWS, WIDTHS = [1, 2, 3, 5], [1, 2, 3, 4, 7, 16, 33]            # on both sides of a vector register's width
DRAWN = {
    "rng": st.builds(np.random.default_rng, st.integers(0, 2 ** 32 - 1)),
    "dtype": st.sampled_from(["float64", "float32"]),
    **dict.fromkeys("BNTSGR", st.sampled_from(ROWS)),
    **dict.fromkeys("DEFKV", st.sampled_from(WIDTHS)),
}


def law(op, **drawn):
    """Test a property of op on every backend that has it.

    Each parameter of the test is drawn from the strategy given here; by default an axis is a size, rng a generator and
    dtype a precision.
    """
    def decorate(f):
        def test(on, **values):
            with backend.use(on):
                f(**values)

        # Not functools.wraps: pytest would see the parameters of f and look for fixtures of these names.
        test.__name__ = test.__qualname__ = f.__name__
        test.__doc__, test.__module__ = f.__doc__, f.__module__
        run = given(**{name: drawn[name] if name in drawn else DRAWN[name] for name in inspect.signature(f).parameters})
        return pytest.mark.parametrize("on", op.backends())(run(test))

    return decorate


def close(got, want, roundings, size=1.0):
    """Assert that got and want differ, entry by entry, by at most this many roundings of numbers of this size.

    A rounding is at most eps/2; eps is allowed for each, which covers second-order terms.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    allowed = roundings * np.finfo(got.dtype).eps * np.asarray(size)
    assert np.all(np.abs(got - want) <= allowed), f"off by {np.abs(got - want).max()}, allowed {allowed.max()}"


def same(got, want):
    """Assert that got and want are equal bit for bit, except for the sign of zero."""
    np.testing.assert_array_equal(got, want, strict=True)
