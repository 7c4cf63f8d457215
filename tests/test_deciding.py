"""The tokens that decide an answer, in every family that classifies or writes."""
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllama.cli import shares
from pyllama.errors import UserError
from pyllama.models import MODELS, families_with
from pyllama.models.config import Dimensions
from pyllama.ops.softmax import log_sum_exp
from pyllama.study.deciding import (
    Asked,
    class_score,
    of_class,
    of_text,
    reason,
    reasons,
    score_of,
    surrounding,
    text_score,
)
from pyllama.study.seam import run
from pyllama.tasks import TASKS
from pyllama.tasks.relation_files import MARKS
from pyllama.tasks.rows import Row
from pyllama.tasks.task import Trained
from pyllama.text import special
from tests.test_qa import word_pieces

FAMILIES = families_with("classification")


# --- the score --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification"])
@given(z=arrays(np.float64, (2, 4), elements=st.floats(-30, 30)), index=st.integers(0, 3))
def test_the_gradient_of_a_score_is_its_slope(z, index, problem):
    value, dz = class_score(z, index, problem)
    h = 1e-4
    for c in range(4):
        step = h * (np.arange(4) == c)
        slope = (class_score(z + step, index, problem)[0] - class_score(z - step, index, problem)[0]) / (2 * h)
        # truncation: h²/6 times a third derivative of at most 1/4; rounding: two values up to 90, over 2h
        np.testing.assert_allclose(dz[:, c], slope, rtol=0, atol=h ** 2 + 4 * 90 * 2.3e-16 / h)
    assert np.isfinite(value).all()


# --- the tokens of a text ---------------------------------------------------------------------------------------------

TOKENIZER = special.byte_pairs(["a fine film", "a dull film", "<e1>film</e1>"], 300, MARKS)


def classifier(kind, labels=("bad", "good", "so so"), markers=(), **extra):
    """A small model of this family with random weights, in float64, far enough from 0 that classes differ."""
    tokenizer = special.framed(TOKENIZER)
    config = MODELS[kind].config.small(Dimensions(
        vocab_size=tokenizer.vocab_size, context=24, head="classification", width=12, layers=2, heads=3,
        **special.ids_of(tokenizer)))
    config = replace(config, num_labels=len(labels), extra={"id2label": dict(enumerate(labels)), **extra})
    p = scaled(config.model.init(config, seed=3, dtype="float64"))
    return Trained(config, p, tokenizer, 24, markers)


def scaled(p):
    """The tree with matrices ten times as large."""
    if isinstance(p, dict):
        return {name: scaled(inner) for name, inner in p.items()}
    if isinstance(p, list):
        return [scaled(inner) for inner in p]
    return p * 10 if p.ndim > 1 and abs(p).max() < 0.2 else p


def explained(rows, trained, *settings, **others):
    """The reasons of a classifier's scores."""
    return reasons(TASKS["classify"], rows, [None] * len(rows), trained, Asked(*settings, **others))


def rows(*texts):
    return [Row("", {"text": text}) for text in texts]


