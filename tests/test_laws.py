"""Laws of the ops that work on rows and single numbers: what a test of the gradient cannot see.

Where precision is at stake a law draws float64; how much float32 may lose is measured in test_ops.py.  Laws that are
exact, and those about extreme numbers, draw both.
"""
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from pyllama import backend
from pyllama.ops import add_rms_norm, gelu, layer_norm, lstm_cell, relu, rms_norm, softmax, swiglu
from pyllama.ops.softmax import log_sum_exp
from tests.laws import close, law, same

units = st.sampled_from([-1e3, -1.0, -1e-3, 1e-3, 1.0, 1e3])
offsets = st.floats(-100, 100)
epsilons = st.sampled_from([1e-8, 1e-5, 0.1, 1.0])


# --- rms_norm ---------------------------------------------------------------------------------------------------------
# A mean of D squares has D + 1 roundings, its root, the division and two products a few more: D + 8 of the result.

@law(rms_norm, unit=units, eps=epsilons)
def test_rms_norm_makes_the_mean_square_m_over_m_plus_eps(rng, N, D, unit, eps):
    """One, but for eps."""
    x = unit * rng.standard_normal((N, D))
    y, _ = rms_norm(x, np.ones(D), eps=eps)
    m = np.mean(x * x, axis=-1)
    close(np.mean(y * y, axis=-1), m / (m + eps), 4 * (D + 8))


@law(rms_norm, unit=units, eps=st.sampled_from([0.0, 1e-5, 1.0]))
def test_rms_norm_has_no_unit(rng, N, D, unit, eps):
    """x and √eps share theirs: scaling both only carries the sign over.  At eps = 0 any scale of x is the same."""
    x, w = rng.standard_normal((N, D)), rng.standard_normal(D)
    y, _ = rms_norm(x, w, eps=eps)
    scaled, _ = rms_norm(unit * x, w, eps=unit * unit * eps)
    close(scaled, np.sign(unit) * y, 2 * (D + 8), np.abs(y))


@law(rms_norm)
def test_rms_norm_is_linear_in_w(rng, N, D):
    x, w, other = rng.standard_normal((N, D)), rng.standard_normal(D), rng.standard_normal(D)
    (y, _), (z, _), (both, _) = (rms_norm(x, weight) for weight in (w, other, 2 * w - other))
    close(both, 2 * y - z, 2 * (D + 8), 2 * np.abs(y) + np.abs(z))


@law(rms_norm)
def test_rms_norm_of_a_row_does_not_know_the_other_rows(rng, dtype, N, D):
    """Nor does the row's gradient; bit for bit."""
    x, w, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((N, D), D, (N, D)))
    y, back = rms_norm(x, w)
    for n in range(N):
        alone, back_alone = rms_norm(x[n:n + 1], w)
        same(y[n:n + 1], alone)
        same(back(dy)[0][n:n + 1], back_alone(dy[n:n + 1])[0])


@law(rms_norm, D=st.sampled_from([1023, 1024, 1025, 2500]))
def test_rms_norm_of_wide_rows_is_its_formula(rng, N, D):
    """As wide as a model."""
    x, w, dy = rng.standard_normal((N, D)), rng.standard_normal(D), rng.standard_normal((N, D))
    y, back = rms_norm(x, w, eps=1e-5)
    dx, dw = back(dy)
    r = 1 / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) / D + 1e-5)
    g, n = w * dy, x * r
    mean, size = (np.sum(a, axis=-1, keepdims=True) / D for a in (g * n, np.abs(g * n)))
    close(y, w * n, D + 8, np.abs(y))
    close(dx, r * (g - n * mean), 4 * (D + 8), r * (np.abs(g) + np.abs(n) * size))
    close(dw, sum(dy * n), N + D + 8, sum(np.abs(dy * n)))


# --- add_rms_norm -----------------------------------------------------------------------------------------------------

