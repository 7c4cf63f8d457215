"""Models that others fine-tuned for a task: predict and evaluate read them by their head."""
import json
from dataclasses import replace

import pytest

import pyllama
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models import bert, llama, llama_config
from pyllama.pretrained import Model
from pyllama.tasks import finetune, pairs
from pyllama.tasks.rows import Row
from pyllama.text.tokenizer import Tokenizer
from tests.shared import written
from tests.test_qa import word_pieces

NAMES = {"classification": ["neg", "neu", "pos"], "tagging": ["O", "B-PER", "I-PER"]}


def saved(folder, head, **extra):
    """A BERT as transformers saves it: with the names of its classes and without an entry of ours."""
    names = NAMES.get(head, [])
    config = bert.BertConfig(vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=16, max_position_embeddings=40, head=head, initializer_range=1.0,
                             num_labels=len(names) or 2, extra={**extra, "id2label": {str(i): name for i, name
                                                                                      in enumerate(names)}})
    Model(config, bert.init(config, 5), word_pieces()).save(folder)
    stored = json.loads((folder / "config.json").read_text())
    del stored["head"]
    (folder / "config.json").write_text(json.dumps(stored))
    return str(folder)


def test_a_classifier_answers_and_is_measured(tmp_path, capsys):
    model = saved(tmp_path / "m", "classification")
    data = written(tmp_path / "a.csv", "sentence,label\nthe cat,pos\ncats b,neg\n")
    assert main(["predict", "--model", model, "--data", str(data)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["label"] for row in answers] == ["pos", "neg"]
    assert all(list(row["probabilities"]) == NAMES["classification"] for row in answers)
    assert main(["evaluate", "--model", model, "--data", str(data)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert pyllama.predict(model, "the cat") == answers[0]["predicted"]


def test_a_model_of_spans_and_one_of_tags_answer(tmp_path, capsys):
    question = {"context": "the cat, a cat", "question": "a cat"}
    assert pyllama.predict(saved(tmp_path / "q", "span"), question) in question["context"]
    assert isinstance(pyllama.predict(saved(tmp_path / "t", "tagging"), "the cat"), list)


def test_nothing_is_put_around_a_text_that_the_tokenizer_does_not_add(tmp_path):
    """A decoder's classifier looks at the last token: an end token of ours would change all its answers."""
    words = Tokenizer.words(["the cat sat"], 10, ["<pad>", "</s>"])
    config = llama_config.LlamaConfig(vocab_size=words.vocab_size, hidden_size=8, num_hidden_layers=1,
                                      num_attention_heads=2, intermediate_size=16, max_position_embeddings=40,
                                      head="classification", pad_token_id=0, eos_token_id=1,
                                      extra={"id2label": {"0": "neg", "1": "pos"}})
    model = Model(config, llama.init(config, 5), words)
    trained = finetune.trained(model.config, model.params, words)
    row = Row("", {"text": "the cat sat"})
    assert pairs.inputs([row], trained)[0]["ids"].tolist() == words.encode("the cat sat").tolist()
    assert pairs.inputs([row], trained, 2)[0]["ids"].tolist() == words.encode("the cat").tolist()


def test_a_single_score_is_a_number(tmp_path, capsys):
    """The task is regress, so a label must be a number."""
    model = pyllama.load(saved(tmp_path / "m", "classification"))
    config = replace(model.config, num_labels=1, extra={"id2label": {"0": "LABEL_0"}})
    single = Model(config, bert.init(config, 5), model.tokenizer)
    single.save(tmp_path / "n")
    assert isinstance(pyllama.predict(tmp_path / "n", "the cat"), float)
    assert pyllama.predict(single, {"text": "the", "text_pair": "cat"}) != pyllama.predict(single, "the cat")
    data = written(tmp_path / "a.csv", "text,label\nthe cat,2\ncats,good\n")
    assert main(["evaluate", "--model", str(tmp_path / "n"), "--data", str(data)]) == 2
    assert "a.csv line 3: 'label' is 'good', not a number" in capsys.readouterr().err


def test_two_classes_without_names_have_those_of_transformers(tmp_path, capsys):
    """It does not write the names LABEL_0 and LABEL_1."""
    model = saved(tmp_path / "m", "classification")
    stored = json.loads((tmp_path / "m/config.json").read_text())
    del stored["id2label"]
    (tmp_path / "m/config.json").write_text(json.dumps(stored))
    assert pyllama.predict(model, "the cat") in ("LABEL_0", "LABEL_1", "LABEL_2")
    assert pyllama.predict(pyllama.load(model), "the cat") in ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_head_without_classes_is_given_no_names(tmp_path):
    model = pyllama.load(saved(tmp_path / "m", "masked_lm"))
    assert not model.config.extra.get("id2label")


def test_a_new_model_of_ours_has_no_task():
    with pytest.raises(UserError, match="the model was not trained on a task"):
        pyllama.predict(pyllama.create("bert", "python-docs", head="classification", hidden_size=8), "the cat")


def test_a_model_of_masked_words_still_has_no_task(tmp_path):
    with pytest.raises(UserError, match="the model was not trained on a task; fine-tune it on one first"):
        pyllama.predict(saved(tmp_path / "m", "masked_lm"), "the cat")
