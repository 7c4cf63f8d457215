"""Planted mistakes are named in words, and nothing else is said of them."""
import time

import numpy as np
import pytest

from pyllama.ops import attention, gelu, layer_norm, linear, rms_norm, softmax
from pyllama.ops import tanh as tanh_op
from pyllama.testing.diagnosis import Evidence, diagnose
from tests.evidence import evidence, said

RNG = np.random.default_rng(0)
X, W, SQUARE = RNG.standard_normal((3, 5)), RNG.standard_normal(5), RNG.standard_normal((4, 4))
OTHER = RNG.standard_normal((3, 5))


def probabilities(x):
    return softmax(x)[0]


def multiplied(x, w):
    return x * w, None


SOFTMAX = {
    "forgets the sum": (lambda dy: probabilities(X) * dy, ["Missing term"]),
    "forgets the factor y": (lambda dy: dy - (dy * probabilities(X)).sum(-1, keepdims=True), ["Wrong factor"]),
    "zero": (lambda dy: 0 * X, ["All zeros"]),
    "negated": (lambda dy: -softmax(X)[1](dy)[0], ["Wrong sign"]),
    "doubled": (lambda dy: 2 * softmax(X)[1](dy)[0], ["Constant factor 2.000"]),
    "mean over the row": (lambda dy: softmax(X)[1](dy)[0] / 5, ["Constant factor 0.200"]),
    "upside down": (lambda dy: softmax(X)[1](dy)[0][::-1], ["Reversed"]),
    "in another order": (lambda dy: softmax(X)[1](dy)[0].T.reshape(3, 5), ["Transposed and reshaped"]),
    "one row on": (lambda dy: np.roll(softmax(X)[1](dy)[0], 1, 0), ["Shifted"]),
    "adds dy once more": (lambda dy: softmax(X)[1](dy)[0] + dy, ["Missing term"]),
    "ignores dy": (lambda dy: softmax(X)[1](np.ones(X.shape) * np.arange(5))[0], ["dy ignored"]),
    "adds a constant": (lambda dy: softmax(X)[1](dy)[0] + X * X, ["dy not linear", "Missing term"]),
    "squares dy": (lambda dy: softmax(X)[1](dy * dy)[0], ["dy not linear"]),
    "takes |dy|": (lambda dy: softmax(X)[1](np.abs(dy))[0], ["dy not linear"]),
    "in float32": (lambda dy: softmax(X)[1](dy)[0].astype("float32").astype(float), ["Computed in float32"]),
    "off in the last digits": (lambda dy: softmax(X)[1](dy)[0] + 1e-7 * np.sin(np.arange(15.0)).reshape(3, 5),
                               ["Nearly right"]),
    "not a number": (lambda dy: np.where(X > 0.5, np.nan, 1.0), ["Not finite"]),
}


@pytest.mark.parametrize("bug", SOFTMAX)
def test_softmax(bug):
    wrong, expected = SOFTMAX[bug]
    assert said(softmax, ["x"], [X], 0, wrong) == expected


def test_a_missing_sum_is_written_out():
    sentence, = diagnose(evidence(softmax, ["x"], [X], 0, lambda dy: probabilities(X) * dy))
    assert sentence == ("Missing term: measured - claimed is y times something constant along axis 1 of x, "
                        "namely y × (-sum of dy × y over axis 1).")


def test_a_term_with_the_wrong_sign():
    def plus(dy):
        y = probabilities(X)
        return y * (dy + (dy * y).sum(-1, keepdims=True))

    sentence, = diagnose(evidence(softmax, ["x"], [X], 0, plus))
    assert sentence == ("Missing term or one with the wrong sign: measured - claimed is y times something constant "
                        "along axis 1 of x, namely y × (-2 × sum of dy × y over axis 1).")


def test_a_factor_is_written_with_the_axis_that_it_may_be():
    sentence, = diagnose(evidence(softmax, ["x"], [X], 0, lambda dy: softmax(X)[1](dy)[0] / 5))
    assert "0.200 = 1/5; axis 1 of x has size 5: a mean where the derivative has a sum?" in sentence


