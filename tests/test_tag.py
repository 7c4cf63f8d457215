"""Tagging: tokens and words, spans and their measures, and the commands."""
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama import pretrained
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks import tag
from pyllama.tasks.rows import Row, Source
from pyllama.tasks.task import Trained, rows_of
from pyllama.text import special
from pyllama.training.examples import IGNORE
from tests.tagged import tagged

# Tokens and words

TEXT = "Ann Lee's 北京 trip, Zoë!"


def learner(max_length=128, texts=(TEXT,), names=("O", "B-X", "I-X"), vocab_size=300):
    tokenizer = special.framed(special.separate_words(texts, vocab_size))
    config = SimpleNamespace(extra={"id2label": {str(i): name for i, name in enumerate(names)}}, num_labels=len(names))
    return Trained(config, {}, tokenizer, max_length)


def row_of(text, entities):
    values = tag.unpacked({"text": text})["row"]
    names = ["O"] * len(values["words"])
    for word, (first, _) in enumerate(values["words"]):
        for a, b in entities:
            names[word] = ("B-X" if first == a else "I-X") if a <= first < b else names[word]
    return Row("", {**values, "tags": names})


def test_a_words_first_token_has_its_tag_and_the_others_are_inside():
    row, model = row_of(TEXT, [(0, 7), (10, 12)]), learner()
    (made,), = [tag.examples([row], model).rows]
    (_, characters), = model.tokenizer.encode_with_positions([TEXT])
    assert made["labels"][[0, -1]].tolist() == [IGNORE, IGNORE]
    for (first, past), label in zip(characters, made["labels"][1:-1], strict=True):
        entity = next(((a, b) for a, b in [(0, 7), (10, 12)] if a <= first and past <= b), None)
        starts = entity and first == entity[0] and label == 1
        assert label == (0 if entity is None else 1 if starts else 2), TEXT[first:past]
    assert (made["labels"] == 1).sum() == 2                 # once for each entity, however many bytes 北 has


def test_only_first_tokens_have_the_name_of_a_word():
    row, model = row_of("unknowable words", []), learner(names=("A", "B"))
    row.values["tags"] = ["A", "B"]
    labels = tag.examples([row], model).rows[0]["labels"]
    kept = labels[labels != IGNORE]
    assert kept.tolist() == [0, 1]
    assert len(labels) > 6


def trimmed(text, first, past):
    """The characters without white space at the ends."""
    inner = text[first:past].strip()
    return text.index(inner, first), text.index(inner, first) + len(inner)


@given(st.data())
def test_first_tokens_are_the_first_that_reach_into_a_word(data):
    text = data.draw(st.text("ab 今.é", min_size=1, max_size=14))
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text))))})
    characters = np.array([trimmed(text, a, b) for a, b in pairwise(cuts)]).reshape(-1, 2)
    words = tag.unpacked({"text": text})["row"]["words"] if text.strip() else []
    expected = [next((i for i, (a, b) in enumerate(characters) if a < b and a < past and first < b), -1)
                for first, past in words]
    assert tag.first_tokens(words, characters).tolist() == expected


@pytest.mark.parametrize("max_length", [3, 4, 9, 16, 1000])
def test_a_long_text_is_read_in_windows_and_each_token_is_tagged_once(max_length):
    row = row_of(TEXT * 3, [(0, 3)])
    model, whole = learner(max_length), tag.examples([row], learner(1000)).rows[0]["labels"][1:-1]
    found, (characters,) = tag.windows([row], model)
    owned = [i for window in found for i in range(window.owned.start, window.owned.stop)]
    assert owned == [*range(len(characters))]
    for window in found:
        assert window.first <= window.owned.start <= window.owned.stop <= window.past
        assert len(window.ids) <= max_length
    labels = [made["labels"][1:-1][window.owned.start - window.first:window.owned.stop - window.first] for made, window
              in zip(tag.examples([row], model).rows, found, strict=True)]
    assert np.concatenate(labels).tolist() == whole.tolist()
    note = tag.notes([row, row_of("a", [])], model, None)
    assert bool(note) == (max_length < 1000)
    assert not note or note[0].startswith(f"1 of 2 texts have more than {max_length} tokens; they are read in windows")


def test_a_word_longer_than_the_input_is_named():
    model = learner(max_length=10)
    rows = [row_of("a b", []), row_of(f"see {'x' * 40} now", [])]
    note, word = tag.notes(rows, model, None)
    assert note.startswith("1 of 2 texts have more than 10 tokens")
    assert word.startswith(f": the word {'x' * 30!r} has 40 tokens, more than the model reads at once; only its")


