"""Every derivation holds, quotes its docstring line by line, and is what the code computes."""
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("sympy")

from pyllama.study import derivation
from pyllama.study.derivation import Derivation, Step, docstring, mathematics, misquotes, quoted_wrongly
from pyllama.study.running import DEFINED, EXACTLY, PROVED, Run

NAMES = derivation.names()


def outcomes(one, seed=0):
    return list(Run(one, seed).steps())


@pytest.mark.parametrize("name", NAMES)
def test_every_step_holds_and_the_code_computes_the_same(name):
    for one in derivation.load(name)[0]:
        run = Run(one)
        assert [(step.line, wrong) for step, _, wrong, _ in run.steps() if wrong] == []
        assert run.code() == ""


@pytest.mark.parametrize("name", NAMES)
def test_steps_quote_every_line_of_mathematics_and_code_that_is_there(name):
    assert misquotes(name) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_line_that_goes_on_stands_right_below_its_chain(name):
    for one in derivation.load(name)[0]:
        apart = [below.line for above, below in pairwise(one.steps) if below.line.startswith("=")
                 and above.extra and not above.line.startswith("=")]
        assert apart == []                              # a reader would go on with the left side of another line


def test_a_setting_says_what_each_index_runs_over():
    assert derivation.setting("rms_norm").endswith("by zero.\nIndices     i, j over D; none over rows")
    assert derivation.setting("llama_block").startswith("Arrays      x [B T D] in")
    assert derivation.setting("lstm_cell").endswith("\nIndices     none: each line holds for each number by itself")


# --- a mistake anywhere is found --------------------------------------------------------------------------------------

def rms_norm() -> Derivation:
    return derivation.load("rms_norm")[0][0]


def with_line(one, old, new):
    assert old in [step.line for step in one.steps]
    return replace(one, steps=tuple(step._replace(line=new) if step.line == old else step for step in one.steps))


@pytest.mark.parametrize(("old", "new"), [
    ("= r (g_j - n_j mean_i g_i n_i)", "= r (g_j - 2 n_j mean_i g_i n_i)"),             # a factor
    ("= r (g_j - n_j mean_i g_i n_i)", "= r (g_j - n_j Σ_i g_i n_i)"),                  # a sum for a mean
    ("dw_j = Σ_rows dy_j n_j", "dw_j = Σ_rows dy_j x_j"),                               # before normalization
    ("∂r/∂x_j = -½ r³ · 2 x_j / D = -r³ x_j / D", "∂r/∂x_j = -½ r³ · 2 x_j / D = -r³ x_j"),
    ("g_j = w_j dy_j", "g_j = dy_j"),                                                   # a wrong gradient, then used
])
def test_a_wrong_step_is_found(old, new):
    wrong = [outcome for outcome in outcomes(with_line(rms_norm(), old, new)) if outcome.wrong]
    assert wrong[0].step.line == new
    assert " is not " in wrong[0].wrong


def test_a_wrong_docstring_is_found():
    one = rms_norm()
    doc = docstring(one, None)
    steps = [("", step) for step in one.steps]
    assert quoted_wrongly(steps, doc) == []
    assert quoted_wrongly(steps, doc.replace("(g_j - n_j", "(g_j + n_j")) == [
        "the docstring does not have the line '= r (g_j - n_j mean_i g_i n_i)'",
        "no step quotes the line '= r (g_j + n_j mean_i g_i n_i)'"]
    lines = doc.splitlines()
    first = next(k for k, line in enumerate(lines) if "n_j = x_j r" in line)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    assert quoted_wrongly(steps, "\n".join(lines)) == ["the steps are not in the order of the docstring"]


def test_wrong_code_is_found(monkeypatch):
    from pyllama.op import OPS

    one, op = rms_norm(), OPS["rms_norm"]
    right = op.backward

    def backward(dy, x, w, r, *, eps):
        dx, dw = right(dy, x, w, r, eps=eps)
        return dx, dw * (1 + 1e-9)

    monkeypatch.setattr(op, "backward", backward)
    run = Run(one)
    list(run.steps())
    assert run.code() == "dw is not the same in the code and in the derivation"


def test_a_gradient_that_is_missing_is_found():
    one = rms_norm()
    run = Run(replace(one, steps=one.steps[:-1]))
    list(run.steps())
    assert run.code() == "the derivation does not define dw, which the code computes"


# --- what is claimed --------------------------------------------------------------------------------------------------

