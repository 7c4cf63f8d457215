"""pyllama check of somebody's own functions: where their inputs come from, what is printed, exit codes, wrong use."""
import json
import re
import sys

import numpy as np
import pytest

from pyllama.cli import main
from pyllama.testing.shaped import check_shapes, line_beside

MINE = '''
import sys
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

def leaves(x):
    """x[N] -> y[N]"""
    sys.exit(0)

def malformed(x):
    """A line that is close: x.

    x[N -> y[N]
    """

def not_without_b(x, b):
    """x[... D], b[D]? -> y[... D]"""
    return x + b, lambda dy: (dy, dy.reshape(-1, b.size).sum(0))

def with_both(x, w):
    """x[N], w[N] -> y[N]"""
    return x * w, (x, w)

def with_both_backward(dy, x, w):
    return dy * w, dy * x

def two(x):
    """x[N] -> a[N], b[N]"""
    return (x * x, 3 * x), lambda da, db: 2 * x * da + 3 * db

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
    ["to_check.py:lookup", "--shapes", "ids[B T] < V, w[V D] -> y[B T D]"],
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
     "to_check.py:fails raised KeyError: 'no' (line 46 of to_check.py); fix that, or give inputs that it is defined"),
    (["math:hypot"], "math:hypot does not say what its inputs are; give --shapes \"x[... D], w[D] -> y[... D]\", write "
                     "such a line into its docstring, or write inputs = [...] into math"),
    (["relu", "nosuch"], "there is no op 'nosuch'; the ops are "),
    (["to_check.py"], "there is no op 'to_check.py'; name a function in it, to_check.py:function"),
    (["to_check.py:leaves"], "to_check.py:leaves ended Python: SystemExit: 0 (line 50 of to_check.py); let it return"),
    (["to_check.py:malformed"], "to_check.py:malformed cannot be checked: 'x[N -> y[N]' is not a shape line: "),
    (["to_check.py:not_without_b"],
     "to_check.py:not_without_b cannot be checked: not_without_b raised TypeError: unsupported operand type(s) for +: "
     "'float' and 'NoneType' (line 60 of to_check.py) where b is None; its shape line says that b is optional: let "),
    (["to_check.py:with_both", "--backward", "to_check.py:with_both_backward"],
     "to_check.py:with_both cannot be checked: with_both returned a tuple of 2 as output 1; return a tuple of arrays; "
     "if it is what backward needs, give saved=True"),
    (["to_check.py:with_both", "--saved"], "--saved belongs to --backward, which is not given; name the function that"),
    (["to_check.py:two"], "to_check.py:two cannot be checked: back cannot be called as back(dy): missing a required "
                          "argument: 'db'; dy is one tuple, as y is: d0, d1 = dy"),
    (["to_check.py:scale", "--seed", "-1"], "seed is -1; it must be at least 0"),
    (["relu", "--seed", "-1"], "seed is -1; it must be at least 0"),
    (["to_check.py:scale", "--budget", "0"], "budget is 0; give a positive number of seconds, or None for no limit"),
])
def test_wrong_use_is_one_sentence(mine, capsys, words, sentence):
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert " ".join(err.split()).startswith(f"pyllama: {sentence}")
    assert "Traceback" not in err


def test_a_file_that_cannot_be_written_is_refused_before_the_run(mine, capsys):
    sentences = {"none/x.json": "the folder none of --json does not exist; create it", ".": "--json is ., a folder"}
    for name, sentence in sentences.items():
        code, out, err = call(capsys, "to_check.py:scale", "--json", name)
        assert (code, out) == (2, "")
        assert err.startswith(f"pyllama: {sentence}")


def test_a_function_that_cannot_be_checked_does_not_keep_the_others_from_it(mine, capsys):
    code, out, err = call(capsys, "to_check.py:two", "to_check.py:scale", "to_check.py:twice", "--problems", 3)
    assert code == 2
    assert err.startswith("pyllama: to_check.py:two cannot be checked: ")
    assert [name in out for name in ("scale: 2 gradients right", "twice: 1 of 2 gradients is wrong")] == [True, True]


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


# --- what a shape line promises ---------------------------------------------------------------------------------------

def checked_as(line, function, **options):
    return check_shapes(function, line, seed=0, budget=None, **{"problems": 4, **options})


def test_float32_is_tried_too():
    def right_in_float64(x):
        factor = 3 if x.dtype == np.float32 else 2
        return x * x, lambda dy: factor * x * dy

    report = checked_as("x[N] -> y[N]", right_in_float64)
    assert [verdict.method for verdict in report.pairs[0].verdicts if verdict.status == "wrong"] == ["rounding"]


@pytest.mark.parametrize(("line", "function", "sentence"), [
    ("x[N D] -> y[N D]", lambda x: (x.sum(0), lambda dy: dy * np.ones_like(x)),
     r"y has shape \((\d+),\), the line says y\[N D\] = \(\d+, \1\)"),
    ("x[N] -> a[N], b[N]", lambda x: (x * x, lambda dy: 2 * x * dy),
     r"f returns 1 output, the line says a\[N\], b\[N\]"),
    ("x[N] -> a[N]", lambda x: ((x, 1 * x), lambda dy: dy[0] + dy[1]), r"f returns 2 outputs, the line says a\[N\]"),
    ("x[N] -> y[N]", lambda x: (x.astype(float), lambda dy: dy.astype(x.dtype)),
     "y is float64 for inputs of float32; return that precision"),
    ("x[N] -> y[]", lambda x: (np.float64(x.sum()), lambda dy: np.full_like(x, dy)),
     "y is float64 for inputs of float32; return that precision"),
])
def test_outputs_that_are_not_those_of_the_line_are_faults(line, function, sentence):
    report = checked_as(line, function)
    assert not report
    fault, = [fault for fault in report.faults if fault.kind.startswith("another")]
    assert re.fullmatch(sentence, fault.sentence)


@pytest.mark.parametrize(("line", "function"), [
    ("x[... N*D] -> y[... D*N]", lambda x: (1 * x, lambda dy: dy)),
    ("x[N|1 D] -> y[N D]", lambda x: (1 * x, lambda dy: dy)),
    ("x[N D] -> y[N M]", lambda x: (x @ np.ones((x.shape[1], 3), x.dtype), lambda dy: dy.sum(1, keepdims=True) +
                                    np.zeros_like(x))),
    ("x[N] -> y[]", lambda x: (float(x.sum()), lambda dy: np.full_like(x, dy))),
    ("x[N] -> y[N], i[N]<9", lambda x: ((1 * x, np.argsort(x)), lambda dy: dy[0])),
])
def test_outputs_that_fit_the_line_are_none(line, function):
    report = checked_as(line, function)
    assert report.faults == ()
    assert report


def test_outputs_have_the_names_of_the_line():
    report = checked_as("x[N] -> square[N], triple[N]", lambda x: ((x * x, 3 * x), lambda d: 2 * x * d[0] + 3 * d[1]))
    assert {pair.output for pair in report.pairs} == {"square", "triple"}


@pytest.mark.parametrize("where", ["forward", "back"])
def test_a_crash_in_float32_alone_is_a_fault_and_a_refusal_a_note_with_its_line(where):
    def failing(error):
        def f(x):
            def raise_in(place):
                if place == where and x.dtype == np.float32:
                    raise error
            raise_in("forward")

            def back(dy):
                raise_in("back")
                return 2 * x * dy
            return x * x, back
        return f

    line = failing.__code__.co_firstlineno + 4
    place = f"(line {line} of test_check_command.py)"
    report = checked_as("x[N] -> y[N]", failing(RuntimeError("the kernel")))
    fault, = report.faults
    assert fault.sentence.startswith(f"f raised RuntimeError: the kernel {place} in float32, but not in float64")
    assert not report
    for refusal in (AssertionError(), TypeError("no"), ValueError("no")):
        report = checked_as("x[N] -> y[N]", failing(refusal))
        assert report
        said = type(refusal).__name__ + (f": {refusal}" if str(refusal) else "")
        assert f"the point 'in float32' was left out: {said} {place}" in report.notes


@pytest.mark.parametrize("seed", range(5))
def test_a_forgotten_sum_is_named_whatever_shapes_are_drawn_first(seed):
    """Along an axis of length 1 it would be a gradient of 0, and among 1,024 numbers a small error."""
    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        y = e / e.sum(axis=-1, keepdims=True)
        return y, lambda dy: y * dy

    report = check_shapes(softmax, "x[... D] -> y[... D]", seed=seed, budget=None)
    assert report.pairs[-1].diagnoses[0].startswith("Missing term: measured - claimed is y times something constant")
