"""C functions become functions of NumPy arrays, by their declarations."""
import ctypes
import inspect
import shutil
import subprocess

import numpy as np
import pytest

from pyllama.testing import c_function, foreign, gradcheck

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 4))

SOURCE = """
void scale(const double *x, const double *w, double *y, long n, long d, float factor)
{
    for (long i = 0; i < n * d; i++)
        y[i] = factor * w[i % d] * x[i];
}
void add(const float *x, float *sum, int n)
{
    for (int i = 0; i < n; i++)
        *sum += x[i];
}
void beyond(const double *x, double *y, long n)
{
    for (long i = 0; i <= n; i++)
        y[i] = 0;
}
void forgets(const double *x, double *y, long n)
{
    for (long i = 1; i < n; i++)
        y[i] = x[i];
}
void two(const int *ids, const double x[4], double a[4], double b[4], long n)
{
    for (long i = 0; i < 4; i++)
        a[i] = x[ids[i % n]], b[i] = -x[i];
}
"""
SCALE = "void scale(const double x[N][D], const double w[D], double y[N][D], long N, long D, float factor);"


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    if not (compiler := shutil.which("cc")):
        pytest.skip("there is no C compiler cc")
    folder = tmp_path_factory.mktemp("c")
    (folder / "lib.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "lib.so", folder / "lib.c"], check=True)
    return ctypes.CDLL(str(folder / "lib.so"))


@pytest.mark.parametrize("x", [X, X.repeat(2, 1)[:, ::2], np.asfortranarray(X), X[:0]])
def test_a_c_function_is_called_by_its_declaration(lib, x):
    assert np.allclose(c_function(lib.scale, SCALE)(x, W[0], 0.5), 0.5 * W[0] * x, rtol=1e-15)


def test_numbers_may_be_bound_and_names_are_those_of_the_declaration(lib):
    scale = c_function(lib.scale, SCALE, factor=2.0)
    assert [*inspect.signature(scale).parameters] == ["x", "w"]
    assert scale.__name__ == "scale"
    assert np.allclose(scale(X, W[0]), 2.0 * W[0] * X, rtol=1e-15)


def test_a_function_that_adds_to_its_output_starts_at_fill(lib):
    assert c_function(lib.add, "const float x[N], float sum[1], int N", fill=0.0)(np.ones(5, np.float32)) == 5


def test_several_outputs_and_integers(lib):
    two = c_function(lib.two, "const int ids[N], const double x[4], double a[4], double b[4], long N")
    a, b = two(np.array([3, 1], np.int32), X[0])
    assert np.array_equal(a, X[0, [3, 1, 3, 1]])
    assert np.array_equal(b, -X[0])


def test_a_write_outside_an_output_is_refused(lib):
    with pytest.raises(ValueError, match=r"beyond writes outside y, which has the shape \(3,\)"):
        c_function(lib.beyond, "const double x[N], double y[N], long N")(X[:, 0])


def test_a_number_that_is_not_written_is_nan(lib):
    y = c_function(lib.forgets, "const double x[N], double y[N], long N")(X[0])
    assert np.isnan(y).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("inputs", "error", "message"), [
    ((X.astype(np.float32), W[0], 1.0), TypeError, "scale takes x as float64, not float32; convert it"),
    ((X[0], W[0], 1.0), ValueError, r"scale takes x\[N\]\[D\], not an array of shape \(4,\)"),
    ((X, W[:, 0], 1.0), ValueError, "w of scale has the size 3 where D is 4"),
    ((X, W[0]), TypeError, "scale takes x, w, factor: give 3 inputs, not 2"),
])
def test_inputs_that_do_not_fit_the_declaration_are_refused(lib, inputs, error, message):
    with pytest.raises(error, match=message):
        c_function(lib.scale, SCALE)(*inputs)


@pytest.mark.parametrize(("declaration", "message"), [
    ("const double *x, double y[N]", r"'const double \*x' is not a parameter .* sizes in brackets"),
    ("const bool x[N], double y[N], long N", "'const bool x.N.' is not a parameter with a type of C"),
    ("const double x[N], long N", "no output, which is an array without const"),
    ("const double x[N], double y[M], long N, long M", "the size M of y is not a size of an input"),
])
def test_a_declaration_that_says_too_little_is_refused(declaration, message):
    with pytest.raises(ValueError, match=message):
        c_function(None, declaration)


def test_a_number_is_bound_by_a_name_of_the_declaration():
    with pytest.raises(ValueError, match="facto is bound, but it is not in the declaration; check its name"):
        c_function(None, SCALE, facto=2.0)


def test_gradcheck_takes_c_functions(lib):
    backward = "const double dy[N][D], const double w[D], double dx[N][D], long N, long D, float factor"
    scale, back = c_function(lib.scale, SCALE, factor=2.0), c_function(lib.scale, backward, factor=2.0)

    def gradients(dy, x, w):
        return back(dy, w), 2.0 * (dy * x).sum(0)

    assert gradcheck(scale, [X, W[0]], backward=gradients, seed=0)
    report = gradcheck(scale, [X, W[0]], backward=lambda dy, x, w: (back(dy, w), (dy * x).sum(0)), seed=0,
                       raise_exception=False)
    assert [(pair.input, pair.wrong) for pair in report.pairs] == [("x", False), ("w", True)]
    assert "# scale cannot be imported; define it first" in report.case


def test_a_bare_c_function_is_refused_with_the_cure(lib):
    with pytest.raises(TypeError, match="does not say which arguments are outputs"):
        gradcheck(lib.scale, [X, W[0]], backward=lambda dy, x, w: (dy, dy))
    with pytest.raises(TypeError, match=r"does not say which arguments are outputs; declare it: c_function\("):
        foreign.plain(lib.scale)
