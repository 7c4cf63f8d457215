"""Tagging: files of words and tags, tokens and words, spans and their measures, and the commands."""
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks import tag
from pyllama.tasks.rows import Row, Source
from pyllama.tasks.tag_files import scheme_of, to_bio
from pyllama.tasks.task import Trained, rows_of
from pyllama.text import special
from pyllama.training.examples import IGNORE

# Files


def read(path, text, fields=(), answer=True, **how):
    path.write_text(text, encoding="utf-8")
    return tag.task.read(Source(path, fields, **how), answer)[0]


def tagged(rows):
    return [[(row.values["text"][first:past], name) for (first, past), name in
             zip(row.values["words"], row.values["tags"], strict=True)] for row in rows]


BIO = [[("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC"), ("call", "O"), (".", "O")],
       [("Ann", "B-PER"), ("Lee", "I-PER"), ("Bo", "B-PER")]]
SCHEMES = {
    "BIO": ["B-ORG O B-MISC O O", "B-PER I-PER B-PER"],
    "IOB1": ["I-ORG O I-MISC O O", "I-PER I-PER B-PER"],
    "BIOES": ["S-ORG O S-MISC O O", "B-PER E-PER S-PER"],
    "BILOU": ["U-ORG O U-MISC O O", "B-PER L-PER U-PER"]}
WORDS = [[word for word, _ in sentence] for sentence in BIO]
NAMES = [["NNP", "VBZ", "JJ", "NN", "."], ["NNP", "NNP", "NNP"]]


def columns(scheme, between, separator, end="\n"):
    """Sentences in columns, with so many columns between word and tag."""
    return (end * 2).join(end.join(separator.join([word, *[name] * between, label]) for word, name, label in
                                   zip(words, names, tags.split(), strict=True))
                          for words, names, tags in zip(WORDS, NAMES, SCHEMES[scheme], strict=True)) + end


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("between", [0, 1, 2])
@pytest.mark.parametrize(("separator", "end"), [("\t", "\n"), (" ", "\n"), ("   ", "\r\n")])
def test_columns_of_any_scheme_give_bio(tmp_path, scheme, between, separator, end):
    head = "-DOCSTART- -X- O O\n\n" if separator == " " else ""
    rows = read(tmp_path / "a.conll", head + columns(scheme, between, separator, end))
    assert tagged(rows) == BIO
    assert rows[0].values["text"] == "EU rejects German call ."
    assert [row.place for row in rows] == [f"{tmp_path}/a.conll line {n + head.count(chr(10))}" for n in (1, 7)]


def test_columns_are_chosen_by_number_or_name(tmp_path):
    rows = read(tmp_path / "a.conll", columns("BIO", 2, " "), ("1", "3"))
    assert [[name for _, name in sentence] for sentence in tagged(rows)] == NAMES
    headed = "word\tpos\tner\nEU\tNNP\tB-ORG\n"
    assert tagged(read(tmp_path / "a.tsv", headed)) == [[("EU", "B-ORG")]]
    assert tagged(read(tmp_path / "a.tsv", headed, ("word", "pos"))) == [[("EU", "NNP")]]
    with pytest.raises(UserError, match=r"fields names word and upos, which are not columns of .*; give the numbers"):
        read(tmp_path / "a.tsv", headed, ("word", "upos"))


def test_conll_u_and_the_multi_head_form_have_their_own_columns(tmp_path):
    lines = ["# text = Don't go", "1-2\tDon't" + "\t_" * 8, "1\tDo\tdo\tAUX\tVB" + "\t_" * 5,
             "2\tn't\tnot\tPART\tRB" + "\t_" * 5, "2.1\tx" + "\t_" * 8, "3\tgo\tgo\tVERB\tVB" + "\t_" * 5, ""]
    assert tagged(read(tmp_path / "a.conllu", "\n".join(lines))) == [[("Do", "AUX"), ("n't", "PART"), ("go", "VERB")]]
    assert tagged(read(tmp_path / "a.conllu", "\n".join(lines), ("form", "xpos")))[0][1] == ("n't", "RB")
    two = "#doc 1\n0\tAnn\tB-Peop\t['N']\t[0]\n#doc 2\n0\tin\tO\t['N']\t[0]\n1\tMaine\tB-Loc\t['N']\t[1]\n"
    assert tagged(read(tmp_path / "a.conll", two)) == [[("Ann", "B-Peop")], [("in", "O"), ("Maine", "B-Loc")]]