def test_two_words_in_a_token_share_its_entity():
    values = {"text": "'s x", "words": [[0, 1], [1, 2], [3, 4]]}
    z = np.array([[0, 9, 0], [9, 0, 0.0]])
    answer = tag.tagging(values, np.array([[0, 2], [3, 4]]), z, ["O", "B-X", "I-X"])
    assert answer.tags == ["B-X", "I-X", "O"]
    score = pytest.approx(1 / (1 + 2 * np.exp(-9)), abs=1e-6)
    assert answer.entities == [{"start": 0, "end": 2, "text": "'s", "label": "X", "score": score}]


@pytest.mark.parametrize(("names", "choices", "tags"), [
    (["O", "B-X", "I-X"], [1, 2, 0, 2], ["B-X", "I-X", "O", "I-X"]),        # as the model has it
    (["O", "B-X", "I-X", "E-X", "S-X"], [1, 3, 4, 0], ["B-X", "I-X", "B-X", "O"]),
    (["O", "I-X", "I-Y"], [1, 1, 2, 0], ["B-X", "I-X", "B-Y", "O"])])
def test_answers_are_in_the_scheme_of_the_rows(names, choices, tags):
    words = [[2 * i, 2 * i + 1] for i in range(4)]
    z = np.eye(len(names))[choices] * 9
    answer = tag.tagging({"text": "a b c d", "words": words}, np.array(words), z, names)
    assert answer.tags == tags
    assert [entity["label"] for entity in answer.entities] == [label for label, _, _ in tag.spans_of(tags)]


def test_labels_without_a_letter_are_read_as_hugging_face_does():
    config = SimpleNamespace(extra={"id2label": {"0": "O", "1": "PER", "2": "B-LOC"}})
    assert tag.tag_names(config) == ["O", "I-PER", "B-LOC"]
    config.extra["id2label"]["0"] = "VERB"
    assert tag.tag_names(config) == ["VERB", "PER", "B-LOC"]


# Measures

def test_spans_are_measured_as_seqeval_does():
    """tests/golden/seqeval.json has random sequences, with the figures of seqeval 1.2.2."""
    for case in json.loads((Path(__file__).parent / "golden/seqeval.json").read_text()):
        truth, answers = ([tags.split() for tags in case[name]] for name in ("truth", "answers"))
        for mode, spans_in in (("default", tag.spans_of), ("strict", tag.strict_spans_of)):
            if mode in case:
                scores, expected = tag.span_scores(answers, truth, spans_in), case[mode]
                got = scores["labels"] | {f"{name} avg": {**scores[name], "support": expected[f"{name} avg"][3]}
                                          for name in ("micro", "macro")}
                assert got.keys() == expected.keys()
                for name, values in got.items():
                    assert [*values.values()] == pytest.approx(expected[name], abs=1e-8)