def derived(*lines, **others):
    """A derivation of lines about x [rows D]."""
    defaults = {"title": "", "arrays": {"x": "rows D", "dy": "rows D"}, "letters": {"i": "D", "j": "D"},
                "sizes": {"rows": 2, "D": 3}, "loss": {"y": "dy"}}
    return Derivation(steps=tuple(Step(line, "") for line in lines), **(defaults | others))


def kinds(one):
    return [(outcome.kind, bool(outcome.wrong)) for outcome in outcomes(one)]


def test_definitions_claim_nothing_and_gradients_do():
    assert kinds(derived("y_j = x_j²", "dx_j = 2 x_j dy_j")) == [(DEFINED, False), (PROVED, False)]
    assert kinds(derived("y_j = x_j²", "dx_j = x_j dy_j")) == [(DEFINED, False), (EXACTLY, True)]


def test_what_sympy_is_not_asked_is_exact():
    assert kinds(derived("y_j = max(x_j, 0)", "dx_j = [x_j > 0] dy_j")) == [(DEFINED, False), (EXACTLY, False)]


def test_the_smaller_of_two_numbers_has_the_gradient_of_that_one():
    assert kinds(derived("y_j = min(x_j, 1)", "dx_j = [x_j < 1] dy_j"))[-1] == (EXACTLY, False)
    assert kinds(derived("y_j = min(x_j, 1)", "dx_j = [x_j > 1] dy_j"))[-1] == (EXACTLY, True)


def test_the_largest_of_known_numbers_is_proved():
    assert kinds(derived("y_j = x_j max(D, 9)", "dx_j = 9 dy_j"))[-1] == (PROVED, False)


def test_an_index_is_any_expression():
    assert kinds(derived("y_j = x_{D - 1 - j}", "dx_j = dy_{D - 1 - j}"))[-1] == (PROVED, False)
    assert kinds(derived("y_j = x_0 x_j", "dx_j = x_0 dy_j + [j = 0] Σ_i x_i dy_i"))[-1] == (PROVED, False)


def test_products_of_matrices_are_claims_too():
    arrays = {"x": "N D", "w": "E D", "dy": "N E"}
    lines = Step("y_ne = Σ_d x_nd w_ed", ""), Step("dx_nd = Σ_e dy_ne w_ed", "")
    one = derived(arrays=arrays, letters={"n": "N", "d": "D", "e": "E"}, sizes={"N": 2, "D": 2, "E": 3})
    last = [outcomes(replace(one, steps=(*lines, Step(line, "", matrices=True))))[-1] for line in (
        "dx = dy w", "dx = dy w + x", "dx = dy wᵀ", "dx = wᵀ dyᵀ")]
    assert last[0].kind == PROVED
    assert " is not " in last[1].wrong
    assert [each.wrong for each in (last[0], *last[2:])] == [
        "", "[N E] times [D E] is not a product of matrices", "[D N] is not [N D]"]
    first = Step("dw = xᵀ dy", "", matrices=True)
    assert outcomes(replace(one, steps=(lines[0], first)))[-1].wrong == "[D E] is not [E D]"


def test_what_angles_say_is_proved():
    assert kinds(derived("y_j = cos² x_j", "y_j = 1 - sin² x_j"))[-1] == (PROVED, False)
    assert kinds(derived("y_j = cos² x_j", "y_j = 1 - 2 sin² x_j"))[-1] == (EXACTLY, True)


def test_formulas_name_options_that_are_numbers():
    one = derived("y_j = c x_j", "dx_j = 3 dy_j", options={"c": 3})
    assert kinds(one)[-1] == (PROVED, False)


def test_a_proof_for_any_number_needs_that_nothing_depends_on_it():
    """The derivative of y = x - max x is not that of x - m for a fixed m: SymPy must not say so."""
    right = derived("m = max_j x_j", "y_j = x_j - m", "dx_j = dy_j - [x_j = m] Σ_i dy_i")
    wrong = derived("m = max_j x_j", "y_j = x_j - m", "dx_j = dy_j")
    assert kinds(right)[-1] == (EXACTLY, False)
    assert kinds(wrong)[-1] == (EXACTLY, True)


def test_the_derivative_of_a_function_named_by_one_letter():
    assert kinds(derived("σ(u) = 1 / (1 + e^-u)", "σ'(u) = σ(u) (1 - σ(u))", "σ'(u) = σ(u)")) == [
        (DEFINED, False), (PROVED, False), (EXACTLY, True)]


