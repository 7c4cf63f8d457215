"""The report of gradcheck: which side is which, what is wrong, how to see it again; as text, JSON and HTML."""
import json
import math
from html.parser import HTMLParser

import pytest

from pyllama.testing.report import Fault, GradcheckError, Pair, Report, Verdict
from pyllama.testing.report.text import apart

RIGHT = Verdict("complex step", "passed", 2.0, 2.0, 0.0, 1e-11)
WRONG = Verdict("differences", "wrong", 0.25, 0.5, 0.25, 3e-12)
UNSURE = Verdict("order", "undecided", why="no converging range")
LONG = "input 1 at model.layers.0.self_attn.q_proj.a_weight_whose_name_has_no_end_at_all_that_a_reader_would_see"


def pair(name, *verdicts, **fields):
    return Pair(name, "y", verdicts, **fields)


def report(*pairs, **fields):
    return Report("mine:norm", pairs, seed=7, **fields)


BAD = report(pair("w", RIGHT), pair("x", RIGHT, WRONG, where="strided dy", index=(0, 3), diagnoses=("Half of it.",)),
             faults=(Fault("input mutated", "f changes x in place; work on a copy."),), notes=("not holomorphic",),
             skipped=("entries of w",),
             case="import numpy as np\nx = np.array([1.0])", replay="gradcheck(f, [x], seed=7)")


def line(text, name):
    return next(line for line in text.splitlines() if line.split()[:1] == [name] or line.split()[:2] == ["*", name])


def test_a_line_for_each_pair_says_which_side_is_which():
    """As asked in jax PR #39821."""
    heads, below, *_ = str(BAD).split("\n\n")[1].splitlines()
    x = line(str(BAD), "x")
    assert heads[heads.index("claimed"):].split() == ["claimed", "measured", "|claimed", "-", "measured|", "verdict"]
    for head, named, number in (("claimed", "(back says)", "0.25"), ("measured", "(f does)", "0.5")):
        column = heads.index(head)
        assert below[column:].startswith(named)
        assert x[column:].split()[0] == number
    assert "0.25 > 3e-12" in x
    assert x.startswith("* ")
    assert "0 ≤ 1e-11" in line(str(BAD), "w")


def test_the_worst_pair_is_last_whatever_the_order_given():
    worse = pair("k", Verdict("complex step", "wrong", 1.0, 9.0, 8.0, 1e-12))
    undecided = pair("q", UNSURE)
    text = str(report(worse, pair("x", WRONG), pair("w", RIGHT), undecided))
    places = [text.index(line(text, name)) for name in ("w", "q", "x", "k")]
    assert places == sorted(places)


def test_details_are_given_of_the_five_worst_pairs_alone():
    wrong = [pair(f"w{k}", Verdict("differences", "wrong", 0.0, k, k, 1e-9)) for k in range(1, 8)]
    for text in (str(report(*wrong)), report(*wrong)._repr_html_()):
        assert text.count("The gradient of y with respect to") == 5
        assert "with respect to w2 " not in text
        assert "2 more are wrong: see the table." in text


def test_everything_that_was_found_is_printed_and_the_replay_line_is_last():
    parts = ["The gradient of y with respect to x is wrong at [0, 3] (strided dy):", "Half of it.",
             "Fault (input mutated): f changes x in place; work on a copy.", "Note: not holomorphic",
             "Skipped: entries of w", "    x = np.array([1.0])", "Again: gradcheck(f, [x], seed=7)"]
    places = [str(BAD).index(part) for part in parts]
    assert places == sorted(places)
    assert "Seed 7." in str(BAD).splitlines()[-1]


def test_only_wrong_leaves_out_what_passed_and_keeps_what_is_undecided():
    text = report(pair("w", RIGHT), pair("q", UNSURE), pair("x", WRONG)).text(only_wrong=True)
    with pytest.raises(StopIteration):
        line(text, "w")
    assert line(text, "q")
    assert line(text, "x")


@pytest.mark.parametrize(("pairs", "faults", "sentence"), [
    ([RIGHT], 0, "1 gradient right"), ([RIGHT, RIGHT], 0, "2 gradients right"),
    ([RIGHT, WRONG], 0, "1 of 2 gradients is wrong"), ([WRONG, WRONG], 1, "2 of 2 gradients are wrong"),
    ([UNSURE, RIGHT], 0, "1 of 2 gradients could not be judged"), ([RIGHT], 1, "1 gradient right, but layout"),
    ([], 1, "layout")])
