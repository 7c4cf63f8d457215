"""Each cause of a wrong gradient, in the smallest function that has it, is named by its sentence."""
import numpy as np
import pytest

from pyllama.testing import gradcheck
from pyllama.testing.shaped import check_shapes

X = np.random.default_rng(0).standard_normal((3, 4))
SQUARE = np.random.default_rng(1).standard_normal((4, 4))
FLIPS = np.random.default_rng(2)


def softmax(x):
    e = np.exp(x)
    y = e / e.sum(-1, keepdims=True)
    return y, lambda dy: y * dy                                 # the sum is missing


def from_memory(a):
    """a, or what a kernel reads that ignores the strides of a view."""
    whole = a if a.base is None or a.base.size < a.size else a.base.ravel()
    return np.array(whole.ravel()[:a.size]).reshape(a.shape)


def rounded_away(x):
    """x, rounded beside 1e12: a relative error of 1e-4."""
    return (x + 1e12) - 1e12, lambda dy: 2 * dy


def flickering(x):
    return x * (1 + 1e-9 * FLIPS.standard_normal()), lambda dy: dy


def changes_x(x):
    x *= 2
    return x.copy(), lambda dy: 2 * dy


def changes_dy(x):
    def back(dy):
        dy *= 2
        return dy
    return 2 * x, back


def for_views_of_one_number(x):
    return 2 * x, lambda dy: 2 * dy if all(dy.strides) else 4 * dy


def for_whole_pairs(x):
    def back(dy):
        dx = 2 * dy
        dx[..., dx.shape[-1] // 2 * 2:] = 0                     # the loop over pairs leaves the last one out
        return dx
    return 2 * x, back


def for_some_numbers(x):
    return 2 * x, lambda dy: 2 * dy if dy.size else np.zeros(1)


SENTENCES = {                                                   # function, inputs, the sentence
    "constant factor": (lambda x: (x ** 3, lambda dy: 6 * x * x * dy), [X],
                        "Constant factor 2.000: claimed = 2.000 × measured at all 12 entries compared."),
    "wrong sign": (lambda x: (np.cos(x), lambda dy: np.sin(x) * dy), [X],
                   "Wrong sign: claimed = -measured at all 12 entries compared."),
    "missing term": (softmax, [X], "Missing term: measured - claimed is y times something constant along axis 1 of x, "
                                   "namely y × (-sum of dy × y over axis 1)."),
    "transposed": (lambda x, w: (x @ w, lambda dy: (dy @ w.T, dy.T @ x)), [SQUARE, SQUARE + 1],
                   "Transposed: axes 0 and 1 of measured are swapped at all 16 entries compared."),
    "w is constant": (lambda x, w: (x * w, lambda dy: (dy, (dy * x).sum(0))), [X, np.ones(4)],
                      "Wrong only when w is not constant: right for the equal numbers given, wrong for random ones."),
    "wrong axis": (lambda x, b: (x + b, lambda dy: (dy, dy.sum(1))), [SQUARE, np.arange(4.0)],
                   "Summed over the wrong axis: claimed is dy summed over axis 1, measured is its sum over axis 0."),
    "contiguous dy": (lambda x: (2 * x, lambda dy: 2 * from_memory(dy)), [X],
                      "dy read as contiguous: the same dy in another memory layout gives another gradient; use dy's "
                      "strides, or np.ascontiguousarray(dy)."),
    "kink": (lambda x: (np.abs(x), lambda dy: dy * np.where(x == 0, 3, np.sign(x))), [np.array([1.0, 0.0, -2.0])],
             "Kink at x[1]: the slopes of y on both sides differ there, and claimed is not between them."),
    "few digits": (rounded_away, [X], "Ill-conditioned: 0 digits of the derivative are left."),
    "another input": (lambda x, w: (x * w, lambda dy: (dy * x, dy * w)), [X, X + 1],
                      "Gradient of the wrong input: claimed for x is the measured gradient of w."),
    "broadcast": (for_views_of_one_number, [X], "Wrong only for 'broadcast dy'; right for 'as given'."),
}


@pytest.mark.parametrize("cause", SENTENCES)
def test_the_cause_of_wrong_numbers_is_named(cause):
    function, inputs, sentence = SENTENCES[cause]
    report = gradcheck(function, inputs, raise_exception=False, seed=0)
    assert sentence in [said for pair in report.pairs for said in pair.diagnoses]
    assert sentence.partition(":")[0] in report.text()


FAULTS = {                                                      # function, its fault
    "changes its input": (changes_x, "input mutated", "changes its inputs in place; let it work on a copy"),
    "changes dy": (changes_dy, "dy mutated", "back changes dy in place; let it work on a copy"),
    "of another shape": (lambda x: (2 * x, lambda dy: 2 * dy.ravel()), "wrong shape",
                         "the gradient of x has shape (12,), the input has (3, 4)"),
    "of another dtype": (lambda x: (2 * x, lambda dy: (2 * dy).astype("float32")), "wrong dtype",
                         "the gradient of x is float32, but the input is float64; return that precision"),
    "contiguous x": (lambda x: (2 * from_memory(x), lambda dy: 2 * dy), "layout",
                     "returns another y for strided inputs: it reads memory as if it were contiguous; use the strides, "
                     "or copy"),
    "flickers": (flickering, "not deterministic", "if its order of sums varies, allow that: nondet_tol="),
}


@pytest.mark.parametrize("cause", FAULTS)
def test_a_fault_that_is_not_a_wrong_number_is_named(cause):
    function, kind, sentence = FAULTS[cause]
    report = gradcheck(function, [X.copy()], raise_exception=False, seed=0)
    assert [fault.kind for fault in report.faults if sentence in fault.sentence] == [kind]


def test_a_function_of_random_numbers_is_refused():
    with pytest.raises(ValueError, match=r"is random: two calls with the same inputs differ by .*; seed its"):
        gradcheck(lambda x: (x * FLIPS.standard_normal(), lambda dy: dy), [X])


def test_an_output_that_is_an_input_is_noted():
    report = gradcheck(lambda x: (x, lambda dy: dy), [X])
    assert report.notes == ("the output shares memory with x: a write to one changes the other",)


@pytest.mark.parametrize(("times", "right"), [(1, True), (2, False)])
def test_a_function_that_is_not_holomorphic_is_judged_by_differences(times, right):
    report = gradcheck(lambda x: (np.abs(x), lambda dy: times * np.sign(x) * dy), [X], raise_exception=False, seed=0)
    assert bool(report) == right
    assert "complex step" not in {verdict.method for verdict in report.pairs[0].verdicts}
    sentence = "y is not holomorphic in x, or refuses complex numbers: differences judge it, not a complex step"
    assert (sentence in report.notes) == (not right)


def test_a_holomorphic_function_is_not_said_to_be_otherwise():
    report = gradcheck(lambda x: (x ** 3, lambda dy: 6 * x * x * dy), [X], raise_exception=False, seed=0)
    assert not any("holomorphic" in note for note in report.notes)


def test_odd_sizes_are_drawn_and_the_place_is_named():
    report = check_shapes(for_whole_pairs, "x[D] -> y[D]", seed=0)
    sentences = report.pairs[0].diagnoses
    assert sentences[0].startswith(("Wrong only at the last index of axis 0", "Wrong only at x["))
    assert sentences[1].startswith("There: All zeros: ")


def test_arrays_without_numbers_are_drawn():
    report = check_shapes(for_some_numbers, "x[N] -> y[N]", seed=0, budget=None)
    fault, = report.faults
    assert fault.sentence == "the gradient of x has shape (1,), the input has (0,)"
