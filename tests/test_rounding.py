"""GPTQ: each step is the optimal one; the products with the inputs change less than by the nearest values."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.quantization import blocks
from pyllama.quantization.moments import Moments
from pyllama.quantization.rounding import best_scale, factor, ordered, rounded, sweep

generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)
switches = st.booleans()


def moments(g, D, spread=1.0):
    """Second moments of correlated inputs, some of which are larger than others."""
    x = g.normal(size=(4 * D, D)) @ g.normal(size=(D, D)) * np.exp(spread * g.normal(size=D))
    return x.T @ x / len(x)


def error(w, data, kind, h):
    """The squared error of each row's product, E[((w - v)·x)²]."""
    e = w - blocks.decode(data, kind)
    return np.einsum("ed,df,ef->e", e, h, e)


@given(generators, st.sampled_from([1, 2, 5, 33]))
def test_the_factor_is_upper_triangular_and_gives_the_inverse(g, D):
    h = moments(g, D)
    u = factor(h)
    np.testing.assert_array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u @ h, np.eye(D), atol=1e-6 * np.linalg.cond(h)**0.5)


@given(generators)
def test_what_is_left_makes_up_for_the_first_error_as_well_as_possible(g):
    """Beside the least-squares solution: the first number is rounded, the others are free."""
    D = 8
    h, w, scale = moments(g, D), g.normal(size=D), 0.3
    u = factor(h)
    first = scale * np.clip(np.rint(w[0] / scale), -8, 7)
    others = w[1:] + np.linalg.solve(h[1:, 1:], h[1:, 0] * (w[0] - first))
    for j in range(1, 3):                       # then the second, with the first held
        levels, errors = sweep(w[:, None], u, np.array([scale]), "q4_0")
        assert levels[0] * scale == first
        held = w - np.concatenate([scale * levels[:j, 0], np.zeros(D - j)])
        best = np.linalg.solve(h[j:, j:], h[j:, :j] @ held[:j]) + w[j:]
        goal = np.clip(np.rint(best[0] / scale), -8, 7)
        assert levels[j, 0] == goal
        if j == 1:
            np.testing.assert_allclose(best, others, rtol=1e-6, atol=1e-9)
        rest = np.concatenate([held[:j], w[j:] - best])
        np.testing.assert_allclose(rest @ h @ rest, (errors[:j, 0]**2).sum(), rtol=1e-6)


@given(generators)
def test_the_error_of_a_row_is_the_sum_of_the_squared_steps(g):
    h, w = moments(g, 32), g.normal(size=(5, 32))
    scale = abs(w).max(axis=1) / 8
    levels, errors = sweep(w.T, factor(h), scale, "q4_0")
    e = w - (scale * levels).T
    np.testing.assert_allclose(np.einsum("ed,df,ef->e", e, h, e), (errors**2).sum(axis=0), rtol=1e-6)


@given(generators, switches, st.sampled_from(["q8_0", "q4_0"]))
def test_with_independent_inputs_every_number_goes_to_the_nearest(g, order, kind):
    """No number can make up for another.  The format rounds by a scale that is not float16 yet: a bit worse."""
    w = g.normal(size=(5, 64)).astype(np.float32)
    ours = rounded(w, np.diag(np.exp(g.normal(size=64))), kind, search=False, order=order)
    errors, theirs = (abs(w - blocks.decode(data, kind)) for data in (ours, blocks.encode(w, kind)))
    assert (errors <= theirs + 1e-6).all()
    scale = blocks.half(abs(w).reshape(5, 2, 32).max(axis=2) / {"q8_0": 127, "q4_0": 8}[kind]).repeat(32, axis=1)
    assert (errors <= scale * (0.5 if kind == "q8_0" else 1) + 127 * 2.0**-11 * scale).all()


def test_products_change_less_with_each_part_of_the_method():
    """In the mean over matrices; a single one may lose by a greedy choice."""
    total = np.zeros(4)
    for seed in range(12):
        g = np.random.default_rng(seed)
        w, h = g.normal(size=(16, 96)).astype(np.float32), moments(g, 96, spread=0.5)
        total += [error(w, data, "q4_0", h).sum() / np.trace(h) for data in (
            blocks.encode(w, "q4_0"), *(rounded(w, h, "q4_0", search=search, order=order)
                                        for search, order in [(False, False), (True, False), (True, True)]))]
    assert (np.diff(total) < 0).all()
    assert total[3] < total[0] / 2


