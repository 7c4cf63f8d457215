"""The pytest plugin checks marked functions with drawn problems; a failure says what is wrong and how to replay it."""
import re

import pytest
from hypothesis import HealthCheck, given, settings

from pyllama.op import between
from pyllama.shapes import parse
from pyllama.testing.layouts import LAYOUTS
from pyllama.testing.plugin import run as plugin_run
from pyllama.testing.plugin.marker import Marked
from pyllama.testing.plugin.run import cases
from pyllama.testing.problems import EDGES
from tests.plugin_runs import ONCE, PLUGIN, RIGHT, TWICE, WRONG, failure, run, summary

pytest_plugins = ["pytester"]


# --- what is found ----------------------------------------------------------------------------------------------------

def test_a_right_gradient_passes(pytester):
    result = run(pytester, RIGHT)
    result.assert_outcomes(passed=1)
    assert summary(result) == (1, 25, 0)


def test_a_wrong_gradient_fails_with_the_report_and_the_smallest_case_which_fails_again(pytester, monkeypatch):
    result = run(pytester, WRONG)
    result.assert_outcomes(failed=1)
    lines = failure(result)
    assert lines[0] == "test_wrong: 1 of 2 gradients is wrong"
    assert any(re.match(r"\* x +y +complex step .* > .* wrong", line) for line in lines)
    text = "\n".join(lines).partition("The smallest failing case:\n")[2]
    python = re.search(r"^    import numpy.*?^    gradcheck\(.*?\)$", text, re.M | re.S)[0]
    monkeypatch.syspath_prepend(pytester.path)
    with pytest.raises(AssertionError, match="1 of 2 gradients is wrong"):
        exec(re.sub(r"^    ", "", python, flags=re.M), {})


def test_the_last_line_of_a_failure_replays_it(pytester):
    """Whatever the seed: the drawn sizes decide where the failure is met first."""
    result = run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_partly(x):
    return 1 * x, lambda dy: dy * (1 if len(x) < 3 else 1.5)