def test_the_metrics_of_entities_and_of_parts_of_speech():
    rows = [Row("", {"tags": ["B-X", "I-X", "O"]}), Row("", {"tags": ["B-Y"]})]
    got = tag.metrics([tag.Tagging(["I-X", "I-X", "O"], []), tag.Tagging(["O"], [])], rows)
    assert (got["f1_micro"], got["f1_macro"], got["f1_strict_micro"]) == (pytest.approx(2 / 3), 0.5, 0)
    assert (got["accuracy"], got["words"], got["rows"]) == (0.5, 4, 2)
    assert got["by_label"]["Y"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert {*tag.task.metric_names} <= {*got}
    names = tag.metrics([tag.Tagging(["NOUN", "X"], [])], [Row("", {"tags": ["NOUN", "VERB"]})])
    assert (names["accuracy"], names["words"], names["rows"], names["f1_macro"]) == (0.5, 2, 1, 1 / 3)
    assert names["by_label"]["NOUN"] == {"precision": 1, "recall": 1, "f1": 1, "support": 1}
    assert "f1_micro" not in names


def test_rows_without_entities_are_refused():
    with pytest.raises(UserError, match="no word is part of an entity, all have the tag O; give rows with entities"):
        tag.labels([Row("", {"tags": ["O", "O"]})])
    with pytest.raises(UserError, match="every word has the tag 'NOUN'; give rows with at least 2 tags"):
        tag.labels([Row("", {"tags": ["NOUN"]})])
    assert tag.labels([Row("", {"tags": ["O", "B-X"]})]) == ["O", "B-X", "I-X"]


# The commands

PEOPLE, PLACES = ["Ann Lee", "Zoë", "Omar Khan"], ["Maine", "New York", "北京市"]
SMALL = ["--max_steps", "40", "--vocab_size", "320", "--batch_size", "12", "--shards", "1", "--learning_rate", "0.01",
         "--warmup_steps", "4", "--eval_steps", "20"]


@pytest.fixture
def people(tmp_path):
    lines = []
    for person in PEOPLE:
        for place in PLACES:
            text = f"{person} lives in {place}."
            start = text.index(place)
            spans = [[0, len(person), "PER"], [start, start + len(place), "LOC"]]
            lines.append(json.dumps({"text": text, "entities": spans}))
    path = tmp_path / "people.jsonl"
    path.write_text("\n".join(lines * 3))
    return path


@pytest.mark.parametrize("model", tag.task.models())
def test_every_model_learns_to_find_entities(model, people, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["finetune", "--task", "tag", "--model", model, "--data", str(people), "--out_dir", str(run),
                 *SMALL]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["f1_micro"] == metrics["f1_strict_micro"] == metrics["accuracy"] == 1
    assert metrics["by_label"]["LOC"]["f1"] == 1
    assert "F1 100.0%" in capsys.readouterr().out
    text = "Omar Khan lives in New York."
    entities = pyllama.predict(run, text)
    assert [(e["start"], e["end"], e["text"], e["label"]) for e in entities] == [
        (0, 9, "Omar Khan", "PER"), (19, 27, "New York", "LOC")]
    assert all(0.5 < e["score"] <= 1 for e in entities)
    assert pyllama.predict(run, [{"tokens": ["in", "Maine"]}])[0][0]["start"] == 3
    assert main(["predict", "--model", str(run), "--text", text]) == 0
    assert json.loads(capsys.readouterr().out) == entities
    assert main(["evaluate", "--model", str(run), "--data", str(people), "--out", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["f1_micro"] == 1
    config = json.loads((next((run / "checkpoints").iterdir()) / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "B-LOC", "2": "I-LOC", "3": "B-PER", "4": "I-PER"}


def test_parts_of_speech_are_learned_from_columns(tmp_path, capsys):
    sentences = [f"{a} DET\n{b} NOUN\n{c} VERB\n" for a in ("the", "a") for b in ("cat", "dog")
                 for c in ("runs", "ran")]
    (tmp_path / "a.conll").write_text("\n".join(sentences * 3))
    assert main(["finetune", "--task", "tag", "--model", "lstm", "--data", str(tmp_path / "a.conll"), "--out_dir",
                 str(tmp_path / "run"), *SMALL]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["accuracy"] == 1
    words = pyllama.predict(tmp_path / "run", "a dog runs")
    assert [(word["text"], word["label"]) for word in words] == [("a", "DET"), ("dog", "NOUN"), ("runs", "VERB")]
    capsys.readouterr()
    (tmp_path / "ask.conll").write_text("the\ncat\nran\n")
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "ask.conll")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["tokens"], answer["predicted_tags"]) == (["the", "cat", "ran"], ["DET", "NOUN", "VERB"])
    (tmp_path / "ask.jsonl").write_text('{"text": "the cat", "id": 7}\n{"text": "a dog"}\n')
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "ask.jsonl"), "--out",
                 str(tmp_path / "out.conll")]) == 0
    assert (tmp_path / "out.conll").read_text() == "the\tDET\ncat\tNOUN\n\na\tDET\ndog\tNOUN\n"
    (tmp_path / "old.jsonl").write_text('{"text": "the dog", "tokens": 2, "predicted_tags": ["X", "X"]}')
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "old.jsonl"), "--out",
                 str(tmp_path / "new.conll")]) == 0
    assert (tmp_path / "new.conll").read_text() == "the\tDET\ndog\tNOUN\n"
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "ask.jsonl"), "--out",
                 str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,id,predicted,tokens,predicted_tags\nthe cat,7,")
    read_again = tag.task.read(Source(tmp_path / "out.conll"))[0]
    assert tagged(read_again)[1] == [("a", "DET"), ("dog", "NOUN")]


def test_a_head_with_the_same_labels_keeps_their_order(people, tmp_path):
    """As in a model of others: its scores keep their meaning, whatever the order of its labels."""
    model = pyllama.create("bert", people, tokenizer="bpe", vocab_size=300, hidden_size=8)
    names = ["B-PER", "O", "I-LOC", "B-LOC", "I-PER"]
    config = replace(model.config, head="tagging", num_labels=5, extra={"id2label": {str(i): name for i, name in
                                                                                      enumerate(names)}})
    pretrained.changed(model, config).save(tmp_path / "theirs")
    theirs = pyllama.load(tmp_path / "theirs")
    before = theirs.params["classifier"]["weight"].copy()
    settings = pyllama.Settings(max_steps=1, batch_size=2, learning_rate=1e-9)
    for _ in pyllama.finetune(theirs, people, "tag", settings):
        pass
    assert [*theirs.config.extra["id2label"].values()] == names
    assert np.abs(theirs.params["classifier"]["weight"] - before).max() < 1e-6


def test_class_weights_do_not_apply(people, tmp_path, capsys):
    assert main(["finetune", "--task", "tag", "--model", "lstm", "--data", str(people), "--out_dir",
                 str(tmp_path / "x"), "--class_weights", "balanced", *SMALL]) == 2
    assert "class_weights apply only to tasks with one class for each row; remove them" in capsys.readouterr().err


def test_an_input_without_a_text_is_refused():
    with pytest.raises(UserError, match="input 1 is invalid: 'text' is empty"):
        rows_of(tag.task, [" "])