SPANS = [{"start": 0, "end": 3, "label": "PER"}, {"start": 14, "end": 17, "label": "LOC"}]


@pytest.mark.parametrize("values", [
    {"text": "Ann, moved to 北京市.", "entities": SPANS}, {"text": "Ann, moved to 北京市.", "spans": SPANS[::-1]},
    {"text": "Ann, moved to 北京市.", "entities": [[0, 4 - 1, "PER"], [13, 17, "LOC"]]},     # a space is cut off
    {"text": "Ann, moved to 北京市.", "label": [[0, 3, "PER"], [14, 17, "LOC"]], "id": 7},
    ["Ann, moved to 北京市.", {"entities": [[0, 3, "PER"], [14, 17, "LOC"]]}]])
def test_spans_give_the_tags_of_words_and_of_characters_without_spaces(tmp_path, values):
    expected = [[("Ann", "B-PER"), (",", "O"), ("moved", "O"), ("to", "O"), ("北", "B-LOC"), ("京", "I-LOC"),
                 ("市", "I-LOC"), (".", "O")]]
    assert tagged(read(tmp_path / "a.jsonl", json.dumps(values))) == expected
    assert tagged(read(tmp_path / "a.json", json.dumps([values]))) == expected


def test_an_entity_may_end_inside_a_word(tmp_path):
    rows = read(tmp_path / "a.jsonl", json.dumps({"text": "pro-EUstance", "entities": [[4, 6, "ORG"]]}))
    assert tagged(rows) == [[("pro", "O"), ("-", "O"), ("EU", "B-ORG"), ("stance", "O")]]


@pytest.mark.parametrize("fields", [(), ("words", "ner")])
def test_lists_of_words_may_have_other_names(tmp_path, fields):
    names = fields or ("tokens", "tags")
    lines = [json.dumps(dict(zip(names, (words, tags.split()), strict=True), id=3)) for words, tags in
             zip(WORDS, SCHEMES["IOB1"], strict=True)]
    rows = read(tmp_path / "a.jsonl", "\n".join(lines), fields)
    assert tagged(rows) == BIO
    assert rows[0].given["id"] == 3
    assert rows[0].given[names[1]] == ["I-ORG", "O", "I-MISC", "O", "O"]       # as in the file


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.conll", "a B-X\nb I-Y\n", r"line 2: the tag 'I-Y' after 'B-X' breaks a rule of the scheme BIO, which this file "
                                  r"has: I- continues a span of the same label"),
    ("a.conll", "a I-X\nb I-X\n\nc O\nd I-Y\ne B-X\n", r"line 6: the tag 'B-X' after 'I-Y' .* IOB1"),
    ("a.conll", "a B-X\nb O\nc S-X\n", r"line 1: the tag 'B-X' after 'the beginning' .* BIOES.*: a span ends with E-"),
    ("a.conll", "a B-X\nb\n", r"line 2: it has 1 columns instead of 2"),
    ("a.conll", "a\n", r"line 1: it has 1 columns instead of 2"),
    ("a.conll", "a\tB-X\n\tO\n", r"line 2: it has no word or no tag"),
    ("a.conll", "a B-X\nb PER\nc O\n", r"line 2: the tag 'PER' is not O, B-NAME or I-NAME"),
    ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}', r"line 1: it has 1 words but 2 tags"),
    ("a.jsonl", '{"tokens": ["a"], "tags": [3]}', r"are not a list of names, not numbers: replace each by its name"),
    ("a.jsonl", '{"tokens": ["a", " "], "tags": ["O", "O"]}', r"is not a list of words"),
    ("a.jsonl", '{"text": "ab"}', r"line 1: it has no field 'tags', only text; choose others with fields"),
    ("a.jsonl", '{"text": "ab", "entities": [[0, 3, "X"]]}', r"covers nothing of a text of 2 characters"),
    ("a.jsonl", '{"text": "a b", "entities": [[1, 2, "X"]]}', r"covers nothing of"),
    ("a.jsonl", '{"text": "a b", "entities": [[0, 2, "X"], [0, 3, "Y"]]}',
     r"the entities X and Y overlap at character 0"),
    ("a.jsonl", '{"text": "a b", "entities": [{"start": 0, "label": "X"}]}', r"has no start, end and label"),
    ("a.jsonl", '{"text": "a b", "entities": [{"start": 0, "end": 1, "label": "X", "text": "b"}]}',
     r"'b' does not stand at 0 to 1 of its text, which has 'a' there"),
    ("a.jsonl", "[1]", r"line 1: it is not an object"),
    ("a.csv", "text,tags\n", r"is a \.csv, which has no form for tagged words; save a word and its tag a line"),
])
def test_a_bad_row_is_located(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, text)


