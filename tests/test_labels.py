"""The classes of classify: numbers of one value are one class whatever the reader; unknown ones are refused."""
import json

import pytest

import pyllama
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks.classify import task
from pyllama.tasks.foreign import with_names
from pyllama.tasks.labels import alike
from pyllama.tasks.rows import Row, Source
from pyllama.text import special
from tests.shared import written
from tests.test_problem_types import TEXTS, foreign

SETTINGS = pyllama.Settings(max_steps=1, batch_size=2, warmup_steps=0)


def labelled(folder, ending, labels):
    """A file of rows with these labels, each a text of JSON."""
    if ending == "jsonl":
        rows = [f'{{"text": "a fine film", "label": {label}}}' for label in labels]
    else:
        rows = ["text,label", *(f"a fine film,{json.loads(label)}" for label in labels)]
    return written(folder / f"rows.{ending}", "\n".join(rows) + "\n")


def classes_of(path):
    """The classes of a model that is fine-tuned on these rows."""
    model = pyllama.create("lstm", special.byte_pairs(TEXTS, 300), hidden_size=8)
    assert [*pyllama.finetune(model, path, "classify", SETTINGS)]
    return [*model.config.extra["id2label"].values()]


@pytest.mark.parametrize(("ending", "labels", "classes"), [
    ("csv", ["0.0", "1.0"], ["0", "1"]),
    ("jsonl", ["0.0", "1.0"], ["0", "1"]),
    ("jsonl", ['"1.0"', "1", "0.0", '"0"'], ["0", "1"]),
    ("csv", ["-1.50", "2"], ["-1.5", "2"]),
    ("csv", ['"good"', '"1.0"', '"1"'], ["1", "1.0", "good"]),
    ("csv", ['"01"', '"1"', '"1.0"'], ["01", "1", "1.0"]),
])
def test_numbers_of_one_value_are_one_class(tmp_path, ending, labels, classes):
    assert classes_of(labelled(tmp_path, ending, labels * 6)) == classes


def test_long_numbers_keep_all_digits():
    names = ["12345678901234567890123456789012", "12345678901234567890123456789013"]
    assert alike(names) == dict(zip(names, names, strict=True))


@pytest.mark.parametrize(("ending", "label"), [("csv", "1.0"), ("jsonl", "1.0"), ("jsonl", "1"), ("jsonl", '"1.00"')])
@pytest.mark.parametrize("name", ["1", "1.0"])
def test_a_number_is_the_class_of_its_value(tmp_path, ending, label, name):
    """Also where a model of an older version has the class 1.0."""
    config = pyllama.load(foreign(tmp_path / "m", "bert", "classification", {
        "id2label": {"0": "2", "1": name}, "task": {"name": "classify", "max_length": 8}})).config
    rows, _ = task.read(Source(labelled(tmp_path, ending, [label])))
    assert [row.values["label"] for row in with_names(task, rows, config)] == [name]


def test_two_classes_of_one_value_stay_apart(tmp_path):
    config = pyllama.load(foreign(tmp_path / "m", "bert", "classification", {
        "id2label": {"0": "1.0", "1": "1"}, "task": {"name": "classify", "max_length": 8}})).config
    rows = [Row("", {"label": label}) for label in ("1", "1.0")]
    assert [row.values["label"] for row in with_names(task, rows, config)] == ["1", "1.0"]


def test_a_class_that_our_model_lacks_is_refused(tmp_path, capsys):
    """A number that is no class is not the index of one."""
    rows = written(tmp_path / "rows.csv", "text,label\n" + "a fine film,good\na dull film,bad\n" * 5)
    model = pyllama.create("lstm", special.byte_pairs(TEXTS, 300), hidden_size=8)
    assert [*pyllama.finetune(model, rows, "classify", SETTINGS, out_dir=tmp_path / "run")]
    other = written(tmp_path / "other.csv", "text,label\na fine film,good\na dull film,1\n")
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--data", str(other)]) == 2
    assert "other.csv line 3 has the label '1', but the model has the classes bad, good; give their names" in \
        capsys.readouterr().err
    assert main(["finetune", "--task", "classify", "--data", str(rows), "--model", "lstm", "--test_data", str(other),
                 "--out_dir", str(tmp_path / "run2")]) == 2
    assert "other.csv line 3 has the label '1'" in capsys.readouterr().err


def test_several_numbers_are_all_answered(tmp_path, capsys):
    path = foreign(tmp_path / "m", "bert", "classification", {
        "labels": 3, "id2label": {str(i): f"LABEL_{i}" for i in range(3)}, "problem_type": "regression"})
    model = pyllama.load(path)
    answer = pyllama.predict(model, "a fine film")
    ids = special.encode(model.tokenizer, ["a fine film"])[0]
    assert answer == pytest.approx(model.logits(ids[None])[0][0].tolist(), abs=1e-5)
    assert len(answer) == 3
    rows = written(tmp_path / "rows.csv", "text,label\na fine film,1\n")
    assert main(["evaluate", "--model", str(path), "--data", str(rows)]) == 2
    assert "several numbers" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [1, 2])
def test_an_unknown_problem_is_refused_by_its_name(tmp_path, labels):
    path = foreign(tmp_path / "m", "bert", "classification", {
        "labels": labels, "id2label": {str(i): f"LABEL_{i}" for i in range(labels)}, "problem_type": "foo"})
    with pytest.raises(UserError, match=r"problem_type is 'foo' in config\.json; it must be one of regression, single"):
        pyllama.predict(path, "a fine film")
