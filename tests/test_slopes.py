"""The slope along a line: exact where a complex step is right, else by differences whose error bound holds."""
import numpy as np
import pytest

from pyllama.testing.methods.compare import compare
from pyllama.testing.methods.slopes import WIDTHS, differences, one_sided, slopes, step

RNG = np.random.default_rng(0)
EPS, EPS32 = 2.0 ** -52, 2.0 ** -23
X = RNG.standard_normal(40)
V = X * RNG.standard_normal(40)

FUNCTIONS = {
    "exp": (np.exp, np.exp),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "root of abs": (lambda x: np.sqrt(np.abs(x)), lambda x: np.sign(x) / 2 / np.sqrt(np.abs(x))),
    "linear": (lambda x: 3 * x, lambda x: 3 + 0 * x),
    "an offset": (lambda x: 1e6 + x, np.ones_like),
    "a fast sine": (lambda x: np.sin(1e3 * x), lambda x: 1e3 * np.cos(1e3 * x)),
}


def real(f):
    """f along the line, which refuses complex numbers."""
    return lambda t: f(X + float(t) * V)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bound_of_differences_holds(name):
    f, df = FUNCTIONS[name]
    value, error, kink = differences(real(f), WIDTHS, EPS)
    assert (np.abs(value - df(X) * V) <= error).all()
    assert not kink.any()


def test_the_bound_holds_near_the_end_of_a_domain():
    """Wide steps leave it: what is not a number there neither widens nor narrows the bound."""
    x = np.tanh(1.5 * np.random.default_rng(0).standard_normal(1000))
    v = x * np.random.default_rng(1).standard_normal(1000)
    with np.errstate(all="ignore"):
        value, error, _ = differences(lambda t: np.arctanh(x + t * v), WIDTHS, EPS)
    assert (np.abs(value - v / ((1 - x) * (1 + x))) <= error).all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("name", ["exp", "tanh", "linear"])
def test_the_bound_holds_in_float32_at_every_scale(name, scale):
    f, df = FUNCTIONS[name]
    low = X.astype(np.float32)

    def along(t):
        return (np.float32(scale) * f((low + t * V).astype(np.float32))).astype(float)

    value, error, _ = differences(along, WIDTHS, EPS32)
    assert (np.abs(value - scale * df(low.astype(float)) * V) <= error).all()
    assert (error <= 1e-2 * scale * np.abs(df(X) * V).max()).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_slope_on_one_side_is_measured_on_that_side(sign):
    value, error = one_sided(lambda t: np.array([abs(t), max(t, 0), np.exp(t), t * t]), sign, EPS)
    right = np.array([sign, sign == 1, 1, 0])
    assert (np.abs(value - right) <= error + 1e-15).all()
    assert (error < 1e-8).all()


@pytest.mark.parametrize("root", [np.sqrt, np.cbrt, lambda t: t ** 0.9])
def test_a_slope_without_bound_is_not_measured(root):
    assert one_sided(lambda t: np.array([root(t)]), 1, EPS)[1] == np.inf


def test_an_extremum_is_not_a_kink_and_a_kink_is_one():
    at_zero = np.array([1.0, -2.0])
    for f in (np.square, np.cos, lambda x: np.abs(x) ** 1.5, lambda x: 1e-9 * x * x):
        assert not differences(lambda t, f=f: 3 * t * at_zero + f(t * at_zero), WIDTHS, EPS)[2].any()
        assert not differences(lambda t, f=f: f(t * at_zero), WIDTHS, EPS)[2].any()
    for f in (np.abs, lambda x: np.maximum(x, 0), lambda x: x + 1e-3 * np.abs(x), lambda x: 1e-9 * np.abs(x)):
        assert differences(lambda t, f=f: f(t * at_zero), WIDTHS, EPS)[2].all()


def test_numbers_that_f_rounds_away_do_not_contradict_the_complex_step():
    found = slopes(lambda t: 1e20 + (X + t * V), EPS)
    assert found.holomorphic
    assert found.value == pytest.approx(V)