def test_bad_rows_may_be_skipped(tmp_path):
    (tmp_path / "a.conll").write_text("a B-X\n\nb I-X\n\nc B-Y\nd I-Y\n")
    rows, notes = tag.task.read(Source(tmp_path / "a.conll", bad_rows="skip"))
    assert tagged(rows) == [[("a", "B-X")], [("c", "B-Y"), ("d", "I-Y")]]
    assert notes[0] == "1 of 3 rows skipped:"
    assert "a.conll line 3: the tag 'I-X'" in notes[1]


spans = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["", "X", "Y"])), min_size=1, max_size=6)
LETTERS = {"BIO": "BBII", "IOB1": "IIII", "BIOES": "SBIE", "BILOU": "UBIL"}      # alone, first, inside, last


def written(spans, scheme):
    """The tags of spans (length, label) in a scheme."""
    alone, first, inner, last = LETTERS[scheme]
    tags, before = [], ""
    for length, label in spans:
        letters = alone if length == 1 else first + inner * (length - 2) + last
        if scheme == "IOB1" and before == label:
            letters = "B" + letters[1:]
        tags += [f"{letter}-{label}" for letter in letters] if label else ["O"] * length
        before = label
    return tags


@given(st.lists(spans, min_size=1, max_size=3))
def test_every_scheme_says_the_same(sentences):
    for scheme in LETTERS:
        sequences = [written(one, scheme) for one in sentences]
        found = scheme_of(sequences)
        expected = [written(one, "BIO") for one in sentences]
        if found in (scheme, "BIOES"):                          # without a span of one word, IOB1 may look like BIO
            assert [to_bio(tags, found) for tags in sequences] == expected
        assert [tag.spans_of(tags) for tags in sequences] == [tag.spans_of(tags) for tags in expected]


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


def test_two_words_in_a_token_share_its_entity():
    values = {"text": "'s x", "words": [[0, 1], [1, 2], [3, 4]]}
    z = np.array([[0, 9, 0], [9, 0, 0.0]])
    answer = tag.tagging(values, np.array([[0, 2], [3, 4]]), z, ["O", "B-X", "I-X"])
    assert answer.tags == ["B-X", "I-X", "O"]
    assert answer.entities == [{"start": 0, "end": 2, "text": "'s", "label": "X", "score": pytest.approx(0.9998)}]


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
    assert names == {"accuracy": 0.5, "words": 2, "rows": 1}


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
    assert main(["predict", "--model", str(tmp_path / "run"), "--data", str(tmp_path / "ask.jsonl"), "--out",
                 str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,id,predicted,tokens,predicted_tags\nthe cat,7,")
    read_again = tag.task.read(Source(tmp_path / "out.conll"))[0]
    assert tagged(read_again)[1] == [("a", "DET"), ("dog", "NOUN")]


def test_class_weights_do_not_apply(people, tmp_path, capsys):
    assert main(["finetune", "--task", "tag", "--model", "lstm", "--data", str(people), "--out_dir",
                 str(tmp_path / "x"), "--class_weights", "balanced", *SMALL]) == 2
    assert "class_weights apply only to tasks with one class for each row; remove them" in capsys.readouterr().err


def test_an_input_without_a_text_is_refused():
    with pytest.raises(UserError, match="input 1 is invalid: 'text' is ' ', not a text"):
        rows_of(tag.task, [" "])
