"""Questions without an answer, as in SQuAD 2.0: rows, labels, the threshold, the metrics of the official script."""
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama.cli.main import main
from pyllama.tasks import finetune
from pyllama.tasks.qa import best_threshold, task
from pyllama.tasks.rows import BadRow, Row, Source
from tests.shared import written
from tests.test_qa import asked, scored_by

SQUAD = {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": "one two", "qas": [
    {"id": "a", "question": "1?", "is_impossible": False, "answers": [{"text": "one", "answer_start": 0}]},
    {"id": "b", "question": "3?", "is_impossible": True, "answers": [],
     "plausible_answers": [{"text": "two", "answer_start": 4}]}]}]}]}


@pytest.mark.parametrize(("name", "text"), [
    ("a.json", json.dumps(SQUAD)),
    ("a.jsonl", '{"context": "one two", "question": "1?", "answers": {"text": ["one"], "answer_start": [0]}}\n'
                '{"context": "one two", "question": "3?", "answers": {"text": [], "answer_start": []}}'),
    ("a.csv", "context,question,answer\none two,1?,one\none two,3?,\n"),
    ("a.jsonl", '{"context": "one two", "question": "1?", "answer": "one"}\n'
                '{"context": "one two", "question": "3?", "is_impossible": true}'),
    *[("a.jsonl", '{"context": "one two", "question": "1?", "answer": "one", "is_impossible": false}\n'
                  f'{{"context": "one two", "question": "3?", "{name}": {stored}, "is_impossible": true}}')
      for name in ("answer", "answers")
      for stored in ('{"text": [], "answer_start": []}', "[]", '""', "null", '[{"text": "", "answer_start": -1}]')],
])
def test_a_question_may_have_no_answer(tmp_path, name, text):
    found, _ = task.read(Source(written(tmp_path / name, text)))
    assert [(row.values["answer"], len(row.values["answers"])) for row in found] == [("one", 1), ("", 0)]
    assert task.remarks(found) == ["1 of 2 questions have no answer"]


@pytest.mark.parametrize("stored", [[{"text": "one"}], {"text": ["one"], "answer_start": [0]}, "one"])
def test_an_impossible_question_with_an_answer_is_a_bad_row(stored):
    with pytest.raises(BadRow, match="it has an answer, although is_impossible is true"):
        task.unpacked({"is_impossible": True, "answers": stored})


def test_a_possible_question_keeps_its_answers():
    assert task.unpacked({"is_impossible": False, "answers": 1})["answer"] == 1


def test_every_window_of_a_question_without_an_answer_is_labelled_with_its_first_token():
    model = scored_by({})
    made = task.examples([Row("", {**asked("a b c d e f g h", "q").values, "answers": []})], model).rows
    assert len(made) > 1
    assert all(row["labels"].tolist() == [0, 0] for row in made)


# The threshold

@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0, -1.0])), min_size=1, max_size=9))
def test_the_threshold_is_the_best_of_all(pairs):
    """Against every threshold that there is, by its definition."""
    scores, gains = np.array(pairs, float).T
    t = best_threshold(scores, gains)
    sums = {other: gains[scores >= other].sum() for other in [*scores, np.inf]}
    assert gains[scores >= t].sum() == max(sums.values())
    assert all(other < t or sums[other] < max(sums.values()) or not np.isin(other, scores) or other == t
               for other in scores if other > t)
    assert np.isfinite(t)


def test_a_context_without_a_span_has_no_answer_at_any_threshold():
    assert best_threshold(np.array([-np.inf, 2.0]), np.array([0.0, 1.0])) == 2
    assert best_threshold(np.array([-np.inf]), np.array([0.0])) == 0


def test_a_span_below_the_threshold_is_no_answer():
    """The best span of "b" is 6 above the first token, of "c" 2: the threshold lies at the right one that is lowest."""
    model = scored_by({"?": (0, 0), "b": (3, 3), "c": (1, 1)})
    rows = [asked("b", "??", (0, 1)), Row("", {**asked("c", "??").values, "answer": "", "answers": []})]
    assert task.predict(rows, model) == ["b", "c"]
    kept = task.calibrated(rows, model)
    assert kept == {"least_score": 6}
    model.config.extra["task"] = kept
    assert task.detailed(rows, model, None) == (["b", ""], [{"score": 6, "start": 0}, {"score": 2, "start": None}])
    assert task.calibrated(rows[:1], model) == {}


# Metrics

def test_the_metrics_are_those_of_the_script_of_squad_2():
    """Worked by hand: exact 2 of 4, F1 of 1, 0, 2/3 and 1."""
    def row(*answers):
        return Row("", {"context": "x", "answers": [{"text": text} for text in answers]})

    got = task.metrics(["The cat", "cat", "red cat", ""], [row("cat", "the"), row(), row("cat"), row()])
    assert got == {"exact_match": 0.5, "f1": pytest.approx((1 + 0 + 2 / 3 + 1) / 4),
                   "HasAns_exact": 0.5, "HasAns_f1": pytest.approx((1 + 2 / 3) / 2), "HasAns_total": 2,
                   "NoAns_exact": 0.5, "NoAns_f1": 0.5, "NoAns_total": 2, "segmentation": "words", "rows": 4}
    assert "HasAns_f1" not in task.metrics([""], [row()])
    assert task.metrics(["the"], [row()])["f1"] == 1                        # nothing is left of the answer
    # A reference of which nothing is left counts in version 1.1, and not in 2.0.
    assert task.metrics(["an"], [row("the", "cat")])["exact_match"] == 1
    assert task.metrics(["an", ""], [row("the", "cat"), row()])["exact_match"] == 0.5


def test_a_run_keeps_the_threshold_of_its_validation_rows(tmp_path, capsys):
    """In every checkpoint the one that its own weights have; a model in Python has it too."""
    lines = [{"context": f"a {one} ran", "question": f"{other}?", "answer": one if one == other else ""}
             for one in ("cat", "dog", "cow") for other in ("cat", "dog", "cow")] * 8
    data = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    run = tmp_path / "run"
    assert main(["finetune", "--task", "qa", "--model", "bert", "--data", str(data), "--out_dir", str(run), "--dev",
                 "0.5", "--max_length", "24", "--vocab_size", "300", "--max_steps", "4", "--eval_steps", "2",
                 "--save_steps", "2", "--learning_rate", "0.003", "--shards", "1"]) == 0
    assert "48 of 72 questions have no answer" in capsys.readouterr().out
    dev, _ = task.read(Source(run / "data/dev.jsonl"))
    kept = set()
    for folder in sorted((run / "checkpoints").iterdir()):
        _, model, _ = finetune.load(folder)
        entry = model.config.extra["task"]
        assert entry["least_score"] == pytest.approx(task.calibrated(dev, model)["least_score"], rel=1e-6)
        kept.add(entry["least_score"])
    assert len(kept) == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["HasAns_total"] + metrics["NoAns_total"] == metrics["rows"] == 36
    assert metrics["f1"] >= metrics["NoAns_total"] / 36                 # as if it never answered, or better

    model = pyllama.create("bert", "python-docs", head="none", hidden_size=8)
    settings = pyllama.Settings(max_steps=1, batch_size=2, shards=1)
    for record in pyllama.finetune(model, data, "qa", settings, max_length=24):
        assert record.step == 1
    assert np.isfinite(model.config.extra["task"]["least_score"])