@law(add_rms_norm, eps=epsilons)
def test_add_rms_norm_is_a_sum_and_its_rms_norm(rng, N, D, eps):
    x, a, ds, dy = rng.standard_normal((4, N, D))
    w = rng.standard_normal(D)
    (s, y), back = add_rms_norm(x, a, w, eps=eps)
    same(s, x + a)
    n, norm_back = rms_norm(s, w, eps=eps)
    close(y, n, 2 * (D + 8), np.abs(n))
    dx, da, dw = back((ds, dy))
    dn, dw_alone = norm_back(dy)
    size = np.abs(ds) + np.abs(n / s * dy).max(axis=-1, keepdims=True)                                  # n / s = w r
    close(dx, ds + dn, 8 * (D + 8), size)
    same(da, dx)
    close(dw, dw_alone, 2 * (N + D + 8), np.abs(dy * n / w).sum(axis=0))


# --- layer_norm -------------------------------------------------------------------------------------------------------
# Subtracting the mean leaves an error of D + 4 roundings of the largest |x|, which 1/√(v + eps) magnifies.

def magnified(x, eps):
    """The size that layer_norm's rounding errors are multiples of, one for each row."""
    return 1 + np.abs(x).max(axis=-1) / np.sqrt(x.var(axis=-1) + eps)


@law(layer_norm, unit=units, offset=offsets, eps=epsilons)
def test_layer_norm_makes_the_mean_0_and_the_variance_v_over_v_plus_eps(rng, N, D, unit, offset, eps):
    x = unit * rng.standard_normal((N, D)) + offset
    y, _ = layer_norm(x, np.ones(D), np.zeros(D), eps=eps)
    v, size = x.var(axis=-1), magnified(x, eps)
    close(y.mean(axis=-1), np.zeros(N), 2 * (D + 8), size)
    close(np.mean(y * y, axis=-1), v / (v + eps), 4 * (D + 8), size)


@law(layer_norm, offset=offsets)
def test_layer_norm_is_shift_invariant(rng, N, D, offset):
    x, w, b = rng.standard_normal((N, D)), rng.standard_normal(D), rng.standard_normal(D)
    shifted, _ = layer_norm(x + offset, w, b)
    size = magnified(x + offset, 1e-5)[:, None] * np.abs(w) + np.abs(b)
    close(shifted, layer_norm(x, w, b)[0], 4 * (D + 8), size)


@law(layer_norm)
def test_layer_norm_is_linear_in_w_and_b_together(rng, N, D):
    x, (w, v, b, c) = rng.standard_normal((N, D)), rng.standard_normal((4, D))
    y, z, both = (layer_norm(x, *p)[0] for p in ((w, b), (v, c), (2 * w - v, 2 * b - c)))
    close(both, 2 * y - z, 8, np.sqrt(D) * (2 * np.abs(w) + np.abs(v)) + 2 * np.abs(b) + np.abs(c))   # |n| <= √D


# --- softmax ----------------------------------------------------------------------------------------------------------
# x - lse is rounded to the precision of |x|, and an error there is a relative error of y; the sum has D more roundings.

@law(softmax, unit=st.sampled_from([1.0, 30.0]))
def test_softmax_is_the_naive_formula(rng, N, D, unit):
    """So it is non-negative and sums to one."""
    x = unit * rng.standard_normal((N, D))
    y, _ = softmax(x)
    for row, got in zip(x.tolist(), y, strict=True):
        total = math.fsum(map(math.exp, row))
        close(got, [math.exp(a) / total for a in row], D + 8 + 4 * np.abs(row).max(), got)
        assert np.all(got >= 0)
        close(got.sum(), 1.0, D + 8 + 4 * np.abs(row).max())


@law(softmax, offset=offsets)
def test_softmax_is_shift_invariant(rng, N, D, offset):
    x = rng.standard_normal((N, D))
    y, _ = softmax(x)
    close(softmax(x + offset)[0], y, 2 * (D + 8) + 8 * (np.abs(x).max() + abs(offset)), y)


@law(softmax)
def test_softmax_is_permutation_equivariant(rng, N, D):
    x, order = rng.standard_normal((N, D)), rng.permutation(D)
    y, _ = softmax(x)
    close(softmax(x[:, order])[0], y[:, order], 2 * (D + 8) + 8 * np.abs(x).max(), y[:, order])