def normalized(x, *, eps=1e-5):
    r = (np.mean(x * x, -1, keepdims=True) + eps) ** -0.5
    return x * r, r


def rms_bug(bug):
    n, r = normalized(X)

    def wrong(dy):
        g = W * dy
        return {"w left out": lambda: r * (dy - n * np.mean(dy * n, -1, keepdims=True)),
                "w outside the mean": lambda: W * r * (dy - n * np.mean(dy * n, -1, keepdims=True)),
                "mean left out": lambda: r * g,
                "sum instead of mean": lambda: r * (g - n * np.sum(g * n, -1, keepdims=True)),
                "1/rms left out": lambda: g - n * np.mean(g * n, -1, keepdims=True),
                "1/rms twice": lambda: r * r * (g - n * np.mean(g * n, -1, keepdims=True)),
                "eps forgotten": lambda: rms_norm(X, W, eps=0.0)[1](dy)[0]}[bug]()
    return wrong


@pytest.mark.parametrize(("bug", "expected"), [
    ("mean left out", ["Missing term"]), ("sum instead of mean", ["Missing term"]),
    ("1/rms left out", ["A factor for each place, constant along axis 1"]),
    ("1/rms twice", ["A factor for each place, constant along axis 1"]),
    ("eps forgotten", ["Right form, wrong numbers", "Nearly right"]), ("w left out", ["Missing term"]),
    ("w outside the mean", ["Missing term"])])
def test_rms_norm(bug, expected):
    assert said(rms_norm, ["x", "w"], [X, W], 0, rms_bug(bug)) == expected


def test_a_weight_that_is_left_out():
    sentence, = diagnose(evidence(rms_norm, ["x", "w"], [X, W], 0, rms_bug("w left out")))
    assert sentence.startswith("Missing term: along the last axis, measured - claimed = a × x + b × dy × (w - 1) with")
    assert sentence.endswith(": w is left out.")


def test_the_factor_of_each_row_is_recognized():
    """An extra 1/rms: tsotchke/eshkol#386."""
    sentence, = diagnose(evidence(rms_norm, ["x", "w"], [X, W], 0, rms_bug("1/rms twice")))
    assert sentence.endswith("and it is 1 / sqrt(mean(x²) + eps) over axis 1.")


def test_wrong_only_where_w_is_not_constant():
    points, terms = diagnose(evidence(rms_norm, ["x", "w"], [X, W], 0, rms_bug("w outside the mean"),
                                      outcomes={"as given": False, "random w": True, "away from 0 and 1": True}))
    assert points.startswith("Wrong only when w is not constant: ")
    assert terms == ("Missing term: along the last axis, measured - claimed = a × x + b × x × w with numbers a and b "
                     "for each row: w is on the wrong side of a sum over the row, or on both.")


def norm_without(part):
    def wrong(dy):
        mean, g = X.mean(-1, keepdims=True), W * dy
        r = (X.var(-1, keepdims=True) + 1e-5) ** -0.5
        n = (X - mean) * r
        terms = {"mean": g.mean(-1, keepdims=True), "variance": n * (g * n).mean(-1, keepdims=True)}
        return r * (g - sum(term for name, term in terms.items() if name != part))
    return wrong


@pytest.mark.parametrize("part", ["mean", "variance"])
def test_layer_norm_without_a_term(part):
    b = np.zeros(5)
    found = diagnose(evidence(layer_norm, ["x", "w", "b"], [X, W, b], 0, norm_without(part)))
    assert len(found) == 1
    assert found[0].startswith({"mean": "Missing term: measured - claimed is constant along axis 1 of x",
                                "variance": "Missing term: along the last axis, measured - claimed = a + b × x"}[part])


def linear_of(x, w):
    return linear(x, w)


LINEAR = {                                              # which input, wrong gradient, expected
    "dw transposed": (1, lambda dy: SQUARE.T @ dy, ["Transposed"]),
    "dw for dx": (0, lambda dy: dy.T @ SQUARE, ["Gradient of the wrong input"]),
    "dx not through w": (0, lambda dy: dy, ["The derivative itself is missing"]),
    "dw of the last row": (1, lambda dy: np.outer(dy[-1], SQUARE[-1]), ["Contributions lost"]),
    "dw as a mean": (1, lambda dy: dy.T @ SQUARE / 4, ["Constant factor 0.250"]),
}