def test_the_first_line_sums_up(pairs, faults, sentence):
    made = report(*(pair("x", verdict) for verdict in pairs), faults=(Fault("layout", "Give strides."),) * faults)
    assert str(made).splitlines()[0] == f"mine:norm: {sentence}"
    assert bool(made) == sentence.endswith("right")


def test_the_report_says_why_a_gradient_could_not_be_judged():
    made = report(pair("x", UNSURE))
    for text in (str(made), made._repr_html_()):
        assert "The gradient of y with respect to x could not be judged: no converging range." in text
        assert "nan" not in text


def test_no_line_is_wider_than_120_columns():
    digits = Verdict("complex step", "wrong", -1.2345678e-100, -1.23456789e-100, 1.23456780001e-108, 1.2345678e-108)
    wide = Pair(LONG, LONG, (digits,), index=(1, 2), diagnoses=("word " * 50,))
    made = Report(LONG, (wide,), faults=(Fault("layout", "word " * 40),), notes=("word " * 60,))
    assert max(map(len, str(made).splitlines())) <= 120
    assert LONG in str(made)                                # in full where there is room


def test_names_that_differ_in_a_number_keep_it_when_they_are_shortened():
    names = [f"model.layers.{k}.self_attn.q_proj.weight" for k in range(3)]
    text = str(report(*(pair(name, WRONG) for name in names), pair(LONG, RIGHT)))
    for k, name in enumerate(names):
        assert line(text, name) if name in text.split("\n\n")[1] else f".{k}." in text.split("\n\n")[1]


@pytest.mark.parametrize(("a", "b"), [
    (1.0, 2.0), (1 / 3, 1 / 3 + 1e-7), (1 / 3, math.nextafter(1 / 3, 1)), (0.0, 5e-324), (-1e300, 1e300),
    (1e-11, 1.0000000001e-11), (math.inf, -math.inf), (math.inf, 1.0), (math.nan, 0.0), (123456789.0, 123456790.0)])
def test_different_numbers_never_look_equal(a, b):
    for digits in (3, 6):
        assert len({*apart(a, b, digits)}) == 2
        assert len({*apart(b, a, digits)}) == 2


def test_equal_numbers_look_equal():
    assert apart(2.0, 2.0) == ("2", "2")
    assert apart(math.nan, math.nan) == ("nan", "nan")


def test_a_verdict_that_passed_without_a_number_is_no_error():
    """As of an empty array in float32."""
    made = report(pair("x", Verdict("rounding", "passed", why="empty")))
    assert made
    assert made.error == 0


def test_a_gradient_that_is_not_a_number_is_no_inequality_that_holds():
    text = str(report(pair("x", Verdict("complex step", "wrong", math.nan, 1.0, math.nan, 1e-11))))
    assert "nan, not ≤ 1e-11" in line(text, "x")


def test_json_keeps_every_float_exactly_and_is_valid_with_nan():
    exact = Verdict("complex step", "wrong", 0.1 + 0.2, 1e16, math.inf, math.nan)
    text = report(pair("x", exact, UNSURE, index=(0, 2))).to_json()
    made = json.loads(text, parse_constant=pytest.fail)     # NaN and Infinity are not JSON
    verdict, unsure = made["pairs"][0]["verdicts"]
    assert (verdict["claimed"], verdict["measured"]) == (0.1 + 0.2, 1e16)
    assert (verdict["error"], verdict["tolerance"], unsure["error"]) == ("inf", None, None)
    assert made["pairs"][0]["index"] == [0, 2]
    assert (made["passed"], made["seed"], made["function"]) == (False, 7, "mine:norm")


class Balanced(HTMLParser):
    """The tags that are open, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], ""

    def handle_starttag(self, tag, attrs):
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.seen += data


def test_html_is_balanced_self_contained_and_escaped():
    evil = "<script>alert('&')</script>"
    made = Report(evil, (Pair(evil, evil, (WRONG,), where=evil, diagnoses=(evil,)),), notes=(evil,), skipped=(evil,),
                  faults=(Fault(evil, evil),), case=evil, replay=evil)
    parser = Balanced()
    parser.feed(made._repr_html_())
    assert parser.open == []
    assert parser.seen.count(evil) >= 11
    assert "<script" not in made._repr_html_()
    for word in ("claimed", "back says", "measured", "f does", "0.25 > 3e-12"):
        assert word in parser.seen


def test_the_exception_prints_the_report():
    assert str(GradcheckError(BAD)) == str(BAD)