def test_the_best_scale_is_found_by_trying_all():
    g = np.random.default_rng(3)
    w, h = g.normal(size=(4, 32)), moments(g, 32)
    u = factor(h)
    chosen = best_scale(w.T, u, "q4_0")
    _, errors = sweep(w.T, u, chosen, "q4_0")
    for share, sign in itertools.product(np.linspace(1 / 2, 8 / 7, 16), (1, -1)):
        other = (sign * share * abs(w).max(axis=1) / 8).astype(np.float16).astype(float)
        assert ((errors**2).sum(axis=0) <= (sweep(w.T, u, other, "q4_0")[1]**2).sum(axis=0)).all()


@given(generators)
def test_the_order_goes_through_whole_blocks(g):
    size = g.uniform(size=96)
    columns = ordered(size).reshape(3, 32)
    assert sorted(columns.ravel()) == [*range(96)]
    assert all(len({*block // 32}) == 1 for block in columns)
    assert (np.diff(size[columns], axis=1) <= 0).all()
    assert (np.diff(size[columns].sum(axis=1)) <= 0).all()


@given(generators, switches, switches, st.sampled_from(["q8_0", "q4_0"]), st.sampled_from([0.0, 1.0, 3.0]))
def test_no_row_has_more_error_than_by_the_nearest_values(g, search, order, kind, spread):
    w = g.normal(size=(5, 64)).astype(np.float32)
    h = moments(g, 64, spread) + 1e-6 * np.eye(64)
    gptq, nearest = (error(w, data, kind, h) for data in (rounded(w, h, kind, search, order), blocks.encode(w, kind)))
    assert (gptq <= nearest * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_rows_do_not_depend_on_each_other(kind, monkeypatch):
    g = np.random.default_rng(4)
    w, h = g.normal(size=(9, 64)), moments(g, 64)
    data = rounded(w, h, kind)
    monkeypatch.setattr("pyllama.quantization.rounding.AT_ONCE", 4)
    assert (blocks.decode(rounded(w, h, kind), kind) != blocks.decode(data, kind)).mean() < 0.01     # order of sums
    w[3] = 0
    assert not blocks.decode(rounded(w, h, kind), kind)[3].any()


def test_a_scale_that_float16_does_not_have_is_refused():
    with pytest.raises(UserError, match="too large"):
        rounded(np.full((1, 32), 1e6), np.eye(32), "q4_0")


# --- moments ----------------------------------------------------------------------------------------------------------

@given(generators, st.integers(1, 400))
def test_the_estimate_is_positive_definite_for_any_number_of_rows(g, n):
    moments = Moments(16)
    moments.add(g.normal(size=(n, 16)) @ g.normal(size=(16, 16)))
    h = moments.estimate()
    np.linalg.cholesky(h)
    assert (np.linalg.eigvalsh(h - moments.mean()) >= -1e-9 * np.trace(h)).all()


def test_the_estimate_is_nearer_than_the_sample_and_reaches_it():
    """Of few rows it is nearer to the true moments, up to its scale and in the mean; of many it is the sample."""
    g = np.random.default_rng(5)
    mix = g.normal(size=(48, 48)) * np.exp(g.normal(size=48))
    true = mix.T @ mix
    distances = np.zeros(2)
    for _ in range(20):
        moments = Moments(48)
        moments.add(g.normal(size=(40, 48)) @ mix)
        s, h = moments.mean(), moments.estimate()
        distances += [((a - true)**2).sum() for a in (h * np.trace(s) / np.trace(h), s)]
    assert distances[0] < distances[1]
    moments.add(g.normal(size=(20_000, 48)) @ mix)
    assert abs(moments.estimate() - moments.mean()).max() < 1e-2 * np.trace(true) / 48


def test_inputs_of_zeros_and_inputs_that_are_not_finite():
    moments = Moments(4)
    np.testing.assert_array_equal(moments.estimate(), np.eye(4))
    moments.add(np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(moments.estimate(), np.eye(4))
    moments.add(np.array([[1, np.inf, 0, 0]], np.float32))
    with pytest.raises(UserError, match="NaN or infinities on this text"), np.errstate(invalid="ignore"):
        moments.estimate()