@pytest.mark.parametrize("bug", LINEAR)
def test_linear(bug):
    which, wrong, expected = LINEAR[bug]
    w = RNG.standard_normal((4, 4))
    assert said(linear_of, ["x", "w"], [SQUARE, w], which, wrong) == expected


def test_a_bias_summed_over_the_wrong_axis():
    w, b = RNG.standard_normal((4, 4)), RNG.standard_normal(4)
    sentence, = diagnose(evidence(linear, ["x", "w", "b"], [SQUARE, w, b], 2, lambda dy: dy.sum(1)))
    assert sentence == "Summed over the wrong axis: claimed is dy summed over axis 1, measured is its sum over axis 0."


def test_a_weight_summed_over_the_wrong_axis():
    sentence, = diagnose(evidence(multiplied, ["x", "w"], [SQUARE, W[:4]], 1, lambda dy: (dy * SQUARE).sum(1)))
    assert sentence.startswith("Summed over the wrong axis: claimed is dy × x summed over axis 1")


def test_a_weight_whose_input_is_forgotten():
    sentence, = diagnose(evidence(multiplied, ["x", "w"], [X, W], 1, lambda dy: dy.sum(0)))
    assert sentence == "The derivative itself is missing: claimed is dy summed over axis 0 at all 5 entries compared."


@pytest.mark.parametrize(("wrong", "sentence"), [
    (lambda dy: dy, "Wrong factor: w is missing: claimed = measured / w at all 15 entries compared."),
    (lambda dy: dy * W * W, "Wrong factor: w is there once too often: claimed = measured × w at all 15"),
    (lambda dy: dy * dy * W, "Wrong factor: dy is there once too often")])
def test_a_factor_that_is_an_input(wrong, sentence):
    found = diagnose(evidence(multiplied, ["x", "w"], [X, W], 0, wrong))
    assert any(one.startswith(sentence) for one in found)
    assert all(one.startswith(("Wrong factor", "dy not linear", "The derivative itself")) for one in found)


def test_tanh_without_its_derivative():
    found = diagnose(evidence(tanh_op, ["x"], [X], 0, lambda dy: dy))
    assert found[0].startswith("Wrong factor: (1 - y²) is missing")
    assert found[1:] == ("The derivative itself is missing: claimed is dy at all 15 entries compared.",)


def test_tanh_of_the_input_instead_of_the_output():
    found = diagnose(evidence(tanh_op, ["x"], [X], 0, lambda dy: dy * (1 - X * X)))
    assert found == ("Another formula: claimed = dy × (1 - x²) at all 15 entries compared.",)


def test_a_power_too_few():
    def cube(x):
        return x ** 3, None

    found = diagnose(evidence(cube, ["x"], [X], 0, lambda dy: 3 * X * dy))
    assert found == ("Wrong factor: x is missing: claimed = measured / x at all 15 entries compared.",)


def test_a_power_and_its_number_too_few():
    def square(x):
        return x * x, None

    found = diagnose(evidence(square, ["x"], [X], 0, lambda dy: dy))
    assert found[0] == "Wrong factor: 2 × x is missing: claimed = 1/2 × measured / x at all 15 entries compared."


def test_gelu_by_its_approximation():
    def approximate(dy):
        t = np.tanh((2 / np.pi) ** 0.5 * (X + 0.044715 * X ** 3))
        return dy * ((1 + t) / 2 + X * (1 - t * t) / 2 * (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * X * X))
    assert said(gelu, ["x"], [X], 0, approximate) == ["Nearly right"]


def silu(g, u):
    return g / (1 + np.exp(-g)) * u, None


@pytest.mark.parametrize(("which", "wrong", "sentence"), [
    (1, lambda dy, s: dy * X, "Wrong factor: σ(g) is missing: claimed = measured / σ(g) at all 15"),
    (1, lambda dy, s: dy * s, "Wrong factor: g is missing: claimed = measured / g at all 15"),
    (0, lambda dy, s: dy * OTHER * s, "Missing term: measured - claimed = y × dy × (1 - σ(g)) at all 15"),
    (0, lambda dy, s: dy * OTHER * (s - X * s * (1 - s)),
     "Missing term or one with the wrong sign: measured - claimed = 2 × y × dy × (1 - σ(g)) at")])
