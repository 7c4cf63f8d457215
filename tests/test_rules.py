"""The comparison of gradient checkers: what the rules are shown, what each sees, and the page."""
import numpy as np
import pytest

from bench.checkers import rules_page, rules_written
from bench.checkers.rules import Rule, measured
from bench.checkers.rules_cases import changed, drawn, right, shown, with_ones
from pyllama.op import OPS
from pyllama.testing.catalogue import bugs, planted
from pyllama.testing.layouts import strided

BUGS = {str(bug): bug for bug in bugs()}
ALWAYS_ONES = [rules_written.dezero, rules_written.numpy_ml, rules_written.minitorch]       # as dy
EXACT = [rules_written.chainer, rules_written.dezero, rules_written.numpy_ml]


def alarms(rule, bug=None, case=None, **options):
    case = shown(bug, "float64")[0] if bug else case
    if bug is None:
        return rule(case.fresh(), np.random.default_rng(0), **options)
    with planted(bug):
        return rule(case.fresh(), np.random.default_rng(0), **options)


@pytest.mark.parametrize("name", ["linear.bias_averaged_over_the_rows", "rms_norm.dy_overwritten",
                                  "softmax.dy_read_as_contiguous"])
def test_a_bug_is_shown_at_problems_where_it_changes_something(name):
    layout = strided if "contiguous" in name else np.array
    cases = shown(BUGS[name], "float64")
    assert len(cases) == 3
    assert all(changed(BUGS[name], case, layout) for case in cases)
    assert all(x.flags.c_contiguous for case in cases for x in case.floats)


def test_float32_has_the_same_problems():
    for wide, narrow in zip(shown(BUGS["tanh.the_one_missing"], "float64"),
                            shown(BUGS["tanh.the_one_missing"], "float32"), strict=True):
        assert [x.dtype for x in narrow.floats] == [np.float32]
        np.testing.assert_array_equal(wide.floats[0].astype(np.float32), narrow.floats[0])


def test_several_outputs_are_one_after_another():
    case = drawn(OPS["lstm_cell"], 0)
    a, c = case.floats
    dy = np.random.default_rng(0).standard_normal(2 * c.size)
    (h, c1), back = case.op(a, c)
    np.testing.assert_array_equal(case.y(a, c), np.concatenate([h.ravel(), c1.ravel()]))
    for ours, theirs in zip(case.gradients(dy), back((dy[:c.size].reshape(c.shape), dy[c.size:].reshape(c.shape))),
                            strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rule", [*ALWAYS_ONES, rules_written.chainer, rules_written.llm_c],
                         ids=lambda rule: rule.__name__)
def test_no_rule_alarms_at_a_right_gradient(rule):
    for seed in range(len(OPS)):
        assert not alarms(rule, case=right(seed, "float64")), seed


@pytest.mark.parametrize("rule", EXACT, ids=lambda rule: rule.__name__)
def test_a_rule_sees_a_wrong_formula(rule):
    assert alarms(rule, BUGS["tanh.the_one_missing"])
    assert alarms(rule, BUGS["linear.bias_averaged_over_the_rows"])


def test_ones_as_dy_hide_a_zero_gradient_of_softmax():
    assert not any(alarms(rule, BUGS["softmax.zero"]) for rule in ALWAYS_ONES)
    assert alarms(rules_written.chainer, BUGS["softmax.zero"])


def test_ones_as_weights_hide_that_w_left_the_mean():
    bug = BUGS["rms_norm.w_outside_the_mean"]
    case = with_ones(shown(bug, "float64")[0])
    with planted(bug):
        assert not rules_written.chainer(case.fresh(), np.random.default_rng(0))
    assert alarms(rules_written.chainer, bug)


def test_a_wide_tolerance_hides_small_errors():
    assert not alarms(rules_written.llm_c, BUGS["rope.base_slightly_off"])
    assert alarms(rules_written.llm_c, BUGS["rope.base_slightly_off"], atol=1e-8)


def test_a_stopped_measurement_goes_on(monkeypatch):
    monkeypatch.setattr("bench.checkers.rules.BATCH", 2)
    seen = []
    rule = Rule("nobody", "", "float64", lambda case, rng: seen.append(case.op.name) or False)
    monkeypatch.setattr("bench.checkers.rules.bugs", lambda: [])
    assert [row["cases"] for row in measured(rule, 4, {})] == [2, 4]
    first = seen.copy()
    half = {"drawn": {}, "ones": {}, "cases": 2, "alarms": {"tanh": 1}, "milliseconds": 1.0}
    assert [(row["cases"], row["alarms"]) for row in measured(rule, 4, half)] == [(4, {"tanh": 1})]
    assert seen == [*first, *first[2:]]


def test_the_page_counts_what_the_rules_said(monkeypatch):
    two = [BUGS["layer_norm.r_missing"], BUGS["tanh.the_one_missing"]]
    monkeypatch.setattr("bench.checkers.rules.bugs", lambda: two)
    rule = Rule("nobody", "never alarms", "float64", lambda case, rng: False)
    paranoid = Rule("everybody", "always alarms", "float64", lambda case, rng: True, share=0.5)
    rows = [(r, row) for r in (rule, paranoid) for row in measured(r, 4, {})]
    text = rules_page.page(rows)
    assert "| nobody | never alarms | float64 | 0.0 % | 2 | 0.0 % | 0 of 4 |" in text
    assert "| everybody | always alarms | float64 | 100 % | 0 | 100 % | 2 of 2 |" in text
    assert "- nobody, never alarms, float64: `layer_norm.r_missing`, `tanh.the_one_missing`" in text
    assert "- everybody" not in text