@law(softmax)
def test_softmax_is_monotone(rng, dtype, N, D):
    """The larger entry has the larger share, up to the 2 units in the last place that an exponential may err."""
    x = np.sort(rng.standard_normal((N, D)), axis=-1).astype(dtype)
    y, _ = softmax(x)
    assert np.all(np.diff(y, axis=-1) >= -8 * np.finfo(dtype).eps * y[:, 1:])
    assert np.all((np.diff(y, axis=-1) > 0) | (np.diff(x, axis=-1) < 1e-3))


@law(softmax)
def test_softmax_of_huge_entries_is_finite(rng, dtype, N, D):
    """Entries of 1e4, whose exponentials overflow; the gradient too."""
    x, dy = (1e4 * rng.standard_normal((2, N, D))).astype(dtype)
    y, back = softmax(x)
    close(y.sum(axis=-1), np.ones(N, dtype), D + 8, 4 * np.abs(x).max())
    assert np.isfinite(back(dy)[0]).all()


@law(softmax)
def test_softmax_gives_nothing_to_minus_infinity(rng, dtype, N, D):
    """The rest share as if it were not there; in a row of nothing else all are 0, and so is the gradient."""
    x, dy = rng.standard_normal((2, N, D)).astype(dtype)
    absent = rng.random((N, D)) < 0.4
    absent[0] = True
    x[absent] = -np.inf
    y, back = softmax(x)
    dx, = back(dy)
    assert not y[absent].any()
    assert not dx[absent].any()
    for n in range(1, N):
        rest, _ = softmax(x[n, ~absent[n]])
        close(y[n, ~absent[n]], rest, 2 * (D + 8) + 32, rest)                              # |x| < 8, so 4 |x| < 32