def test_a_complex_step_of_float32_is_no_subnormal_number():
    """complex64 has 1e-38: of steps of 1e-30 times 1e-9, a digit or two are left."""
    low = (1e-9 * X).astype(np.float32)

    def along(t):
        return 3 * (low + t * 1e-9 * V).astype(np.complex64 if isinstance(t, complex) else np.float32)

    assert slopes(along, EPS32).value == pytest.approx(3e-9 * V, rel=1e-6)
    assert step(EPS32) ** 2 < EPS32 ** 2


def test_rounding_does_not_excuse_a_millionth_where_imaginary_parts_are_lost():
    """The slope by a complex step is then zero at all neighbors, too: it says nothing about rounding."""
    def compared(times):
        def neighbor(k):
            x = X * (1 + 1e-6 * np.random.default_rng(k).standard_normal(40))
            return times * np.sign(x), lambda t: np.abs(x + t * V)
        return compare("f", lambda t: np.abs(X + t * V), times * np.sign(X), V, np.ones(40), (np.abs(X),), neighbor)

    assert not compared(1.0).wrong
    assert compared(1 + 1e-6).wrong


def test_noise_that_hides_the_slope_decides_nothing():
    """A slope of 1 on top of 1e7, in float32: whatever back says would pass."""
    def along(t):
        return (np.float32(1e7) + np.float32(1 + t)).astype(np.float32).reshape(1).astype(float)

    for claimed in (1.0, 2.0):
        assert compare("f", along, np.array([claimed]), np.ones(1), np.ones(1), (np.float32([1e7]),), None) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_tiny_part_that_is_not_holomorphic_is_no_mistake(seed):
    """The complex step of softplus as it is mostly written loses exp(-24), 4e-11 of its slope."""
    x = np.array([24.0]) * (1 + 1e-3 * seed)

    def along_from(x):
        return lambda t: np.maximum(x + t, 0) + np.log1p(np.exp(-np.abs(x + t)))

    def neighbor(k):
        near = x * (1 + 1e-6 * np.random.default_rng(k).standard_normal(1))
        return 1 / (1 + np.exp(-near)), along_from(near)

    found = compare("f", along_from(x), 1 / (1 + np.exp(-x)), np.ones(1), np.ones(1), (along_from(x)(0.0),), neighbor)
    assert not found.wrong


def test_an_offset_hides_no_more_than_its_rounding():
    """Four eps of 1e9 are 1e-6: a millionth of a slope of 6 is more."""
    def compared(times):
        dx = times * np.ones(3)
        along = lambda t: np.array([1e9 + 6 + 6 * t])                   # noqa: E731
        return compare("f", along, dx, np.array([1.0, 2.0, 3.0]), np.ones(1), (along(0.0),), lambda k: (dx, along))

    assert not compared(1.0).wrong
    assert compared(1 + 1e-6).wrong


def stairs(x):
    """x or -x, in turn, along each 2⁻⁴⁰."""
    return np.where(x * 2.0 ** 40 % 2 < 1, x, -x)


def test_where_f_oscillates_within_all_widths_no_slope_is_measured():
    """Not even where the differences vanish, as at an extremum, or agree at some widths by chance.

    At five widths and eight fresh steps, random values of two kinds agree once in 8192 times: at one x, perhaps.
    """
    x = np.random.default_rng(0).uniform(0.5, 2, 1000)
    waves = np.round(x * 1e9 / (2 * np.pi)) * 2 * np.pi
    crests = (waves + np.arcsin(1 - np.linspace(0, 1e-6, 1000))) / 1e9
    for f, at in ((stairs, x), (lambda x: np.sin(1e9 * x), crests)):
        def along(t, f=f, at=at):
            return f(at + t * at)

        for value, error, *_ in (differences(along, WIDTHS, EPS), *(one_sided(along, sign, EPS) for sign in (1, -1))):
            assert (error < 0.01 * np.abs(value)).sum() <= 1
