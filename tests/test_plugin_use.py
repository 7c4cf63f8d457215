"""How the pytest plugin is used: settings, and what is wrong in a test, in one sentence or with its traceback."""
import pytest

from tests.plugin_runs import HEAD, ONCE, failure, quiet, run, run_subprocess, summary

pytest_plugins = ["pytester"]


# --- settings ---------------------------------------------------------------------------------------------------------

COUNTED = """
@pytest.mark.gradcheck("x[N] -> y[N]"{})
def test_it(x):
    return 1 * x, lambda dy: 1 * dy
"""


@pytest.mark.parametrize(("marker", "ini", "arguments", "examples"), [
    ("", "", [], 25),
    ("", "gradcheck_examples = 7", [], 7),
    (", examples=6", "gradcheck_examples = 7", [], 6),
    (", examples=6", "gradcheck_examples = 7", ["--gradcheck-examples=5"], 5),
])
def test_the_number_of_examples(pytester, marker, ini, arguments, examples):
    pytester.makeini(f"[pytest]\n{ini}")
    result = run(pytester, COUNTED.format(marker), *arguments)
    result.assert_outcomes(passed=1)
    assert summary(result)[1] == examples


@pytest.mark.parametrize(("marker", "ini", "arguments", "seed"), [
    ("", "gradcheck_seed = 7", [], 7),
    (", seed=6", "gradcheck_seed = 7", [], 6),
    (", seed=6", "gradcheck_seed = 7", ["--gradcheck-seed=0"], 0),
])
def test_the_seed(pytester, marker, ini, arguments, seed):
    pytester.makeini(f"[pytest]\n{ini}")
    result = run(pytester, COUNTED.format(marker).replace("1 * dy", "2 * dy"), *arguments, seed=None)
    assert f"--gradcheck-seed={seed} " in failure(result)[-1]


@pytest.mark.parametrize(("arguments", "ini", "message"), [
    (["--gradcheck-examples=0"], "", "--gradcheck-examples is 0; give an integer from 1 up"),
    (["--gradcheck-seed=-1"], "", "--gradcheck-seed is -1; give an integer from 0 up"),
    ([], "gradcheck_seed = new", "is new; give an integer from 0 up"),
])
def test_a_wrong_setting_is_refused(pytester, arguments, ini, message):
    pytester.makeini(f"[pytest]\n{ini}")
    result = run(pytester, ONCE, *arguments, seed=None)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{message}"])

# --- wrong use: one sentence, no traceback of ours --------------------------------------------------------------------