def test_the_factors_and_terms_of_a_gate(which, wrong, sentence):
    s = 1 / (1 + np.exp(-X))
    found, = diagnose(evidence(silu, ["g", "u"], [X, OTHER], which, lambda dy: wrong(dy, s)))
    assert found.startswith(sentence)


def test_gelu_without_its_density():
    found, = diagnose(evidence(gelu, ["x"], [X], 0, lambda dy: dy * gelu(X)[0] / X))
    assert found == "Missing term: measured - claimed = x × dy × φ(x) at all 15 entries compared."


def heads(*shape):
    return RNG.standard_normal(shape)


def test_attention_gives_k_the_gradient_of_q():
    q, k, v = heads(1, 1, 1, 3, 4), heads(1, 1, 3, 4), heads(1, 1, 3, 4)

    def scaled(q, k, v):
        return attention(q, k, v)
    back = attention(q, k, v)[1]
    assert said(scaled, ["q", "k", "v"], [q, k, v], 0, lambda dy: back(dy)[0] * 2) == ["Constant factor 2.000"]
    assert said(scaled, ["q", "k", "v"], [q, k, v], 2, lambda dy: back(dy)[1]) == ["Gradient of the wrong input"]


@pytest.mark.parametrize(("wrong", "kind"), [
    (lambda dy: turned(dy, 1), "Rotated: each pair of entries half a row apart"),
    (lambda dy: turned(turned(dy, -1), -1), "Rotated: each pair of entries half a row apart")])
def test_a_rotation_by_another_angle(wrong, kind):
    x = RNG.standard_normal((3, 6))
    found, = diagnose(evidence(lambda x: (turned(x, 1), None), ["x"], [x], 0, wrong))
    assert found.startswith(kind)


def turned(x, sign):
    """Rotary embeddings: pairs half a row apart, turned by the angles 0.3, 0.7 and 1.1 times the row's number."""
    a, b = x[..., :3], x[..., 3:]
    angle = sign * (1 + np.arange(3)[:, None]) * np.array([0.3, 0.7, 1.1])
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)


def test_a_weight_summed_without_a_factor():
    found, = diagnose(evidence(lambda x, w: (normalized(x)[0] * w, None), ["x", "w"], [X, W], 1,
                               lambda dy: (dy * X).sum(0)))
    assert found == "Another formula: claimed = the sum of dy × x over axis 0 at all 5 entries compared."


def test_nothing_is_said_of_dy_where_back_is_random():
    rng = np.random.default_rng(0)

    def wrong(dy):
        return softmax(X)[1](dy)[0] * (1 + 1e-3 * rng.standard_normal(X.shape))

    assert said(softmax, ["x"], [X], 0, wrong) == ["Nearly right"]


def test_few_digits_are_said():
    matrix = RNG.standard_normal((15, 15))
    made = evidence(softmax, ["x"], [X], 0, lambda dy: (matrix @ dy.ravel()).reshape(X.shape))
    made.tolerance[:] = 2e-3 * np.abs(made.measured).max()
    assert diagnose(made) == ("Ill-conditioned: 2 digits of the derivative are left.",)


def test_back_is_not_called_after_the_deadline():
    calls = []

    def wrong(dy):
        calls.append(1)
        return 2 * softmax(X)[1](dy)[0]

    made = evidence(softmax, ["x"], [X], 0, wrong)
    calls.clear()
    made.deadline = time.monotonic() - 1
    assert diagnose(made)[0].startswith("Constant factor 2.000")
    assert not calls