def test_arguments_without_a_value_stand_for_any_number_on_both_sides():
    lines = "σ(u) = 1 / (1 + e^-u)", "1 - σ(u) = e^-u / (1 + e^-u)", "1 - σ(u) = e^-u σ(u)"
    assert kinds(derived(*lines)) == [(DEFINED, False), (PROVED, False), (PROVED, False)]
    assert kinds(derived(*lines[:2], "1 - σ(u) = e^u σ(u)"))[-1] == (EXACTLY, True)


@pytest.mark.parametrize("line", ["= x_j + x_j = 2 x_j", "= 2 x_j = x_j + x_j", "= 2 x_j"])
def test_all_sides_of_a_line_that_begins_with_an_equals_sign_equal_the_line_before(line):
    assert kinds(derived("y_j = 2 x_j", line))[-1] == (PROVED, False)
    assert kinds(derived("y_j = 3 x_j", line))[-1] == (EXACTLY, True)


def test_infinity_is_not_equal_to_a_number():
    with np.errstate(divide="ignore"):
        assert kinds(derived("y_j = x_j", "y_j / (1 - 1) = y_j"))[-1] == (EXACTLY, True)


def test_the_gradient_of_a_name_in_between_counts_all_its_paths():
    assert kinds(derived("u_j = x_j²", "y_j = u_j Σ_i u_i", "du_j = dy_j Σ_i u_i + Σ_i dy_i u_i")
                 )[-1] == (PROVED, False)
    assert kinds(derived("u_j = x_j²", "y_j = u_j Σ_i u_i", "du_j = dy_j Σ_i u_i"))[-1] == (EXACTLY, True)


def test_an_index_that_is_an_expression_counts():
    assert kinds(derived("y_j = x_{2-j}", "y_0 = x_2", "dx_j = dy_{2-j}", sizes={"rows": 2, "D": 3})
                 )[1:] == [(PROVED, False)] * 2
    assert kinds(derived("y_j = x_{2-j}", "dx_j = dy_j"))[-1] == (EXACTLY, True)


def test_a_whole_number_is_any_number_in_a_proof():
    assert kinds(derived("y_j = N x_j", "N² - 1 = (N - 1) (N + 1)", "N² = 9", "N² = 4", whole={"N": 3})) == [
        (DEFINED, False), (PROVED, False), (EXACTLY, False), (EXACTLY, True)]


def test_an_index_is_not_a_name():
    assert kinds(derived("i = 2 x_0", "y_j = [i = j] x_j"))[0] == (EXACTLY, True)


# --- recurrences ------------------------------------------------------------------------------------------------------

TIMES = {"letters": {"t": "D", "s": "D"}, "constants": {"f": ""}}


def test_a_recurrence_begins_with_zero():
    assert kinds(derived("y_t = f y_{t-1} + x_t", "y_t = Σ_{s : s ≤ t} f^(t - s) x_s", "y_0 = x_0", **TIMES)
                 )[1:] == [(PROVED, False)] * 2


@pytest.mark.parametrize(("line", "wrong"), [
    ("dc_t = dy_t + f dc_{t+1}", False),
    ("dc_t = dy_t", True),                                          # what the later steps do is missing
    ("dc_t = dy_t + f dc_{t-1}", True),                             # backward in time, not forward
    ("dc_t = dy_t + dc_{t+1}", True),
])
def test_a_gradient_flows_back_through_all_later_steps(line, wrong):
    assert kinds(derived("c_t = f c_{t-1} + x_t", "y_t = c_t", line, **TIMES))[-1] == (
        EXACTLY if wrong else PROVED, wrong)


def test_lines_that_need_each_other_are_one_recurrence():
    lines = "a_t = x_t + f h_{t-1}", "c_t = c_{t-1} + a_t", "h_t = a_t c_t", "y_t = h_t²"
    right = "dh_t = 2 dy_t h_t + f da_{t+1}", "dc_t = dh_t a_t + dc_{t+1}", "da_t = dh_t c_t + dc_t"
    few = TIMES | {"sizes": {"rows": 1, "D": 2}}
    found = kinds(derived(*lines, *right, **few))
    assert found == [(DEFINED, False)] * 4 + [(PROVED, False)] * 3
    for k, line in enumerate(right):
        wrong = (*right[:k], line.rpartition(" + ")[0], *right[k + 1:])
        assert [is_wrong for _, is_wrong in kinds(derived(*lines, *wrong, **few))].index(True) == 4 + k


