"""pyllama check of somebody's own functions: where their inputs come from, what is printed, exit codes, wrong use."""
import json
import sys

import numpy as np
import pytest

from pyllama.cli import main
from pyllama.testing.shaped import check_shapes, line_beside

MINE = '''
import numpy as np
from pyllama.op import op

def scale(x, w):
    """Scaled rows.

    x[... D], w[D] -> y[... D]
    """
    return x * w, lambda dy: (dy * w, (dy * x).reshape(-1, w.size).sum(0))

def twice(x, w):
    """x[... D], w[D] -> y[... D]"""
    return x * w, lambda dy: (2 * dy * w, (dy * x).reshape(-1, w.size).sum(0))

def product(x, w):
    return x * w, lambda dy: (dy * w, dy * x)

def inputs():
    return [np.array([1.0, 2.0]), np.array([0.5, 3.0])]

def log(x):
    return np.log(x)

def log_backward(dy, x):
    return dy / x

def with_saved(x):
    return x * x, (x,)

def with_saved_backward(dy, x):
    return 2 * x * dy

def lookup(w, ids):
    def back(dy):
        dw = np.zeros_like(w)
        np.add.at(dw, ids, dy)
        return dw, None
    return w[ids], back

def biased(x, b=None):
    return (x if b is None else x + b), lambda dy: (dy, None if b is None else dy.reshape(-1, b.size).sum(0))

def fails(x):
    raise KeyError("no")

number = 7
square = op("x[N] -> y[N]", lambda x: (x * x, (x,)), lambda dy, x: (2 * x * dy,), name="mine.square")
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyllama.op.OPS", __import__("pyllama.op", fromlist=["OPS"]).OPS.copy())
    (tmp_path / "to_check.py").write_text(MINE)
    return tmp_path


def call(capsys, *argv):
    return main(["check", *map(str, argv)]), *capsys.readouterr()


@pytest.mark.parametrize("words", [
    ["to_check.py:scale"],
    ["to_check:scale", "--shapes", "x[D], w[D] -> y[D]"],
    ["to_check.py:product"],
    ["to_check.py:log", "--backward", "to_check.py:log_backward", "--shapes", "x[... N] -> y[... N]"],
    ["to_check.py:with_saved", "--backward", "to_check.py:with_saved_backward", "--saved", "--shapes", "x[N] -> y[N]"],
    ["to_check.py:lookup", "--shapes", "ids[B T]<V, w[V D] -> y[B T D]"],
    ["to_check.py:biased", "--shapes", "x[... D], b[D]? -> y[... D]"],
    ["numpy:tanh", "--shapes", "x[N] -> y[N]", "--backward", "to_check.py:tanh_backward"],
])
def test_right_functions_pass(mine, capsys, words):
    with open("to_check.py", "a") as file:
        file.write("\ndef tanh_backward(dy, x):\n    return dy * (1 - np.tanh(x) ** 2)\n")
    code, out, err = call(capsys, *words, "--seed", 1, "--problems", 6)
    assert (code, err) == (0, ""), out + err
    assert f"{words[0].partition(':')[2]}: " in out
    assert "right" in out


def test_a_wrong_function_is_reported_with_its_case_and_the_command_that_repeats_it(mine, capsys):
    code, out, _ = call(capsys, "to_check.py:twice", "--seed", 3, "--only_wrong", "--json", "report.json")
    assert code == 1
    assert "twice: 1 of 2 gradients is wrong" in out
    assert "from to_check import twice" in out
    assert "Again: pyllama check to_check.py:twice --seed 3 --budget None" in out
    assert "passed" not in out
    report, = json.loads((mine / "report.json").read_text())
    assert (report["passed"], report["seed"]) == (False, 3)
    again = call(capsys, "to_check.py:twice", "--seed", 3, "--only_wrong", "--budget", "None")[1]
    assert again.splitlines()[0] == out.splitlines()[0]


def test_several_names_are_checked_and_one_wrong_gradient_decides(mine, capsys):
    code, out, _ = call(capsys, "relu", "to_check.py:scale", "to_check.py:square", "to_check.py:product", "--problems",
                        3, "--on", "numpy", "--json", "reports.json")
    assert code == 0, out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["relu", "mine.square"]
    assert [report["function"] for report in json.loads((mine / "reports.json").read_text())] == ["scale", "product"]
    assert call(capsys, "to_check.py:scale", "to_check.py:twice", "--problems", 3)[0] == 1


def test_seeds_vary_and_are_printed(mine, capsys):
    first, second = (call(capsys, "to_check.py:product")[1] for _ in range(2))
    assert first.splitlines()[-1].startswith("Seed ")
    assert first.splitlines()[-1] != second.splitlines()[-1]


@pytest.mark.parametrize(("words", "sentence"), [
    (["to_check.py:scale", "--shapes", "x[D]"],
     "to_check.py:scale cannot be checked: 'x[D]' is not a shape line: it has 0 arrows; write one such as 'x[... D], "
     "w[D] -> y[... D]'"),
    (["to_check.py:number"], "to_check.py:number is not a function; name a function of to_check"),
    (["to_check.py:twise"], "to_check has no 'twise'; did you mean twice?"),
    (["relu", "--shapes", "x[N] -> y[N]"],
     "--shapes is for functions; name one, such as mymodule:function or file.py:function"),
    (["to_check.py:scale", "to_check.py:twice", "--backward", "to_check.py:scale"],
     "--backward is for one function, but 2 are named; check them one by one"),
    (["to_check.py:log", "--shapes", "x[N] -> y[N]"], "to_check.py:log cannot be checked: log returned "),
    (["to_check.py:fails", "--shapes", "x[N] -> y[N]"],
     "to_check.py:fails raised KeyError: 'no' (line 45 of to_check.py); fix that, or give inputs that it is defined"),
    (["math:hypot"], "math:hypot does not say what its inputs are; give --shapes \"x[... D], w[D] -> y[... D]\", write "
                     "such a line into its docstring, or write inputs = [...] into math"),
    (["relu", "nosuch"], "there is no op 'nosuch'; the ops are "),
])
def test_wrong_use_is_one_sentence(mine, capsys, words, sentence):
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert " ".join(err.split()).startswith(f"pyllama: {sentence}")
    assert "Traceback" not in err


def test_inputs_go_by_name_if_the_line_has_the_names_of_the_parameters():
    def weighted(w, x):
        return x * w, lambda dy: ((dy * x).reshape(-1, w.size).sum(0), dy * w)

    assert check_shapes(weighted, "x[... D], w[D] -> y[... D]", seed=0, problems=5)
    report = check_shapes(lambda a, b: (a * b, lambda dy: (dy * b, (dy * a).reshape(-1, b.size).sum(0))),
                          "x[... D], w[D] -> y[... D]", seed=0, problems=5)
    assert report
    assert {pair.input for pair in report.pairs} == {"x", "w"}


def test_the_report_says_how_many_problems_were_tried_and_which_were_not():
    def identity(x):
        return 1 * x, lambda dy: dy

    assert "3 random problems of x[N] -> y[N]" in check_shapes(identity, "x[N] -> y[N]", seed=0, problems=3).notes
    hurried = check_shapes(identity, "x[N] -> y[N]", seed=0, problems=10 ** 6, budget=0.01)
    assert any(skipped.endswith("of 1000000 random problems") for skipped in hurried.skipped)


def test_a_function_that_is_undefined_everywhere_is_refused():
    with pytest.raises(ValueError, match="returned NaN"):
        check_shapes(lambda x: (x * np.nan, lambda dy: dy), "x[3] -> y[3]", seed=0, problems=3)


def test_a_shape_line_is_found_in_the_docstring_or_the_attribute():
    def one(x):
        """Says -> nothing.

            x[N] -> y[N]
        """

    def two(x):
        pass

    two.shapes = "x[B] -> y[B]"
    assert (line_beside(one), line_beside(two), line_beside(print)) == ("x[N] -> y[N]", "x[B] -> y[B]", None)
