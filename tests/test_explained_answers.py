"""The command predict with --explain: its answers, its refusals."""
import csv
import json
import re

import pytest

from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.study.deciding import Asked, check
from pyllama.tasks import TASKS
from tests.shared import written


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