def test_a_large_array_of_which_few_entries_were_measured():
    x, u = RNG.standard_normal((200, 300)), RNG.standard_normal((200, 300))
    dy, known = RNG.standard_normal(x.shape), RNG.random(x.shape) < 1e-3
    right = dy * u * np.exp(x)
    made = Evidence("x", "y", {"x": x, "u": u}, x, u * np.exp(x), dy, dy * np.exp(x), np.where(known, right, np.nan),
                    np.full(x.shape, 1e-11), lambda dy: dy * np.exp(x))
    found = diagnose(made)
    assert found[0] == f"Wrong factor: u is missing: claimed = measured / u at all {known.sum()} entries compared."


def test_nothing_is_said_of_a_right_gradient_nor_of_a_random_one():
    assert said(softmax, ["x"], [X], 0, lambda dy: softmax(X)[1](dy)[0]) == []
    for seed in range(20):
        noise = np.random.default_rng(seed)
        matrix = noise.standard_normal((15, 15))
        assert said(softmax, ["x"], [X], 0, lambda dy, m=matrix: (m @ dy.ravel()).reshape(3, 5)) == []


# --- what is not said -------------------------------------------------------------------------------------------------

def test_a_small_axis_is_not_taken_for_the_reason_of_a_factor():
    """2 is the size of axis 0, and of many axes."""
    assert diagnose(evidence(softmax, ["x"], [X[:2]], 0, lambda dy: softmax(X[:2])[1](dy)[0] / 2)) == (
        "Constant factor 0.500: claimed = 0.500 × measured at all 10 entries compared; 0.500 = 1/2.",)


def test_a_factor_that_may_depend_on_the_inputs_is_not_called_a_constant():
    """Of a single row, 1/rms is one number."""
    r = normalized(X[:1])[1].item()
    found, = diagnose(evidence(lambda x, w: (normalized(x)[0] * w, None), ["x", "w"], [X[:1], W], 1,
                               lambda dy: (dy * X[:1]).sum(0)))
    assert found.startswith(f"Constant factor {1 / r:.6g} at these inputs: claimed = ")


def test_contributions_that_do_not_exist_are_not_lost():
    """Only the first row of y depends on x."""
    def first_row(x):
        return np.concatenate([np.sin(x[:1]), 0 * x[1:]]).sum(-1), None

    def wrong(dy):
        dx = np.zeros(X.shape)
        dx[0] = dy[0] * np.cos(X[0]) * np.arange(1, 6)
        return dx

    assert not any("Contributions" in sentence for sentence in diagnose(evidence(first_row, ["x"], [X], 0, wrong)))


def test_contributions_that_are_lost_along_two_axes():
    x, w = RNG.standard_normal((3, 4, 5)), RNG.standard_normal((2, 5))
    assert diagnose(evidence(linear_of, ["x", "w"], [x, w], 1, lambda dy: np.outer(dy[-1, -1], x[-1, -1]))) == (
        "Contributions lost: claimed depends on the last index of axis 0 and the last index of axis 1 of dy alone; add "
        "those of all.",)


def test_entries_that_get_nothing_have_lost_no_contributions():
    def first_column(dy):
        return (dy * X).sum(0) * (np.arange(5) == 0)

    assert said(multiplied, ["x", "w"], [X, W], 1, first_column) == ["Wrong only at 4 of 5 entries", "There"]


def test_a_dy_that_is_ignored_says_it_all():
    """claimed is a multiple of measured, too, but for this dy alone."""
    def total(x):
        return np.sum(x * x), None

    assert said(total, ["x"], [X], 0, lambda dy: 2 * X, dy=np.array(0.25)) == ["dy ignored"]


def test_numbers_of_both_signs_are_not_rotated():
    signs = np.array([[1, -1, 1, -1, 1]] * 3) * np.array([[1], [1], [-1]])
    found = diagnose(evidence(softmax, ["x"], [X], 0, lambda dy: signs * softmax(X)[1](dy)[0]))
    assert found == ("Wrong only at 7 of 15 entries: the others are right.",
                     "There: Wrong sign: claimed = -measured at all 7 entries compared.")


def test_the_gradients_of_pairs_are_not_multiples_of_one_another():
    """Those of softmax and of its logarithm are both (g, -g) in a row of two."""
    x = RNG.standard_normal((6, 2))
    assert said(softmax, ["x"], [x], 0, lambda dy: dy - softmax(x)[0] * dy.sum(-1, keepdims=True)) == []