@law(softmax)
def test_softmax_does_not_hide_nan(rng, dtype, N, D):
    """A row with one is nothing else, and so is its gradient; the other rows do not know."""
    x, dy = rng.standard_normal((2, N, D)).astype(dtype)
    x[0, D // 2] = np.nan
    y, back = softmax(x)
    for a in (y, back(dy)[0]):
        assert np.isnan(a[0]).all()
        assert np.isfinite(a[1:]).all()


@pytest.mark.parametrize("width", [0, 1, 3])
def test_log_sum_exp_of_a_row_that_sees_nothing_is_0(width):
    """Attention saves it: what is subtracted from -∞ must be finite, and the same on every backend."""
    for dtype in ("float64", "float32"):
        same(log_sum_exp(np.full((2, width), -np.inf, dtype)), np.zeros((2, 1), dtype))


# --- swiglu, gelu, relu -----------------------------------------------------------------------------------------------

def test_values_that_can_be_worked_out_by_hand():
    """σ(ln 3) = 3/4; Φ(0) = 1/2, and Φ(1) = 0.8413447460685429 from any table of the normal distribution."""
    for on in swiglu.backends():
        with backend.use(on):
            y, _ = swiglu(np.array([math.log(3), -math.log(3), 0]), np.array([4.0, 4.0, 4.0]))
            close(y, [3 * math.log(3), -math.log(3), 0], 8, 4)
    for on in gelu.backends():
        with backend.use(on):
            close(gelu(np.array([0, 1.0, -1.0]))[0], [0, 0.8413447460685429, 0.8413447460685429 - 1], 8)
    for on in relu.backends():
        with backend.use(on):
            same(relu(np.array([-2.0, 0.0, 3.0]))[0], np.array([0, 0, 3.0]))


@law(swiglu)
def test_swiglu_opens_and_closes(rng, dtype, N, F):
    """A gate of 1e4 lets g u pass, one of -1e4 nothing; no overflow, and gradients that say so."""
    u, dy = rng.standard_normal((2, N, F)).astype(dtype)
    g = np.full_like(u, 1e4)
    y, back = swiglu(g, u)
    same(y, g * u)
    for got, want in zip(back(dy), (dy * u, dy * g), strict=True):
        same(got, want)
    y, back = swiglu(-g, u)
    for got in (y, *back(dy)):
        assert not got.any()


@law(swiglu)
def test_swiglu_of_g_minus_that_of_minus_g_is_g_u(rng, N, F):
    """σ(g) + σ(-g) = 1"""
    g, u = 10 * rng.standard_normal((2, N, F))
    close(swiglu(g, u)[0] - swiglu(-g, u)[0], g * u, 8, np.abs(g * u))


@law(gelu, tanh=st.booleans())
def test_gelu_is_its_formula(rng, N, F, tanh):
    """In Python's math, a number at a time; 1 + erf cancels, so the error is relative to |x|."""
    x = 4 * rng.standard_normal((N, F))

    def formula(x):
        if tanh:
            return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
        return x / 2 * math.erfc(-x / math.sqrt(2))

    close(gelu(x, tanh=tanh)[0], np.vectorize(formula)(x), 16, np.abs(x))


@law(gelu, tanh=st.booleans())
def test_gelu_of_x_minus_that_of_minus_x_is_x(rng, N, F, tanh):
    """Φ(x) + Φ(-x) = 1, and tanh is odd"""
    x = 4 * rng.standard_normal((N, F))
    close(gelu(x, tanh=tanh)[0] - gelu(-x, tanh=tanh)[0], x, 4, np.abs(x))


@law(gelu, tanh=st.booleans())
def test_gelu_far_out_is_relu(dtype, tanh):
    """At 1e4 the identity, at -1e4 zero; so are the slopes."""
    x = np.array([1e4, -1e4], dtype)
    y, back = gelu(x, tanh=tanh)
    same(y, np.array([1e4, 0], dtype))
    same(back(np.full_like(x, 3))[0], np.array([3, 0], dtype))


@law(relu)
def test_relu_is_idempotent(rng, dtype, N, F):
    y, _ = relu(rng.standard_normal((N, F)).astype(dtype))
    same(relu(y)[0], y)
    assert np.all(y >= 0)


@law(relu)
def test_relu_at_the_kink(dtype):
    """Zero, of either sign, gives +0 and has slope 0."""
    y, back = relu(np.array([0.0, -0.0], dtype))
    assert not np.signbit(y).any()
    same(back(np.ones(2, dtype))[0], np.zeros(2, dtype))


@law(relu)
def test_relu_does_not_hide_nan(dtype):
    """A number gone wrong upstream must show in the loss."""
    y, back = relu(np.array([np.nan, 1.0], dtype))
    assert np.isnan(y[0])
    assert y[1] == 1
    assert np.isfinite(back(np.ones(2, dtype))[0][1])


# --- lstm_cell --------------------------------------------------------------------------------------------------------

@law(lstm_cell)
def test_lstm_cell_is_its_formula(rng, N, D):
    """In Python's math, a number at a time; a gate has 4 roundings and an exponential's 2, and c1 is below |c| + 1."""
    a, c = 3 * rng.standard_normal((N, 4, D)), rng.standard_normal((N, D))
    (h, c1), _ = lstm_cell(a.reshape(N, 4 * D), c)

    def gate(x):
        return 1 / (1 + math.exp(-x))

    for n, d in np.ndindex(N, D):
        i, f, g, o = a[n, :, d].tolist()
        state = gate(f) * c[n, d] + gate(i) * math.tanh(g)
        close(c1[n, d], state, 16, abs(c[n, d]) + 1)
        close(h[n, d], gate(o) * math.tanh(state), 24, abs(c[n, d]) + 1)


@law(lstm_cell)
def test_lstm_cell_keeps_its_state_and_the_gradient_or_forgets_both(rng, dtype, N, D):
    """Gates driven to 1e4 and -1e4: exactly 1 and 0, without overflow.  Closed, the cell shows nothing."""
    g, c, dh, dc1 = rng.standard_normal((4, N, D)).astype(dtype)
    on, off = np.full_like(c, 1e4), np.full_like(c, -1e4)
    (h, c1), back = lstm_cell(np.concatenate([off, on, g, off], axis=-1), c)
    same(c1, c)
    assert not h.any()
    da, dc = back((dh, dc1))
    same(dc, dc1)
    assert not da.any()
    (h, c1), back = lstm_cell(np.concatenate([on, off, g, on], axis=-1), c)
    same(c1, np.tanh(g))
    same(h, np.tanh(c1))
    assert not back((dh, dc1))[1].any()