""", seed=None)
    *_, command = failure(result)
    tests, examples, seed = summary(result)
    assert command == f"pytest test_it.py::test_partly --gradcheck-seed={seed} --gradcheck-examples=25"
    again = pytester.runpytest_inprocess(*PLUGIN, *command.split()[1:])
    assert failure(again) == failure(result)
    assert summary(again) == (tests, examples, seed)


def test_a_seed_varies_from_run_to_run(pytester):
    assert summary(run(pytester, ONCE, seed=None))[2] != summary(run(pytester, ONCE, seed=None))[2]


def test_shrinking_ends_after_a_number_of_cases(pytester, monkeypatch):
    """The function is slow, say: then the smallest case so far is shown."""
    monkeypatch.setattr(plugin_run, "SHRINKS", 2)
    result = run(pytester, TWICE)
    result.assert_outcomes(failed=1)
    assert "The smallest failing case:" in failure(result)


WRONG_GRADIENTS = {
    "lost duplicates": """
        @pytest.mark.gradcheck("table[V D], ids[... T]<V -> y[... T D]")
        def test_it(table, ids):
            def back(dy):
                d = np.zeros_like(table)
                d[ids] = dy
                return d, None
            return table[ids], back
        """,
    "dy read as contiguous": """
        @pytest.mark.gradcheck("x[N D] -> y[N D]")
        def test_it(x):
            def back(dy):
                in_a_row = np.lib.stride_tricks.as_strided(dy, dy.shape, (dy.shape[1] * dy.itemsize, dy.itemsize))
                return 2 * (in_a_row if dy.size else dy)
            return 2 * x, back
        """,
    "input read as contiguous": """
        @pytest.mark.gradcheck("x[N D] -> y[N D]")
        def test_it(x):
            def back(dy):
                in_a_row = np.lib.stride_tricks.as_strided(x, x.shape, (x.shape[1] * x.itemsize, x.itemsize))
                return 2 * (in_a_row if x.size else x) * dy
            return x * x, back
        """,
    "input mutated": """
        @pytest.mark.gradcheck("x[N] -> y[N]")
        def test_it(x):
            if x.flags.writeable:
                x *= 2
            return 1 * x, lambda dy: 2 * dy
        """,
    "wrong for odd sizes": """
        @pytest.mark.gradcheck("x[N] -> y[N]")
        def test_it(x):
            def back(dy):
                dx = 3 * dy
                dx[len(x) // 8 * 8:] *= len(x) < 16
                return dx
            return 3 * x, back
        """,
    "wrong in float32": """
        @pytest.mark.gradcheck("x[N] -> y[N]", dtypes=["float32"])
        def test_it(x):
            return np.exp(x), lambda dy: np.exp(x) * dy * (1 if x.dtype != np.float32 else 1.01)
        """,
    "wrong for one value of an option": """
        @pytest.mark.gradcheck("x[N] -> y[N]", power=[1, 2, 3])
        def test_it(x, power):
            return x ** power, lambda dy: power * x ** (power - 1) * dy * (power != 3)
        """,
    "optional input": """
        @pytest.mark.gradcheck("x[N], b[N]? -> y[N]")
        def test_it(x, b):
            return (x if b is None else x + 2 * b), lambda dy: (dy, None if b is None else dy)
        """,
}


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
@pytest.mark.parametrize("seed", range(3))
def test_wrong_gradients_fail(pytester, monkeypatch, name, seed):
    monkeypatch.setattr(plugin_run, "SHRINKS", 2)           # that they fail is tested here, not with how few numbers
    source = "\n".join(line[8:] for line in WRONG_GRADIENTS[name].splitlines())
    run(pytester, source, seed=seed).assert_outcomes(failed=1)


RIGHT_GRADIENTS = """
@pytest.mark.gradcheck("x[N] -> y[N]", dtypes=["float64", "float32", "float16", "bfloat16"])
def test_relu(x):
    return np.maximum(x, 0), lambda dy: dy * (x > 0)

@pytest.mark.gradcheck("x[... D] -> y[... D]")
def test_softmax(x):
    e = np.exp(x - x.real.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, lambda dy: y * (dy - (y * dy).sum(-1, keepdims=True))

@pytest.mark.gradcheck("x[N], p[N] -> y[N]", x=between(0.1, 2.0), p=between(0.0, 1.0))
def test_log(x, p):
    return p * np.log(x), lambda dy: (dy * p / x, dy * np.log(x))

@pytest.mark.gradcheck("x[N K], w[M K], b[M]? -> y[N M]")
def test_linear(x, w, b):
    def back(dy):
        return dy @ w, dy.T @ x, None if b is None else dy.sum(0)
    return x @ w.T + (0 if b is None else b), back

@pytest.mark.gradcheck("table[V D], ids[... T]<V -> y[... T D]")
def test_embedding(table, ids):
    def back(dy):
        d = np.zeros_like(table)
        np.add.at(d, ids, dy)
        return d, None
    return table[ids], back

@pytest.mark.gradcheck("x[N] -> low[N], high[N]")
def test_two_outputs(x):
    return (x - 1, x * x), lambda dys: dys[0] + 2 * x * dys[1]

@pytest.mark.gradcheck("x[N] -> y[]")
def test_a_number(x):
    return np.sum(x * x), lambda dy: 2 * x * dy
"""


@pytest.mark.parametrize("seed", range(3))
def test_right_gradients_pass(pytester, seed):
    run(pytester, RIGHT + RIGHT_GRADIENTS, "--gradcheck-examples=10", seed=seed).assert_outcomes(passed=8)

# --- what is drawn ----------------------------------------------------------------------------------------------------

def test_sizes_layouts_dtypes_and_options_vary():
    inputs, _ = parse("x[... D], ids[T]<V, b[D]? -> y[... D]")
    options = {"eps": between(0.0, 0.5), "mode": ["a", "b"], "k": 3}
    test = Marked("", "", print, inputs, [], {"b": between(0.5, 2.0)}, options, ("float64", "float32"), {}, {})
    seen = set()

    @settings(max_examples=500, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck])
    @given(cases(test))
    def draw(case):
        x, ids, b = case.inputs
        assert b is None or ((b >= 0.5) & (b <= 2)).all()
        assert 0 <= case.options["eps"] <= 0.5
        assert case.options["k"] == 3
        assert not {*case.layouts.values()} - {*LAYOUTS} | ({"b"} & {*case.layouts} if b is None else set())
        seen.update([f"{x.ndim} axes", f"D = {x.shape[-1]}", x.dtype.name, case.options["mode"], f"b: {b is not None}"])
        seen.update(["empty"] * (x.size == 0), ["eps"] * (case.options["eps"] > 0.1))
        seen.update(case.layouts.values() or ["as drawn"], [f"{name} laid out" for name in case.layouts])
        seen.update(["repeated ids"] * (len({*ids.tolist()}) < ids.size))

    draw()
    assert seen == {"1 axes", "2 axes", "3 axes", *(f"D = {n}" for n in [1, 2, 3, 4, 5, *EDGES]), "float64", "float32",
                    "a", "b", "b: True", "b: False", "empty", "eps", "as drawn", *LAYOUTS.keys() - {"C"},
                    "x laid out", "ids laid out", "b laid out", "dy laid out", "repeated ids"}


def test_the_function_gets_what_is_drawn(pytester):
    run(pytester, """
SEEN = set()

@pytest.mark.gradcheck("x[N], ids[T]<V, b[N]? -> y[N]", mode=["a", "b"], k=3)
def test_draws(x, ids, b, mode, k):
    assert ids.dtype == np.int64 and k == 3
    SEEN.update([mode, b is None, "read-only" * (not x.flags.writeable), x.dtype.name])
    return x + (0 if b is None else b), lambda dy: (dy, None, None if b is None else dy)

def test_seen():
    assert SEEN >= {"a", "b", True, False, "", "read-only", "float64", "float32", "complex128"}
""").assert_outcomes(passed=2)


def test_numbers_stay_in_their_range(pytester):
    """gradcheck moves them, but for at most its own steps."""
    run(pytester, """
@pytest.mark.gradcheck("x[N] -> y[N]", x=between(0.5, 2.0))
def test_range(x):
    assert (x.real > 0.2).all() and (x.real < 3).all()
    return np.log(x), lambda dy: dy / x
""").assert_outcomes(passed=1)


def test_other_arguments_are_fixtures_and_parameters(pytester):
    run(pytester, """
SETUPS = []

@pytest.fixture
def scale():
    SETUPS.append("scale")
    yield 2.0
    SETUPS.append("down")

@pytest.fixture
def x():
    raise AssertionError("the drawn input hides this fixture")

@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.gradcheck("x[N] -> y[N]")
def test_function(x, scale, k, request, tmp_path):
    assert tmp_path.is_dir() and k in (1, 2) and request.node.name == f"test_function[{k}]"
    return x * scale * k, lambda dy: scale * k * dy

class TestClass:
    factor = 3

    @pytest.mark.gradcheck("x[N] -> y[N]")
    def test_method(self, x, scale, eps=0.5):
        assert eps == 0.5
        return x * self.factor, lambda dy: dy * self.factor

def test_fixtures_are_set_up_once_for_each_test():
    assert SETUPS == ["scale", "down"] * 3
""").assert_outcomes(passed=4)
