"""Classifiers that other programs fine-tuned answer with a class, several classes or a number."""
import json
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama import params
from pyllama.cli.main import main
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.tasks import scores
from pyllama.text import special
from tests.test_pretrained import folder

TOKENIZER = special.framed(special.byte_pairs(["a fine film", "a dull film"] * 9, 300))
TEXTS = ["a fine film", "a dull film", "film"]


def foreign(path, kind, head, config=None):
    """A folder as transformers writes it: config.json has no keys of ours."""
    c = MODELS[kind].config.small(Dimensions(vocab_size=TOKENIZER.vocab_size, context=40, head=head, width=12, heads=3,
                                             **special.ids_of(TOKENIZER)))
    c = replace(c, num_labels=(config or {}).pop("labels", c.num_labels))
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(a.shape) for name, a in params.leaves(c.model.init(c))}
    stored = {name: value for name, value in c.to_dict().items() if name not in ("head", "num_labels")}
    path.mkdir()
    (path / "tokenizer.json").write_text(TOKENIZER.rust.to_str())
    return folder(path, stored | (config or {}), tensors)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "bart"])
def test_a_classifier_answers_with_its_labels(kind, tmp_path, capsys):
    path = foreign(tmp_path / "model", kind, "classification")
    model = pyllama.load(path)
    names = [f"LABEL_{i}" for i in range(model.config.num_labels)]
    answers = pyllama.predict(model, TEXTS)
    ids = special.encode(model.tokenizer, TEXTS)
    for answer, text in zip(answers, ids, strict=True):
        assert answer == names[model.logits(text[None])[0][0].argmax()]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "label": names.index(answer)}) + "\n"
                            for text, answer in zip(TEXTS, answers, strict=True)))
    assert main(["predict", "--model", str(path), "--text", *TEXTS]) == 0
    assert capsys.readouterr().out.split() == answers
    assert main(["evaluate", "--model", str(path), "--data", str(rows), "--out", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["accuracy"] == 1


def test_a_regression_answers_with_numbers(tmp_path, capsys):
    path = foreign(tmp_path / "model", "bert", "classification", {"labels": 1, "id2label": {"0": "LABEL_0"}})
    model = pyllama.load(path)
    answers = pyllama.predict(model, TEXTS)
    for answer, ids in zip(answers, special.encode(model.tokenizer, TEXTS), strict=True):
        assert answer == pytest.approx(float(model.logits(ids[None])[0][0, 0]), abs=1e-5)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{text},{3 * answer + 1}\n" for text, answer in zip(TEXTS, answers,
                                                                                                strict=True)))
    assert main(["evaluate", "--model", str(path), "--data", str(rows), "--out", str(tmp_path / "m.json")]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert (metrics["pearson"], metrics["spearman"]) == pytest.approx((1, 1))
    assert metrics["mean_squared_error"] == pytest.approx(np.mean([(2 * a + 1) ** 2 for a in answers]))


def test_equal_numbers_share_their_rank():
    """Spearman's correlation is that of the ranks 0, 1.5, 1.5, 3 and 0, 2, 1, 3: 4.5 / √(4.5 · 5)."""
    metrics = scores.number_metrics([1.0, 2.0, 2.0, 5.0], ["1", "3", "2", "9"])
    assert metrics["spearman"] == pytest.approx(np.sqrt(0.9))


def test_several_labels_are_those_above_one_half(tmp_path):
    names = {"0": "joy", "1": "anger", "2": "fear"}
    path = foreign(tmp_path / "model", "roberta", "classification",
                   {"labels": 3, "id2label": names, "problem_type": "multi_label_classification"})
    model = pyllama.load(path)
    answers = pyllama.predict(model, TEXTS)
    for answer, ids in zip(answers, special.encode(model.tokenizer, TEXTS), strict=True):
        assert answer == [name for name, z in zip(names.values(), model.logits(ids[None])[0][0], strict=True) if z > 0]


def test_a_class_that_the_model_lacks_is_refused(tmp_path, capsys):
    path = foreign(tmp_path / "model", "bert", "classification", {"id2label": {"0": "bad", "1": "good"}})
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na fine film,great\n")
    assert main(["evaluate", "--model", str(path), "--data", str(rows)]) == 2
    assert "has the label 'great', but the model has the classes bad, good; give" in capsys.readouterr().err


def test_a_trained_classifier_knows_the_padding_of_its_tokenizer(tmp_path):
    """Without it transformers classifies one text at a time."""
    model = pyllama.create("llama", TOKENIZER, hidden_size=8, num_hidden_layers=1)
    assert model.config.pad_token_id is None
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 5)
    settings = pyllama.Settings(max_steps=1, batch_size=2, warmup_steps=0)
    assert [*pyllama.finetune(model, rows, "classify", settings)]
    assert model.config.to_dict()["pad_token_id"] == TOKENIZER.rust.token_to_id("<pad>")


def test_another_task_forgets_how_the_scores_were_read(tmp_path):
    path = foreign(tmp_path / "model", "bert", "classification",
                   {"labels": 1, "id2label": {"0": "LABEL_0"}, "problem_type": "regression"})
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 5)
    model = pyllama.load(path)
    settings = pyllama.Settings(max_steps=1, batch_size=2, warmup_steps=0)
    assert len([*pyllama.finetune(model, rows, "classify", settings)]) == 1
    assert pyllama.predict(model, "a fine film") in ("good", "bad")
    assert "problem_type" not in model.config.to_dict()
