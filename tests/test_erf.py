"""The error function beside SciPy's: values, symmetries, derivative, edges, dtypes, arrays of a GPU."""
import numpy as np
import pytest

from pyllama.erf import erf
from tests import fakecupy

exact_erf = pytest.importorskip("scipy.special", reason="needs SciPy to compare erf with: pip install scipy").erf
EPS = np.finfo(float).eps


def normal(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count)


def plane(height, count=20_000):
    """Numbers of the complex plane with |Im z| <= height: anywhere, on the imaginary axis, and at the poles of the
    terms that erf is the sum of."""
    rng = np.random.default_rng(1)
    z = rng.uniform(-10, 10, count) + 1j * rng.uniform(-height, height, count)
    return np.concatenate([z, 1j * z.imag, 1j * np.arange(-height, height + 1 / 8, 1 / 8)])


def test_of_real_numbers_to_1e_14_of_themselves():
    sizes = 10.0 ** np.random.default_rng(0).uniform(-300, 3, 10_000)
    x = np.concatenate([3 * normal(10_000), sizes, -sizes])
    np.testing.assert_allclose(erf(x), exact_erf(x), rtol=1e-14, atol=0)


def test_of_complex_numbers_to_1e_14_of_themselves_or_of_1():
    z = plane(3)
    exact = exact_erf(z)
    assert np.all(np.abs(erf(z) - exact) <= 1e-14 * np.maximum(1, np.abs(exact)))


def test_far_from_the_real_axis_as_well_as_the_square_of_a_number_is_known():
    """Which both are sensitive to: exp(-z²) turns a rounding of z² into a relative error."""
    z = plane(26)
    exact = exact_erf(z)
    bound = 1e-14 + 4 * EPS * np.abs(z) ** 2
    assert np.all(np.abs(erf(z) - exact) <= bound * np.maximum(1, np.abs(exact)))


def test_its_derivative_is_exact_by_a_complex_step():
    x = np.linspace(-6, 6, 1001)
    derivative = erf(x + 1e-30j).imag / 1e-30
    np.testing.assert_allclose(derivative, 2 / np.sqrt(np.pi) * np.exp(-x * x), rtol=1e-14, atol=0)


@pytest.mark.parametrize("z", [3 * normal(1000), plane(26)], ids=["real", "complex"])
def test_it_is_odd_and_commutes_with_conjugation(z):
    np.testing.assert_array_equal(erf(-z), -erf(z))
    np.testing.assert_array_equal(erf(z.conj()), erf(z).conj())


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_edges(dtype):
    x = np.array([0, np.inf, -np.inf, np.nan, 1e30, -1e30, 8], dtype)
    np.testing.assert_array_equal(erf(x), np.array([0, 1, -1, np.nan, 1, -1, 1], dtype))


def test_far_from_the_imaginary_axis_it_is_one():
    z = np.array([np.inf + 3j, 1e300 - 20j, -1e200 + 1e-300j, 27 + 26j])
    np.testing.assert_allclose(erf(z), [1, 1, -1, exact_erf(27 + 26j)], rtol=1e-14)


def test_of_what_it_does_not_know_it_is_nan():
    z = np.array([np.nan + 1j, complex(1, np.nan), complex(0, np.inf), 27j, 1e300 + 1e300j])
    assert np.all(np.isnan(erf(z)))


@pytest.mark.parametrize(("dtype", "wide"), [("float32", "float64"), ("complex64", "complex128")])
def test_single_precision_is_rounded_from_double(dtype, wide):
    z = (normal(10_000) if dtype == "float32" else plane(3)).astype(dtype)
    result = erf(z)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, erf(z.astype(wide)).astype(dtype))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_the_array_keeps_its_shape_and_its_numbers(shape):
    for z in (np.ones(shape), np.ones(shape, complex)):
        z.flags.writeable = False
        assert erf(z).shape == shape
        assert np.all(z == 1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_arrays_of_a_gpu_stay_there(dtype):
    cupy = fakecupy.module()
    z = plane(3, 100).astype(dtype) if dtype.startswith("c") else normal(100).astype(dtype)
    result = erf(cupy.asarray(z))
    assert type(result) is cupy.ndarray
    np.testing.assert_array_equal(result.get(), erf(z))
