"""A gradient that is wrong only at some entries, or only for some inputs: where, and what is wrong there."""
import numpy as np
import pytest

from pyllama.ops import cross_entropy, embedding, gelu, softmax
from pyllama.testing.diagnosis import Evidence, diagnose
from tests.evidence import evidence, said

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5))


def probabilities(x):
    return softmax(x)[0]


def test_gelu_only_on_one_side_of_zero():
    wide = RNG.standard_normal((5, 8))
    wrong = lambda dy: np.where(wide < 0, 0.0, gelu(wide)[1](dy)[0])                            # noqa: E731
    found = diagnose(evidence(gelu, ["x"], [wide], 0, wrong))
    count = (wide < 0).sum()
    assert found[0] == f"Wrong only where x < 0: at {count} of 40 entries, the others are right."
    assert found[1].startswith("There: All zeros: claimed is 0")
    assert len(found) == 2


def test_a_gate_that_is_inverted():
    def relu(x):
        return np.where(x.real > 0, x, 0), None

    found, = diagnose(evidence(relu, ["x"], [X], 0, lambda dy: np.where(X > 0, 0, dy)))
    assert found.startswith("Gate inverted: claimed is 0 where measured is not")


def test_rows_that_are_added_to_another_one():
    def wrong(dy):
        table = np.zeros(TABLE.shape)
        np.add.at(table, 0 * IDS, dy)
        return table

    assert said(embedding, ["ids", "w"], [IDS, TABLE], 1, wrong) == ["Added at the wrong index"]


def test_a_kink():
    """At a kink any slope between those of both sides is right, so the tolerance is half of their distance."""
    def absolute(x):
        return np.where(x.real < 0, -x, x), None

    x = np.array([1.0, 0.0, -2.0])
    made = evidence(absolute, ["x"], [x], 0, lambda dy: dy * np.array([1.0, 3.0, -1.0]))
    made.measured[1], made.tolerance[1], made.kink = 0.0, abs(made.dy[1]), x == 0
    assert diagnose(made) == ("Kink at x[1]: the slopes of y on both sides differ there, and claimed is not "
                              "between them.",)
    made.claimed[1] = 0.5 * made.dy[1]
    made.__dict__.pop("bad")                            # it was cached
    assert diagnose(made) == ()


def test_a_clipped_gradient():
    def cube(x):
        return x ** 3, None
    wide = 2 * RNG.standard_normal((5, 8))
    wrong = lambda dy: 3 * np.clip(wide, -2, 2) ** 2 * dy                                       # noqa: E731
    found = diagnose(evidence(cube, ["x"], [wide], 0, wrong))
    assert found[0].startswith("Wrong only where |x| ≥ 2.")
    assert found[1].startswith("There: Wrong factor: claimed = 4 × measured / x² at all")
    assert len(found) == 2


def test_an_error_that_grows_from_nothing_has_no_place():
    """Near 0 it is below the tolerance, which says nothing of the cause."""
    x = RNG.standard_normal((5, 8))
    x[0, 0] = 1e-9
    made = evidence(gelu, ["x"], [x], 0, lambda dy: gelu(x)[1](dy)[0] + 1e-3 * x ** 2 * np.cos(3 * x) * dy)
    assert not made.bad[0, 0]
    assert not any("Wrong only where" in sentence for sentence in diagnose(made))


IDS = np.array([[0, 2, 2], [5, 2, 1]])
TABLE = RNG.standard_normal((7, 4))


def scattered(dy):
    table = np.zeros(TABLE.shape)
    table[IDS] = dy                                     # the last one stays
    return table


def test_repeated_ids():
    found = diagnose(evidence(embedding, ["ids", "w"], [IDS, TABLE], 1, scattered))
    assert found == ("Lost duplicates: wrong only in rows of w whose number occurs more than once in ids: "
                     "claimed is dy of the last occurrence alone.",)