def ids_of(trained, text):
    return special.encode(trained.tokenizer, [text], None, trained.markers)[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_text_with_the_vectors_of_another_has_the_score_of_the_other(kind):
    """Also where a decoder reads the same tokens, shifted."""
    trained = classifier(kind)
    ids, other = (ids_of(trained, text) for text in ("a fine film", "a dull film"))
    other = np.resize(other[1:-1], len(ids) - 2)            # as many tokens, within the same special ones
    other = np.concatenate([ids[:1], other, ids[-1:]])
    z, seam, _ = run({"ids": other}, trained)
    [value], _ = score_of(of_class({"ids": ids}, trained, 1), trained)(seam.table[other][None])
    assert value == pytest.approx((z - log_sum_exp(z))[0, 1], abs=1e-12)
    [own], _ = score_of(of_class({"ids": ids}, trained, 1), trained)(seam.table[ids][None])
    assert abs(value - own) > 1e-3


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_gradient_of_the_vectors_is_the_slope_of_the_score(kind):
    trained = classifier(kind)
    ids = ids_of(trained, "a fine film")
    _, seam, _ = run({"ids": ids}, trained)
    x = seam.table[ids]
    f = score_of(of_class({"ids": ids}, trained, 1), trained)
    _, back = f(x[None])
    direction = np.random.default_rng(0).standard_normal(x.shape)
    direction[np.isin(ids, surrounding(trained))] = 0
    slope = float((back(np.ones(1))[0] * direction).sum())
    assert abs(slope) > 1e-3                                # so that the comparison says something
    h = 1e-5
    (up, down), _ = f(np.stack([x + h * direction, x - h * direction]))
    # truncation h² f‴/6 and rounding 1e-16 |f| / h are near 1e-10 here; a missing path is near the slope itself
    assert (up - down) / (2 * h) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_shares_add_up_to_the_difference_of_the_scores(kind):
    trained = classifier(kind)
    [found] = explained(rows("a fine film"), trained, "integrated", "good", "mean")
    ids = ids_of(trained, "a fine film")
    assert "".join(found.tokens[1:-1]) == "a fine film"
    assert found.attribution.complete
    assert len(found.attribution.shares) == len(ids)
    own = np.isin(ids, surrounding(trained))
    assert own.any()
    assert not found.attribution.shares[own].any()
    assert found.attribution.shares[~own].all()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("method", ["integrated", "gradient"])
def test_what_is_in_the_padding_changes_no_share(kind, method):
    trained = classifier(kind)
    ids = ids_of(trained, "a fine film")
    alone = reason(of_class({"ids": ids}, trained, 1), trained, method, "mean").attribution
    rng = np.random.default_rng(1)
    for _ in range(2):
        padding = rng.integers(3, trained.config.vocab_size, 5)
        whole = {"ids": np.append(ids, padding), "mask": np.arange(len(ids) + 5) < len(ids)}
        padded = reason(of_class(whole, trained, 1), trained, method, "mean").attribution
        # the same sums in another order; 1e-9 is far above their rounding, and far below a share
        np.testing.assert_allclose(padded.shares[:len(ids)], alone.shares, rtol=1e-9, atol=1e-12)
        assert not padded.shares[len(ids):].any()


@given(method=st.sampled_from(["integrated", "gradient"]), baseline=st.sampled_from(["pad", "mean", "zero"]))
def test_every_target_has_its_own_shares(method, baseline):
    trained = classifier("lstm")
    found = [explained(rows("a fine film"), trained, method, target, baseline)[0] for target in ("bad", "good")]
    assert [one.target for one in found] == ["bad", "good"]
    assert not np.allclose(found[0].attribution.shares, found[1].attribution.shares)


def test_the_likeliest_class_is_explained():
    trained = classifier("bert")
    z, _, _ = run({"ids": ids_of(trained, "a fine film")}, trained)
    [found] = explained(rows("a fine film"), trained, "gradient")
    assert found.target == ("bad", "good", "so so")[int(z[0].argmax())]


def test_the_baseline_with_the_lowest_score_is_taken():
    trained = classifier("lstm")
    for target in ("bad", "good", "so so"):
        [found] = explained(rows("a fine film"), trained, "gradient", target)
        named = {name: explained(rows("a fine film"), trained, "gradient", target, name)[0].attribution.base
                 for name in ("pad", "mean")}               # this tokenizer has no mask token
        assert found.baseline == min(named, key=named.get)
        assert found.attribution.base == min(named.values())


def test_of_a_pair_the_types_stay_in_the_baseline():
    """A text whose tokens are those of the baseline has no share, although its types differ."""
    trained = classifier("bert")
    pair = [Row("", {"text": "a fine film", "text_pair": "a film"})]
    [found] = explained(pair, trained, "integrated", "good", "mean")
    assert found.attribution.complete
    assert sum(token == "</s>" for token in found.tokens) == 2
    table = trained.params["bert"]["embeddings"]["word_embeddings"]["weight"]
    table[:] = table.mean(axis=0)
    [same] = explained(pair, trained, "integrated", "good", "mean")
    assert abs(same.attribution.shares).max() < 1e-12       # the mean of equal rows, to rounding


def test_markers_are_part_of_the_text_that_is_explained():
    trained = classifier("lstm", markers=MARKS)
    text = "a <e1>film</e1>"
    [found] = explained(rows(text), trained, "gradient", "good")
    shares = dict(zip(found.tokens, found.attribution.shares, strict=True))
    assert shares["<e1>"]
    assert not shares["</s>"]


def test_an_unknown_word_is_part_of_the_text_that_is_explained():
    trained = classifier("lstm")._replace(tokenizer=special.framed(word_pieces()))
    [found] = explained(rows("who saw zzz"), trained, "gradient", "good", "zero")
    shares = dict(zip(found.tokens, found.attribution.shares, strict=True))
    assert shares["[UNK]"]
    assert not shares["[CLS]"]


def test_a_number_and_one_of_several_classes_are_explained():
    [number] = explained(rows("a fine film"), classifier("lstm", ["LABEL_0"]), "integrated")
    assert number.target == ""
    assert number.attribution.complete
    trained = classifier("lstm", problem_type="multi_label_classification")
    [one] = explained(rows("a fine film"), trained, "integrated", "so so")
    z, _, _ = run({"ids": ids_of(trained, "a fine film")}, trained)
    assert one.attribution.score == pytest.approx(-np.log1p(np.exp(-z[0, 2])))


def test_what_cannot_be_explained_is_said():
    trained = classifier("lstm")
    with pytest.raises(UserError, match=r"no mask token for a baseline; choose the baseline mean or zero"):
        explained(rows("a film"), trained, "gradient", baseline="mask")
    with pytest.raises(UserError, match=r"target is 'fair', but the model has the classes bad, good, so so; choose"):
        explained(rows("a film"), trained, "gradient", target="fair")
    with pytest.raises(UserError, match=r"answers with a number, so it has no class to explain; remove target"):
        explained(rows("a film"), classifier("lstm", ["LABEL_0"]), "gradient", target="LABEL_0")
    trained.params["embedding"]["weight"][:] = np.nan
    with pytest.raises(UserError, match="not finite"), np.errstate(invalid="ignore"):
        explained(rows("a film"), trained, "gradient", baseline="zero")


# --- texts that a model writes ----------------------------------------------------------------------------------------

WRITERS = {"llama": "instruct", "gpt2": "instruct", "bart": "g2p", "transformer": "g2p"}
ASKED = {"instruct": {"instruction": "say film"}, "g2p": {"source": "a fine film"}}
CHAT = {"instruction": "say it", "messages": [{"role": "user", "content": "say it"},
                                              {"role": "assistant", "content": "a dull film"},
                                              {"role": "user", "content": "and now"}]}


def writer(kind):
    """(task, a small model of this family that writes, in float64)"""
    task, tokenizer = TASKS[WRITERS[kind]], special.framed(TOKENIZER, end=WRITERS[kind] != "instruct")
    config = MODELS[kind].config.small(Dimensions(
        vocab_size=tokenizer.vocab_size, context=96, head=task.head, width=12, layers=2, heads=3,
        **special.ids_of(tokenizer)))
    config = replace(config, **dict.fromkeys(config.DROPOUTS, 0.0))
    return task, Trained(config, scaled(config.model.init(config, seed=3, dtype="float64")), tokenizer, 96)


@pytest.mark.parametrize(("kind", "values"), [*((kind, ASKED[task]) for kind, task in WRITERS.items()),
                                              ("llama", CHAT)], ids=[*WRITERS, "chat"])
def test_the_score_of_a_text_is_the_loss_of_its_tokens(kind, values):
    task, trained = writer(kind)
    question = of_text(task, Row("", values), "a dull film", trained)
    z, seam, _ = run(question.inputs, trained)
    [value], _ = question.score(z)
    [answer] = trained.tokenizer.encode_batch(["a dull film"])
    labels = np.append(answer, trained.tokenizer.eos_id).astype(int)
    ids = question.inputs["ids"]
    if task.name == "instruct":
        assert ids[question.length:].tolist() == labels.tolist()
        labels = np.where(np.arange(len(ids)) < question.length, -100, ids)
    loss, _ = trained.config.model.loss(ids[None], labels[None], trained.params, trained.config, count=1)
    assert value == pytest.approx(-float(loss), rel=1e-12)

    f, x = score_of(question, trained), seam.table[ids]
    _, back = f(x[None])
    direction = np.random.default_rng(0).standard_normal(x.shape) * ~question.own[:, None]
    slope, h = float((back(np.ones(1))[0] * direction).sum()), 1e-5
    (up, down), _ = f(np.stack([x + h * direction, x - h * direction]))
    assert abs(slope) > 1e-3
    assert (up - down) / (2 * h) == pytest.approx(slope, abs=1e-6)          # as above


@pytest.mark.parametrize("kind", WRITERS)
def test_an_answer_is_explained_by_the_question_alone(kind):
    task, trained = writer(kind)
    row = Row("", ASKED[task.name])
    [found] = reasons(task, [row], ["a dull film"], trained, Asked("integrated"))
    assert (found.kind, found.target) == ("text", "a dull film")
    assert found.attribution.complete
    text = "".join(found.tokens)
    assert ("say film" in text) if task.name == "instruct" else ("a fine film" in text)
    assert "dull" not in text
    assert len(found.tokens) == len(found.attribution.shares)


def test_an_answer_that_repeats_the_source_is_no_part_of_it():
    """The decoder then reads the tokens of the source, shifted; but they are the answer's."""
    task, trained = writer("bart")
    question = of_text(task, Row("", ASKED["g2p"]), "a fine film", trained)
    assert question.inputs["ids"][1:].tolist() == question.inputs["labels"].tolist()
    question = question._replace(inputs={**question.inputs, "ids": question.inputs["labels"]}, own=question.own[1:])
    z, seam, _ = run(question.inputs, trained)
    other = np.where(question.own, question.inputs["ids"], 5)
    moved, _, _ = run(question.inputs, trained, seam.table[other][None])
    wanted, _, _ = run({**question.inputs, "ids": other}, trained)
    np.testing.assert_allclose(moved, wanted, rtol=0, atol=1e-12)
    assert not np.allclose(moved, z)


def test_a_row_without_room_for_an_answer_has_no_reason():
    task, trained = writer("llama")
    row = Row("", {"instruction": "say film " * 60})
    assert reasons(task, [row], [""], trained, Asked("gradient")) == [None]
    assert shares.as_json(None) is None
    assert shares.lines(None) == []


@given(z=arrays(np.float64, (2, 3, 4), elements=st.floats(-30, 30)))
def test_the_gradient_of_a_text_s_score_is_its_slope(z):
    places, targets, h = np.array([0, 2]), np.array([3, 1]), 1e-4
    _, dz = text_score(z, places, targets)
    for t, v in np.ndindex(3, 4):
        step = h * np.eye(12)[4 * t + v].reshape(3, 4)
        (up, _), (down, _) = text_score(z + step, places, targets), text_score(z - step, places, targets)
        # as for classes, of two tokens
        np.testing.assert_allclose(dz[:, t, v], (up - down) / (2 * h), rtol=0, atol=2 * (h ** 2 + 4 * 90 * 2.3e-16 / h))
