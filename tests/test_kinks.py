"""Kinks: every subgradient passes, nothing else does, and the slopes on both sides are measured."""
import numpy as np
import pytest

from pyllama.testing.methods.compare import inner
from pyllama.testing.methods.kinks import directions, subgradients, verdict

RNG = np.random.default_rng(0)


def status(f, x, dx, dy, v):
    along = lambda t: np.ravel(f(x + t * v))                            # noqa: E731
    return verdict(along, np.asarray(dy, float), inner(np.asarray(dx, float), v)).status


def judged(f, x, dx, dy):
    """The statuses along a random direction and those of directions()."""
    rng = np.random.default_rng(0)
    return {status(f, x, dx, dy, v) for v in (rng.standard_normal(x.shape), *directions(x, rng))}


ZEROS = np.zeros(3)
DY = np.array([1.0, -2.0, 3.0])
CLIPPED = np.array([-1.0, 0.5, 1.0])


def relu(x):
    return np.maximum(x, 0)


def clip(x):
    return np.clip(x, -1, 1)


RIGHT = {
    "relu, 0": (relu, ZEROS, 0 * DY, DY),
    "relu, 1": (relu, ZEROS, DY, DY),
    "relu, between": (relu, ZEROS, 0.3 * DY, DY),
    "relu, mixed": (relu, ZEROS, [0, -2, 1.5], DY),
    "abs, left": (np.abs, ZEROS, -DY, DY),
    "abs, 0": (np.abs, ZEROS, 0 * DY, DY),
    "max, the first": (np.max, np.ones(4), [1, 0, 0, 0], np.ones(1)),
    "max, shared": (np.max, np.ones(4), [0.25] * 4, np.ones(1)),
    "clip, open": (clip, CLIPPED, [0, -2, 0], DY),
    "clip, closed": (clip, CLIPPED, DY, DY),
    "hinge": (lambda x: np.maximum(1 - x, 0), np.array([1.0, 2.0]), [0, 0], np.ones(2)),
    "smooth": (np.exp, DY, np.exp(DY) * DY, DY),
}
WRONG = {
    "relu, 2": (relu, ZEROS, 2 * DY, DY),
    "relu, the sign": (relu, ZEROS, -DY, DY),
    "relu, just above 1": (relu, ZEROS, 1.001 * DY, DY),
    "abs, 1.01": (np.abs, ZEROS, 1.01 * DY, DY),
    "max, all ones": (np.max, np.ones(4), [1] * 4, np.ones(1)),
    "max, none": (np.max, np.ones(4), [0] * 4, np.ones(1)),
    "clip, the smooth entry": (clip, CLIPPED, [0, 0, 0], DY),
    "hinge, zero beside it": (lambda x: np.maximum(1 - x, 0), np.array([0.5, 2.0]), [0, 0], np.ones(2)),
    "smooth": (np.exp, DY, 1.000001 * np.exp(DY) * DY, DY),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_gradient_between_the_slopes_passes(name):
    assert judged(*RIGHT[name]) == {"passed"}


@pytest.mark.parametrize("name", WRONG)
def test_a_gradient_beyond_the_slopes_is_wrong(name):
    assert "wrong" in judged(*WRONG[name])


def test_the_gradient_of_ones_for_equal_numbers_is_wrong_where_all_move_alike():
    """The maximum then moves as they do, but the gradient says four times as far."""
    assert status(np.max, np.ones(4), np.ones(4), [1.0], np.ones(4)) == "wrong"
    assert status(np.max, np.ones(4), np.ones(4), [1.0], np.array([1.0, 0, 0, 0])) == "passed"


def test_two_inputs_share_the_interval():
    x, w = np.ones(2), np.ones(2)
    for along in (lambda t: np.minimum(x + t, w), lambda t: np.minimum(x, w + t)):
        low, high, error = subgradients(along, np.ones(2))
        assert (low, high) == pytest.approx((0, 2), abs=1e-9)
        assert error < 1e-9


def test_the_interval_of_a_smooth_function_is_a_point():
    low, high, error = subgradients(lambda t: np.sin(1 + np.array([t, 2 * t])), np.array([1.0, -1.0]))
    assert low == high == pytest.approx(-np.cos(1), abs=1e-9)
    assert error < 1e-8


@pytest.mark.parametrize("gradient", [0.0, 0.5, 1.0])
def test_kinks_are_seen_in_float32(gradient):
    """The noise hides the kink at widths below 1e-4."""
    x = np.zeros(5, np.float32)
    v, dy = RNG.standard_normal(5), RNG.standard_normal(5)

    def along(t):
        return np.maximum((x + np.float32(1) + t * v).astype(np.float32), 1).astype(float)

    eps = float(np.finfo(np.float32).eps)
    assert verdict(along, dy, gradient * float(dy @ v), eps).status == "passed"
    assert verdict(along, dy, (gradient + 3) * float(np.abs(dy * v).sum()), eps).status == "wrong"


def test_a_side_without_a_slope_leaves_the_verdict_open():
    assert verdict(lambda t: np.sqrt(np.array([t])), np.ones(1), 1.0).status == "undecided"


def test_directions_leave_infinite_entries_where_they_are():
    x = np.array([1.0, np.inf, -2.0])
    assert all(v[1] == 0 and np.isfinite(v).all() for v in directions(x, RNG))
    assert all(v.shape == () for v in directions(np.array(0.0), RNG))
    assert all(v.shape == (0, 2) for v in directions(np.zeros((0, 2)), RNG))