LINE = '"x[N] -> y[N]"'
MISUSE = {                                                      # the marker, the parameters, the sentence
    "no line": ("", "x", "the marker gradcheck takes one shape line; write @pytest.mark.gradcheck(*"),
    "no shape line": ('"x[N] y[N]"', "x", "* is not a shape line: it has 0 arrows; write one such as *"),
    "no such input": (LINE, "z", "test_it() has no parameter 'x', which * has as an input; name the parameters *"),
    "no such fixture": (LINE, "x, z", "'z' is a parameter of test_it(), but neither an input of * nor *"),
    "no such option": (f"{LINE}, epsilon=1", "x", "the marker gradcheck has epsilon=, but test_it() has no such *"),
    "no range": (f"{LINE}, x=3", "x", "the marker gradcheck has x=3; give a range of a floating input, *"),
    "range of integers": ('"x[N], i[T]<N -> y[N]", i=between(0, 1)', "x, i", "* has i=between(*; give a range of a *"),
    "no dtype": (f"{LINE}, dtypes='float63'", "x", "the marker gradcheck has dtypes='float63'; give some of *"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_wrong_marker_fails_with_one_sentence(pytester, name):
    marker, parameters, message = MISUSE[name]
    result = run(pytester, f"""
@pytest.mark.gradcheck({marker})
def test_it({parameters}):
    return 1 * x, lambda dy: 1 * dy
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    assert len(failure(result)) == 1
    assert quiet(result)


@pytest.mark.parametrize(("returned", "message"), [
    ("[x]", "test_it returned a list of 1; return y, back*"),
    ("x", "test_it returned a* array; return y, back*"),
    ("None", "test_it returned None; return y, back*"),
    ("(x, lambda dy: (dy, dy))", "back returned a tuple of 2 for 1 input; return a gradient for each*"),
    ("(np.full(x.shape, np.nan), lambda dy: dy)", "test_it returned NaN; *; the marker takes ranges, such as x=*"),
])
def test_a_function_that_returns_something_else_fails_with_one_sentence(pytester, returned, message):
    result = run(pytester, f"""
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_it(x):
    return {returned}
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    assert failure(result)[-1].startswith("pytest test_it.py::test_it --gradcheck-seed=0")
    assert "x = np.array([0.0])" in result.stdout.str()
    assert quiet(result)


def test_an_input_that_is_parametrized_is_refused(pytester):
    result = run(pytester, """
@pytest.mark.parametrize("x", [1])
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_it(x):
    return 1 * x, lambda dy: 1 * dy
""")
    result.stdout.fnmatch_lines(["'x' is drawn by the marker gradcheck and parametrized, too; rename one of the two"])
    assert quiet(result)


def test_a_method_of_unittest_is_refused(pytester):
    result = run(pytester, """
import unittest

class Test(unittest.TestCase):
    @pytest.mark.gradcheck("x[N] -> y[N]")
    def test_it(self, x):
        return 1 * x, lambda dy: 1 * dy
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the marker gradcheck is not for methods of unittest.TestCase; *"])


def test_a_function_that_assumes_everything_away_is_refused(pytester):
    result = run(pytester, """
from hypothesis import assume

@pytest.mark.gradcheck("x[N] -> y[N]")
def test_it(x):
    assume(False)
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["gradcheck: test_it() assumes away all that is drawn; give ranges of *"])


def test_a_gradient_that_is_never_judged_fails(pytester):
    """Here the only method needs a jvp, and there is none; an empty case shows nothing."""
    result = run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]", methods=["dot product"])
def test_it(x):
    return 1 * x, lambda dy: 1 * dy
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_it: 1 of 1 gradient could not be judged", "No case of 25 could be judged."])
    assert failure(result)[-1].startswith("pytest test_it.py::test_it")


def test_a_function_that_fails_at_random_is_refused(pytester):
    result = run(pytester, """
CALLS = []

@pytest.mark.gradcheck("x[N] -> y[N]")
def test_it(x):
    CALLS.append(x)
    assert len(CALLS) > 1
    return 1 * x, lambda dy: 1 * dy
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["test_it() raised an error, but not with the same inputs again: *"])
    assert quiet(result)


def test_without_hypothesis_a_marked_test_says_how_to_install_it(pytester, monkeypatch):
    pytester.makeconftest("import sys; sys.modules['hypothesis'] = None")
    pytester.makepyfile(test_it=HEAD + ONCE + "def test_other(): pass")
    result = run_subprocess(pytester, monkeypatch, "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["gradcheck draws its inputs with Hypothesis, which is not installed: pip install *"])

# --- the user's own failures ------------------------------------------------------------------------------------------

def test_an_error_in_back_keeps_its_traceback_and_names_the_smallest_inputs(pytester):
    result = run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_it(x):
    def back(dy):
        assert dy.size < 4, "too many"
        return dy
    return 1 * x, back
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">       assert dy.size < 4, *", "E       AssertionError: too many", "test_it.py:*"])
    assert "x = np.array([0.0, 0.0, 0.0, 0.0])" in result.stdout.str()
    assert failure(result)[-1] == "pytest test_it.py::test_it --gradcheck-seed=0 --gradcheck-examples=25"
    assert quiet(result)


def test_a_warning_is_the_users_own_error(pytester):
    """With -W error, as in this test suite, NumPy's warnings are errors of the function."""
    result = run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_it(x):
    return np.log(x), lambda dy: dy / x
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       RuntimeWarning: divide by zero encountered in log", "test_it.py:*"])


def test_outcomes_of_pytest_pass_through(pytester):
    run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_skips(x):
    pytest.skip("not here")

@pytest.mark.xfail(strict=True)
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_xfails(x):
    return 1 * x, lambda dy: 2 * dy

@pytest.mark.skip
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_is_skipped(x):
    raise AssertionError
""").assert_outcomes(skipped=2, xfailed=1)


# --- the line is a contract -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("function", "last"), [
    ("assert x.dtype == np.float64", "AssertionError"),
    ("if x.dtype == np.float32: raise TypeError('no')", "TypeError: no"),
])
@pytest.mark.parametrize("place", ["forward", "back"])
def test_what_fails_in_one_dtype_alone_fails_with_the_traceback_and_the_dtype(pytester, function, last, place):
    forward, back = (function if where == place else "pass" for where in ("forward", "back"))
    source = f"""
@pytest.mark.gradcheck("x[N] -> y[N]"{{}})
def test_it(x):
    {forward}
    def back(dy):
        {back}
        return 2 * x * dy
    return x * x, back
"""
    result = run(pytester, source.format(""))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f">*{function}", f"E  *{last}*", "It was called in float32:"])
    run(pytester, source.format(", dtypes=['float64']")).assert_outcomes(passed=1)


def test_an_output_that_is_not_that_of_the_line_fails(pytester):
    result = run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_wide(x):
    return x.astype(np.float64), lambda dy: dy.astype(x.dtype)

@pytest.mark.gradcheck("x[N D] -> y[N D]")
def test_total(x):
    return x.sum(0), lambda dy: dy * np.ones_like(x)

@pytest.mark.gradcheck("x[N] -> double[N], y[]")
def test_right(x):
    return (2 * x, float(x.sum())), lambda d: 2 * d[0] + d[1]
""")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*y is float64 for inputs of float32; return that precision",
                                 "    y, back = checked(x)",
                                 "*y has shape (?,), the line says y?N D? = (?, ?)"])
