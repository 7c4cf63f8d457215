"""The smallest failing case is a local minimum, and as Python it fails again."""
import dataclasses
import functools
import time
import types
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from pyllama.ops import rms_norm
from pyllama.testing import gradcheck
from pyllama.testing.report import GradcheckError
from pyllama.testing.report.pasted import as_python
from pyllama.testing.report.smallest import smallest

RNG = np.random.default_rng(0)


def test_axes_of_one_length_shrink_together():
    x, w, z = RNG.standard_normal((6, 7)), RNG.standard_normal((7, 5)), RNG.standard_normal((5, 7))
    small = smallest(lambda a: (a[0] @ a[1] @ a[2]).shape[1] > 0, [x, w, z])      # shapes that do not fit raise
    assert [a.shape for a in small] == [(1, 1), (1, 1), (1, 1)]


def test_an_axis_shrinks_alone_where_the_others_of_its_length_cannot():
    x, y = RNG.standard_normal((4, 4)), RNG.standard_normal(4)
    small = smallest(lambda a: a[0].shape[1] == a[1].shape[0] == 4, [x, y])
    assert [a.shape for a in small] == [(1, 4), (4,)]


def test_a_length_that_is_needed_stays():
    small, = smallest(lambda a: a[0].shape[0] >= 3 and a[0].shape[1] % 2 == 0, [RNG.standard_normal((9, 8))])
    assert small.shape == (3, 2)


def test_the_entries_that_matter_may_be_anywhere():
    x = np.zeros(40)
    x[17], x[30] = 0.7, -0.3
    small, = smallest(lambda a: (a[0] > 0.6).any() and (a[0] < -0.2).any(), [x])
    assert small.size == 14
    assert sorted(small[[0, -1]]) == [-0.25, 1.0]
    assert not small[1:-1].any()


@pytest.mark.parametrize(("fails", "value"), [
    (lambda x: True, 0.0), (lambda x: x != 0, 1.0), (lambda x: 0 < x < 1, 0.5), (lambda x: 0 < x < 0.5, 0.375),
    (lambda x: x > 1.5, 2.0), (lambda x: x < 0, -0.375), (lambda x: x == 0.3141, 0.3141)])
def test_numbers_become_simple(fails, value):
    start = 0.3141 if fails(0.3141) else -0.3141 if fails(-0.3141) else 1.7431
    small, = smallest(lambda a: fails(a[0][()]), [np.array(start)])
    assert small == value
    assert small.dtype == np.float64


def test_ids_stay_below_the_length_of_the_table():
    ids, table = np.array([[5, 3, 5], [1, 5, 0]]), RNG.standard_normal((6, 4))

    def fails(leaves):
        ids, table = leaves
        return table[ids].size > 0 and np.bincount(ids.ravel()).max() > 1        # an id occurs twice

    ids, table = smallest(fails, [ids, table])
    assert (ids.size, table.shape) == (2, (1, 1))
    assert not ids.any()


@pytest.mark.parametrize("x", [np.array([3, -7]), np.array([True, True]), np.array([1.7, 2.2], "float32"),
                               np.array([1.7, 2.2], "float16"), np.array([1.7, 2.2], ml_dtypes.bfloat16)])
def test_precisions_stay(x):
    small, other = smallest(lambda a: a[0].size > 0 and a[1] is None, [x, None])
    assert small.dtype == x.dtype
    assert not small.any()
    assert small.shape == (1,)
    assert other is None


def test_the_leaves_that_were_given_stay_as_they_are():
    x = RNG.standard_normal((3, 3))
    before = x.copy()

    def writes(leaves):
        leaves[0][...] = 9
        return True

    smallest(writes, [x])
    assert np.array_equal(x, before)


def test_it_stops_at_the_deadline_with_what_it_has():
    calls = []

    def slow(leaves):
        calls.append(1)
        time.sleep(0.01)
        return True

    x = RNG.standard_normal((8, 8))
    assert smallest(slow, [x], time.monotonic() - 1)[0] is x
    assert not calls
    small, = smallest(slow, [x], time.monotonic() + 0.015)
    assert 1 <= len(calls) <= 2
    assert small.size < x.size


