"""Attributions: completeness, its order, and the tokens that decide an answer, in every family that classifies."""
import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllama.cli import main, shares
from pyllama.errors import UserError
from pyllama.models import MODELS, families_with
from pyllama.models.config import Dimensions
from pyllama.ops.softmax import log_sum_exp
from pyllama.study.attribution import FEWEST, gradient_times_input, integrated_gradients
from pyllama.study.deciding import (
    Asked,
    check,
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
from tests.shared import written

FAMILIES = families_with("classification")
numbers = st.floats(-2, 2).map(lambda x: round(x, 3))
vectors = arrays(np.float64, (3, 2), elements=numbers)


def exponential(weights):
    """f(x) = exp(w · x), whose slope on a line is an exponential, too."""
    def f(x):
        y = np.exp((weights * x).sum(axis=(1, 2)))
        return y, lambda d: (d * y)[:, None, None] * weights
    return f


# --- any function -----------------------------------------------------------------------------------------------------

@given(weights=vectors, x=vectors, baseline=vectors)
def test_attributions_of_a_linear_function_are_its_terms(weights, x, baseline):
    def f(x):
        return (weights * x).sum(axis=(1, 2)), lambda d: d[:, None, None] * weights

    for method in gradient_times_input, integrated_gradients:
        found = method(f, x, baseline)
        np.testing.assert_allclose(found.shares, (weights * (x - baseline)).sum(axis=1), rtol=0, atol=1e-13)
        assert abs(found.gap) <= 1e-13                      # sums of six numbers, each at most 16


@pytest.mark.parametrize("steps", [8, 16, 32])
@example(weights=np.ones((3, 2)), x=np.ones((3, 2)) / 2, baseline=np.zeros((3, 2)))
@given(weights=vectors, x=vectors, baseline=vectors)
def test_the_gap_is_the_error_of_simpson_s_rule(weights, x, baseline, steps):
    """E = (g‴(1) - g‴(0)) h⁴/180 - (g⁽⁵⁾(1) - g⁽⁵⁾(0)) h⁶/1512 + ..., here with g = r f and g‴ = r⁴ f.

    The terms alternate, and fall as long as r h is less than 1: then the error of the first is less than the second.
    """
    rate = float((weights * (x - baseline)).sum())
    rate, scale = (rate, 1.0) if abs(rate) < 4 else (3.0, 3.0 / rate)
    f = exponential(scale * weights)
    found = integrated_gradients(f, x, baseline, tolerance=0, most=steps)
    low, high = f(np.stack([baseline, x]))[0]
    third, fifth = (rate ** (order + 1) * (high - low) for order in (3, 5))
    leading, bound = third / steps ** 4 / 180, abs(fifth) / steps ** 6 / 1512
    rounding = 1e-14 * (1 + abs(rate)) * max(low, high)     # of a weighted mean of up to 33 numbers
    assert abs(found.gap - leading) <= bound + rounding
    assert found.steps == steps or found.gap == 0


def test_the_steps_are_doubled_until_the_gap_is_small():
    weights = np.full((3, 2), 1.5)
    f, x, zero = exponential(weights), np.ones((3, 2)), np.zeros((3, 2))
    loose, tight = (integrated_gradients(f, x, zero, tolerance) for tolerance in (1e-2, 1e-9))
    assert loose.steps < tight.steps
    for found, tolerance in ((loose, 1e-2), (tight, 1e-9)):
        assert abs(found.gap) <= tolerance * np.abs(found.shares).sum()
    before = integrated_gradients(f, x, zero, 1e-9, most=tight.steps // 2)
    assert abs(before.gap) > 1e-9 * np.abs(before.shares).sum()
    assert loose.steps >= FEWEST


def test_no_step_is_computed_twice():
    seen = []

    def f(x):
        seen.extend(x[:, 0, 0].tolist())
        return np.exp(9 * x[:, 0, 0]), lambda d: (9 * d * np.exp(9 * x[:, 0, 0]))[:, None, None]

    found = integrated_gradients(f, np.ones((1, 1)), np.zeros((1, 1)), tolerance=1e-6)
    assert sorted(seen) == [i / found.steps for i in range(found.steps + 1)]


def test_a_kink_leaves_a_gap_that_is_reported():
    """f = max(x - 1/3, 0): g jumps from 0 to 1, where no step's end is; the error is at most a step."""
    def f(x):
        return np.maximum(x - 1 / 3, 0).sum(axis=(1, 2)), lambda d: d[:, None, None] * (x > 1 / 3)

    found = integrated_gradients(f, np.ones((1, 1)), np.zeros((1, 1)), tolerance=0, most=64)
    assert 0 < abs(found.gap) <= 1 / 64
    assert found.steps == 64


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


def test_a_number_and_one_of_several_classes_are_explained():
    [number] = explained(rows("a fine film"), classifier("lstm", ["LABEL_0"]), "integrated")
    assert number.target == ""
    assert number.attribution.complete
    trained = classifier("lstm", problem_type="multi_label_classification")
    [one] = explained(rows("a fine film"), trained, "integrated", "so so")
    z, _, _ = run({"ids": ids_of(trained, "a fine film")}, trained)
    assert one.attribution.score == pytest.approx(-np.log1p(np.exp(-z[0, 2])))


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


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier that learned one word for each class, a tagger, and rows."""
    folder = tmp_path_factory.mktemp("explained")
    reviews = [f"the {noun} of {month} was {word},{label}" for noun in ("film", "play") for month in ("May", "June")
               for word, label in (("great", "good"), ("dull", "bad")) for _ in range(6)]
    written(folder / "rows.csv", "text,label\n" + "\n".join(reviews) + "\n")
    written(folder / "tags.jsonl", 12 * (json.dumps({"tokens": ["Ann", "left"], "tags": ["B-PER", "O"]}) + "\n"))
    for task, data, steps in (("classify", "rows.csv", 40), ("tag", "tags.jsonl", 2)):
        assert main(["finetune", "--task", task, "--model", "lstm", "--data", f"{folder}/{data}", "--out_dir",
                     f"{folder}/{task}", "--max_steps", f"{steps}", "--warmup_steps", "1", "--vocab_size", "300",
                     "--learning_rate", "1e-2"]) == 0
    return folder


def predicted(capsys, folder, *words, model="classify"):
    """(exit code, standard output, standard error)"""
    capsys.readouterr()
    return main(["predict", "--model", f"{folder}/{model}", *map(str, words)]), *capsys.readouterr()


@pytest.mark.parametrize("flags", [["--explain"], ["--explain", "integrated"], ["--explain=integrated"]], ids=" ".join)
def test_the_word_that_decides_has_the_largest_share(flags, folder, capsys):
    code, out, _ = predicted(capsys, folder, *flags, "--text", "the play of May was great", "the film of June was dull")
    assert code == 0
    paragraphs = re.split("^(?:good|bad)\n", out, flags=re.MULTILINE)[1:]
    for paragraph, word in zip(paragraphs, ("great", "dull"), strict=True):
        *lines, last = paragraph.splitlines()[1:]
        shares = {" ".join(line.split()[1:-1]): float(line.split()[0]) for line in lines if "█" in line}
        assert max(shares, key=shares.get) == word
        assert "by integrated gradients in" in last


def test_rows_have_the_explanation_in_their_objects(folder, capsys):
    code, out, _ = predicted(capsys, folder, "--data", folder / "rows.csv", "--explain", "gradient", "--target", "bad",
                             "--baseline", "mean")
    assert code == 0
    first = json.loads(out.splitlines()[0])
    found = first["explanation"]
    assert found | {"target": "bad", "method": "gradient", "baseline": "mean", "steps": 0} == found
    assert len(found["tokens"]) == len(found["shares"])
    gap = sum(found["shares"]) - (found["score"] - found["baseline_score"])
    assert gap == pytest.approx(found["gap"], abs=1e-5)     # each is rounded to six digits
    table = folder / "answers.csv"
    assert predicted(capsys, folder, "--data", folder / "rows.csv", "--explain", "gradient", "--out", table)[0] == 0
    with table.open(newline="") as file:
        assert json.loads(next(csv.DictReader(file))["explanation"])["target"] == first["predicted"]


@pytest.mark.parametrize(("words", "sentence"), [
    (["--text", "x", "--target", "bad"], "target has no effect without explain; add explain, or remove it"),
    (["--text", "x", "--baseline", "zero"], "baseline has no effect without explain"),
    (["--text", "x", "--explain", "--target", "fair"], "target is 'fair', but the model has the classes bad, good"),
    (["--text", "x", "--explain", "--baseline", "no"], "--baseline is 'no'; it must be one of mask, pad, mean, zero"),
    (["--text", "x", "--explain=shap"], "--explain is 'shap'; it must be one of integrated, gradient"),
    (["--text", "", "--explain"], "'text' is empty"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_wrong_question_is_one_sentence(words, sentence, folder, capsys):
    code, _, err = predicted(capsys, folder, *words)
    assert code == 2
    assert sentence in err


def test_tasks_with_other_answers_are_refused(folder, capsys):
    code, _, err = predicted(capsys, folder, "--text", "Ann left", "--explain", model="tag")
    assert code == 2
    assert "the answers of tag cannot be explained, only a class, a number or a text; leave explain out" in err
    for name, sentence in (("qa", "the answers of qa cannot be explained"),
                           ("instruct", "instruct answers with a text, so it has no class to explain; remove target")):
        with pytest.raises(UserError, match=sentence):
            check(TASKS[name], Asked("gradient", "good"))


def test_a_long_text_is_explained_as_far_as_it_is_read(folder, capsys):
    code, out, err = predicted(capsys, folder, "--text", "the play was great " * 90, "--explain", "gradient")
    assert code == 0
    assert "truncated" in err
    assert len(out.splitlines()) == 128 + len(["answer", "scores", "total"])