def test_a_gradient_may_have_an_axis_twice():
    one = {"letters": {"t": "D", "j": "D"}}
    assert kinds(derived("p_tj = x_t x_j", "y_t = Σ_j p_tj x_j²", "dp_tj = dy_t x_j²", **one))[-1] == (PROVED, False)
    assert kinds(derived("p_tj = x_t x_j", "y_t = Σ_j p_tj x_j²", "dp_tj = dy_j x_t²", **one))[-1] == (EXACTLY, True)


def test_a_recurrence_may_have_an_axis_twice():
    lines = "p_tj = x_t x_j + f p_{t-1,j}", "y_t = Σ_j p_tj"
    found = kinds(derived(*lines, "dp_tj = dy_t + f dp_{t+1,j}", "dp_tj = dy_t", **TIMES | {"letters": {
        "t": "D", "j": "D"}}))
    assert found == [(DEFINED, False)] * 2 + [(PROVED, False), (EXACTLY, True)]


@pytest.mark.parametrize(("lines", "missing"), [
    (["dh_it = dy_it + f dh_{i,t+1}", "dx_it = dh_it + [i = 0] (Σ_k dy_kt + f dc_{t+1})"], "dc"),       # no line of dc
    (["dc_t = Σ_i dy_it + f dc_{t+1}", "dh_0t = dy_0t + f dh_{0,t+1}"], "dh"),      # half of it: that of h_1t
    (["dc_t = Σ_i dy_it + f dc_{t+1}", "dh_0t = dy_0t + f dh_{0,t+1}", "dh_1t = dy_1t + f dh_{1,t+1}"], ""),
])
def test_a_gradient_that_is_used_needs_a_line(lines, missing):
    forward = "c_t = f c_{t-1} + x_0t", "h_it = f h_{i,t-1} + x_it", "y_it = h_it + c_t"
    one = {"arrays": {"x": "E D", "dy": "E D"}, "letters": {"t": "D", "i": "E", "k": "E"}, "sizes": {"E": 2, "D": 3},
           "fixed": ("E", "D"), "constants": {"f": ""}}
    run = Run(derived(*forward, *lines, **one))
    assert [outcome.wrong for outcome in run.steps()] == [""] * (len(forward) + len(lines))
    assert run.code() == (missing and f"no line says what {missing} is, which is used")


def test_a_recurrence_that_nothing_ends_is_found():
    run = Run(derived("y_t = c_{t-1} + x_t", **TIMES))
    assert [outcome.wrong for outcome in run.steps()] == [""]
    assert run.code() == "y needs a name that no later line defines"
    assert outcomes(derived("y_t = y_{t-1} + y_{t+1} + x_t", **TIMES))[0].wrong == "y need each other in a circle"


@pytest.mark.parametrize(("line", "why"), [
    ("y_j = z_j", "the name z has no meaning here"),
    ("y_j = x_i", "the index i is on the right side alone"),
    ("y_j = f(x_j)", "the function f is not defined here"),
    ("dz_j = x_j", "dz is a gradient by its name, but z is not defined"),
    ("y_j = max(x_j)", "max has 1 argument here; it needs 2"),
    ("y_j = exp(x_j, 2)", "exp has 2 arguments here; it needs 1"),
    ("y_j = (x_j", "')' is missing in 'y_j = (x_j' before 'the end'"),
    ("y_j = x_j ; 2", "';' is not in the notation, in 'y_j = x_j ; 2'"),
    ("y_j = Π_{i : i = j} x_i", "only a sum may have a condition, not Π, in 'y_j = Π_{i : i = j} x_i'"),
    ("= x_j", "a line that begins with = needs a line before it"),
    ("x_j", "a line needs two sides with = between them"),
    ("dx_j = x_j", "y is not defined"),
    ("∂x_i/∂z_j = 1", "z is not defined"),
    ("y_k = x_j", "the index j is on the right side alone"),
    ("y_k = 1", "the index k has no axis"),
    ("y_j = x_ij", "there are 2 indices for the axes rows, D"),
])
def test_a_line_that_cannot_be_read_says_why(line, why):
    assert [outcome.wrong for outcome in outcomes(derived(line))] == [why]


def test_mathematics_of_a_docstring():
    doc = ("A title = no line.\n\nForward     y = x        a remark = no line\n            More words.\n"
           "   tanh     z = y\n              = 2 x\n\n            u = z\nSaved       w = 1")
    assert [tuple(line) for line in mathematics(doc)] == [
        ("Forward", "", "y = x"), ("Forward", "tanh", "z = y"), ("Forward", "tanh", "= 2 x"), ("Forward", "", "u = z")]