def test_repeated_ids_that_are_averaged():
    counts = np.bincount(IDS.ravel(), minlength=7)[:, None]

    def wrong(dy):
        return embedding(IDS, TABLE)[1](dy)[1] / np.maximum(counts, 1)

    found = diagnose(evidence(embedding, ["ids", "w"], [IDS, TABLE], 1, wrong))
    assert found[0] == "Wrong only for repeated ids: in the rows of w whose number occurs more than once in ids."
    assert found[1].startswith("There: Constant factor 0.333")


def test_ids_that_are_off_by_one():
    def wrong(dy):
        table = np.zeros(TABLE.shape)
        np.add.at(table, IDS + 1, dy)
        return table
    assert said(embedding, ["ids", "w"], [IDS, TABLE], 1, wrong) == ["Shifted"]


LABELS = np.array([2, -100, 0, 1, -100])
LOGITS = RNG.standard_normal((5, 4))


def ce_bug(bug):
    def wrong(dy):
        p = probabilities(LOGITS)
        target = np.eye(4)[np.where(LABELS < 0, 0, LABELS)]
        kept = (LABELS != -100)[:, None]
        return {"ignores nothing": (p - target) / 3 * dy, "no target": np.where(kept, p, 0) / 3 * dy,
                "not divided": np.where(kept, p - target, 0) * dy, "ignores dy": np.where(kept, p - target, 0) / 3}[bug]
    return wrong


@pytest.mark.parametrize(("bug", "expected"), [
    ("ignores nothing", ["Wrong only where labels = -100"]),
    ("no target", ["Wrong only at the index of the last axis that labels has"]),
    ("not divided", ["Constant factor 3.000"]),
    ("ignores dy", ["dy ignored"])])
def test_cross_entropy(bug, expected):
    found = said(cross_entropy, ["x", "labels"], [LOGITS, LABELS], 0, ce_bug(bug))
    assert found[:len(expected)] == expected


def test_a_strided_dy_that_is_read_as_contiguous():
    """unsloth PR #10617."""
    memory = RNG.standard_normal((3, 10))
    strided = memory[:, ::2]

    def wrong(dy):
        flat = np.lib.stride_tricks.as_strided(dy, dy.shape, (8 * dy.shape[1], 8))
        return softmax(X)[1](np.array(flat))[0]
    found = diagnose(evidence(softmax, ["x"], [X], 0, wrong, dy=strided,
                              outcomes={"as given": False, "strided dy": True}))
    assert found[0].startswith("dy read as contiguous")
    assert found[1] == "Wrong only for 'strided dy'; right for 'as given'."
    assert len(found) == 2


@pytest.mark.parametrize(("place", "words"), [
    (np.s_[:, -1], "at the last index of axis 1"), (np.s_[0], "at the first index of axis 0"),
    (np.s_[:, ::2], "at the even indices of axis 1"), (np.s_[:, 3:], "in the second half of axis 1"),
    (np.s_[2], "at index 2 of axis 0"), (np.s_[:, [0, -1]], "at both ends of axis 1")])
def test_places(place, words):
    x = RNG.standard_normal((5, 6))

    def wrong(dy):
        dx = softmax(x)[1](dy)[0]
        dx[place] *= 3
        return dx
    found = diagnose(evidence(softmax, ["x"], [x], 0, wrong))
    assert found[0].startswith(f"Wrong only {words}: ")
    assert found[1].startswith("There: Constant factor 3.000")
    assert len(found) == 2


def test_a_single_entry():
    def wrong(dy):
        dx = softmax(X)[1](dy)[0]
        dx[1, 3] *= 4
        return dx
    assert diagnose(evidence(softmax, ["x"], [X], 0, wrong)) == (
        "Wrong only at x[1, 3]: the other 14 entries are right.",
        "There: Constant factor 4.000: claimed = 4.000 × measured at the entry compared.")


SHAPES = [(), (1,), (2,), (0, 3), (1, 1), (2, 1, 3), (2, 2, 2), (1, 2, 1, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrong", [lambda dy: 3 * dy, lambda dy: dy * 0, lambda dy: -dy, lambda dy: dy[::-1],
                                   lambda dy: dy * dy, lambda dy: dy + 1, lambda dy: dy * np.inf, lambda dy: dy])