def is_local_minimum(fails, leaves):
    return all(a is b for a, b in zip(smallest(fails, leaves), leaves, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_result_is_a_local_minimum(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((5, 6)), rng.standard_normal(6)

    def fails(leaves):
        x, w = leaves
        return (np.abs(x * w).sum(1) > 2).any() and (x < 0).any()

    small = smallest(fails, [x, w])
    assert fails(small)
    assert is_local_minimum(fails, small)


# --- as Python --------------------------------------------------------------------------------------------------------

def lost_duplicates(ids, w):
    """A wrong backward pass to import."""
    def back(dy):
        dw = np.zeros(w.shape)
        dw[ids] = dy
        return None, dw
    return w[ids], back


def test_pasted_into_a_fresh_python_it_fails_again():
    text = as_python(f"{__name__}:lost_duplicates", {"ids": np.array([1, 0, 1]), "w": np.array([[0.5], [0.0]])},
                     {"seed": 3})
    with pytest.raises(GradcheckError):
        exec(text, {})


def test_a_function_of_a_file_and_a_tree_of_arrays(tmp_path):
    (tmp_path / "mine.py").write_text("def scaled(p, x):\n"
                                      "    w = p['a']['w']\n"
                                      "    return w * x, lambda dy: ({'a': {'w': 2 * dy * x}}, dy * w)\n")
    text = as_python(f"{tmp_path}/mine.py:scaled", {"p": {"a": {"w": np.array([1.0, 0.5])}}, "x": np.array([1.0, 2.0])})
    with pytest.raises(GradcheckError):
        exec(text, {})


def test_a_backward_function_is_imported_too():
    text = as_python(f"{__name__}:cube", {"x": np.array([2.0])}, {"backward": cube_backward})
    with pytest.raises(GradcheckError):
        exec(text, {})


def cube(x):
    return x ** 3


def cube_backward(dy, x):
    return 2 * x * dy


@pytest.mark.parametrize("function", ["__main__:f", "f", "<lambda>", "mine:f.<locals>.g"])
def test_a_function_that_cannot_be_imported_is_named_in_a_comment(function):
    text = as_python(function, {"x": np.array([1.0])})
    comment, = (line for line in text.splitlines() if line.startswith("#"))
    name = text.splitlines()[-1].removeprefix("gradcheck(").partition(",")[0]
    assert name in comment
    exec(text, {"f": cube_and_back, "g": cube_and_back})


def cube_and_back(x):
    return x ** 3, lambda dy: 3 * x * x * dy


ARRAYS = [np.array(0.1), np.array([]), np.zeros((0, 3), "float32"), RNG.standard_normal((4, 7)),
          np.array([-0.0, 1e-320]),
          RNG.standard_normal((2, 3)).astype("float32"), np.array([0.1, 1e30], "float32"), np.ones((5, 4)),
          np.array([0.1, 3], "float16"), np.array([0.1, 3], ml_dtypes.bfloat16), np.array([[True], [False]]),
          np.array([np.nan, np.inf, -np.inf]), np.array([7, -8], "int32"), np.arange(60), np.array(3, "uint8"),
          RNG.standard_normal((1, 1, 30))]


@pytest.mark.parametrize("x", ARRAYS, ids=lambda x: f"{x.dtype} {x.shape}")
def test_every_array_is_written_exactly(x):
    text = as_python("f", {"x": x})
    assert max(map(len, text.splitlines())) <= 120
    names = {}
    exec(text.rpartition("gradcheck(")[0], names)
    assert names["x"].dtype == x.dtype
    assert names["x"].shape == x.shape
    assert names["x"].tobytes() == x.tobytes()


def cubed(x, factor):
    return factor * x ** 3, lambda dy: 2 * factor * x * x * dy


@pytest.mark.parametrize("function", [functools.partial(cubed, factor=0.5), lost_duplicates])
def test_the_function_itself_is_imported(function):
    named = {"ids": np.array([0, 0]), "w": np.ones((1, 1))} if function is lost_duplicates else {"x": np.ones(2)}
    with pytest.raises(GradcheckError):
        exec(as_python(function, named, {"seed": 0}), {})


@dataclasses.dataclass
class Weights:
    w: object
    b: object


class Pair(NamedTuple):
    a: object
    b: object


def of_weights(p):
    return p.w * p.b, lambda dy: Weights(dy * p.b, 2 * dy * p.w)


def of_pair(p):
    return p.a * p.b, lambda dy: Pair(dy * p.b, 2 * dy * p.a)


def of_keys(p):
    return p[1] * p["a.b"], lambda dy: {1: dy * p["a.b"], "a.b": 2 * dy * p[1]}


def of_number(x, k):
    return x * k, lambda dy: (dy * k, 2 * dy * x)


@pytest.mark.parametrize(("function", "inputs"), [
    (of_weights, [Weights(np.ones(2), np.ones(2))]),
    (of_pair, [Pair(np.ones(2), np.ones(2))]),
    (of_keys, [{1: np.ones(2), "a.b": np.ones(2)}]),
    (of_number, [2.0, np.float32(3)]),
    (functools.partial(cubed, factor=np.arange(1.0, 3.0)), [np.ones(2)]),
])
def test_the_case_of_a_report_has_the_inputs_in_their_form(function, inputs):
    report = gradcheck(function, inputs, seed=0, raise_exception=False)
    with pytest.raises(GradcheckError):
        exec(report.case, {})


@pytest.mark.parametrize("function", [types.MethodType(cube, 1), lambda x: x ** 3])
def test_what_cannot_be_imported_gets_a_name_of_its_own(function):
    text = as_python(function, {"x": np.ones(2)}, {"backward": lambda dy, x: x * x * dy})
    assert "from " not in text.replace("from pyllama.testing import gradcheck", "")
    assert "# backward cannot be imported; define it first" in text


def test_two_functions_of_one_module_are_one_import():
    text = as_python(f"{__name__}:cube", {"x": np.array([2.0])}, {"backward": cube_backward})
    assert f"from {__name__} import cube, cube_backward\n" in text


def test_an_op_is_imported_with_its_options():
    text = as_python(functools.partial(rms_norm, eps=0.5), {"x": np.ones((1, 2)), "w": np.ones(2)}, {"seed": 0})
    assert "from pyllama.ops import rms_norm" in text
    exec(text, {})


def test_a_function_inside_another_keeps_its_name():
    def inner(x):
        return x, lambda dy: dy

    text = as_python(inner, {"x": np.ones(2)})
    assert text.endswith("gradcheck(inner, [x])")
    assert "# inner cannot be imported; define it first" in text


def test_the_call_has_short_literals():
    text = as_python("m:f", {"input 0": np.array([[1.0, 0.5]]), "w": np.array([2, 0])}, {"seed": 1, "kinks": "raise"})
    assert text.splitlines()[4:] == ["x0 = np.array([[1.0, 0.5]])", "w = np.array([2, 0])",
                                     "gradcheck(f, [x0, w], seed=1, kinks='raise')"]


def test_from_a_wrong_function_to_the_smallest_case():
    """The whole way: the predicate is gradcheck itself."""
    def fails(leaves):
        return not gradcheck(lost_duplicates, leaves, seed=0, budget=None, raise_exception=False)

    ids, table = smallest(fails, [np.array([4, 1, 4, 0]), RNG.standard_normal((5, 3))])
    assert np.bincount(ids).max() > 1
    assert (ids.size, table.shape) == (2, (1, 1))
    with pytest.raises(GradcheckError):
        exec(as_python(f"{__name__}:lost_duplicates", {"ids": ids, "w": table}, {"seed": 0}), {})