def test_any_shape_may_be_diagnosed(shape, wrong):
    def same(x):
        return x * 1, None

    x = np.random.default_rng(1).standard_normal(shape)
    for sentence in diagnose(evidence(same, ["x"], [x], 0, wrong if shape else lambda dy: wrong(dy[None])[0])):
        assert sentence.endswith((".", "?"))


@pytest.mark.parametrize(("extreme", "expected"), [
    (1e308, ["Wrong sign"]), (-1e308, ["Wrong only at x[0, 1], x[1, 0], x[1, 1]"]), (1e-308, []), (np.inf, []),
    (np.nan, [])])
def test_extreme_numbers_are_no_reason_to_stop(extreme, expected):
    """Warnings are errors here."""
    x = np.array([[extreme, 1.0], [0.5, -2.0]])
    measured, claimed = np.array([[-extreme, 0.0], [1.0, 2.0]]), np.array([[1e308, 1.0], [2.0, 4.0]])
    made = Evidence("x", "y", {"x": x, "w": x[0]}, x, x, np.ones((2, 2)), claimed, measured, np.full((2, 2), 1e-11),
                    lambda dy: claimed * dy)
    assert [sentence.partition(":")[0] for sentence in diagnose(made)] == expected


def test_entries_that_were_not_measured_are_not_judged():
    """A budget may leave most of them out."""
    made = evidence(softmax, ["x"], [X], 0, lambda dy: 2 * softmax(X)[1](dy)[0])
    made.measured[np.ix_([0, 2], [1, 2, 3])] = np.nan
    assert diagnose(made) == ("Constant factor 2.000: claimed = 2.000 × measured at all 9 entries compared.",)
    made = evidence(softmax, ["x"], [X], 0, lambda dy: 2 * softmax(X)[1](dy)[0])
    made.measured[:] = np.nan
    assert diagnose(made) == ()


# --- what is not said -------------------------------------------------------------------------------------------------

def masked(x):
    """A softmax of the last two rows; the others do not count."""
    return softmax(x)[0] * (np.arange(6) > 3)[:, None], None


def test_zeros_on_both_sides_say_nothing_of_the_place():
    x = RNG.standard_normal((6, 5))
    wrong = lambda dy: np.sin(x) * softmax(x)[1](dy * (np.arange(6) > 3)[:, None])[0]           # noqa: E731
    made = evidence(masked, ["x"], [x], 0, wrong)
    assert made.bad.sum() == 10
    assert not any("Wrong only" in sentence for sentence in diagnose(made))


def test_numbers_with_the_right_sum_are_not_in_another_place():
    """A mean over the rows keeps the sum."""
    def wrong(dy):
        dx = softmax(X)[1](dy)[0] + X * dy
        return np.broadcast_to(dx.mean(0), X.shape)

    def f(x):
        return softmax(x)[0] + x * x / 2, None

    assert said(f, ["x"], [X], 0, wrong) == []


@pytest.mark.parametrize(("count", "expected"), [(1, []), (3, ["Gate inverted"])])
def test_a_mask_that_is_inverted(count, expected):
    """A single entry would fit any multiple of y."""
    x, kept = RNG.standard_normal(12), np.arange(12) < count
    assert said(lambda x: (x * kept * 1.3, None), ["x"], [x], 0, lambda dy: dy * ~kept * 1.3) == expected


def test_entries_of_no_pattern_with_one_mistake():
    chosen = np.random.default_rng(3).random((5, 6)) < 0.4
    x = RNG.standard_normal((5, 6))
    found = diagnose(evidence(softmax, ["x"], [x], 0, lambda dy: np.where(chosen, 3, 1) * softmax(x)[1](dy)[0]))
    assert found[0] == f"Wrong only at {chosen.sum()} of 30 entries: the others are right."
    assert found[1].startswith("There: Constant factor 3.000: ")
