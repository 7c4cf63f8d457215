"""predict writes the answers beside all that the file has: ids, other columns and the true label."""
import csv
import io
import json

import pytest

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks.answers import ByClass, beside, comma_separated, tab_separated
from pyllama.tasks.rows import Row
from tests.shared import written

FLAGS = ["--vocab_size", "300", "--batch_size", "8", "--shards", "1", "--max_steps", "2", "--eval_steps", "2"]
FILMS = [{"id": f"n{i}", "Review Text": f"a {word} film, number {i}", "label": label, "predicted": "mine"}
         for i, (word, label) in enumerate([("fine", "good"), ("dull", "bad")] * 10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    data = written(folder / "films.json", json.dumps(FILMS))
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", str(data), "--fields", "Review Text",
                 "label", "--out_dir", str(folder / "run"), *FLAGS]) == 0
    return folder / "run"


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_back(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if path.suffix == ".tsv":
        head, *lines = (line.split("\t") for line in text.splitlines())
        return [dict(zip(head, line, strict=True)) for line in lines]
    return json.loads(text) if path.suffix == ".json" else list(map(json.loads, text.splitlines()))


@pytest.mark.parametrize("source", [".csv", ".tsv", ".jsonl", ".json"])
@pytest.mark.parametrize("target", [".csv", ".tsv", ".jsonl", ".json"])
def test_every_column_stays_as_it_is_and_the_answer_is_beside_it(run, tmp_path, source, target):
    forms = {".csv": as_csv(FILMS), ".json": json.dumps(FILMS), ".jsonl": "\n".join(map(json.dumps, FILMS)),
             ".tsv": "\n".join("\t".join(row) for row in [FILMS[0], *(row.values() for row in FILMS)])}
    data = written(tmp_path / f"a{source}", forms[source])
    assert main(["predict", "--model", str(run), "--data", str(data), "--out", str(tmp_path / f"b{target}")]) == 0
    answers = read_back(tmp_path / f"b{target}")
    assert [{name: row[name] for name in FILMS[0]} for row in answers] == FILMS
    assert list(answers[0])[:6] == [*FILMS[0], "predicted_2", "probability"]
    for row in answers:
        shares = row.get("probabilities") or {name: row[f"probabilities.{name}"] for name in ("good", "bad")}
        best = max(shares, key=lambda name: float(shares[name]))
        assert (row["predicted_2"], float(row["probability"])) == (best, float(shares[best]))
        assert sum(map(float, shares.values())) == pytest.approx(1, abs=2e-6)           # rounded to 6 digits


@pytest.mark.parametrize("ids", [True, False])
def test_answers_can_be_joined_though_rows_are_skipped(run, tmp_path, capsys, ids):
    lines = [f'{{"id": {i}, "Review Text": "{text}"}}' if ids else f'{{"Review Text": "{text}"}}'
             for i, text in enumerate(["fine", " ", "dull", "cold"])]
    data = written(tmp_path / "a.jsonl", "\n".join([lines[0], "not json", *lines[1:]]))
    capsys.readouterr()
    assert main(["predict", "--model", str(run), "--data", str(data), "--bad_rows", "skip"]) == 0
    answers = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [row["row"] for row in answers] == [1, 4, 5]
    assert [row["Review Text"] for row in answers] == ["fine", "dull", "cold"]
    assert [row.get("id") for row in answers] == ([0, 2, 3] if ids else [None] * 3)


def test_texts_are_written_by_the_ending_too(run, tmp_path):
    flags = ["--model", str(run), "--text", "fine, dull", "cold"]
    for name in ("a.txt", "a", "a.csv"):
        assert main(["predict", *flags, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "a").read_text()
    assert {*(tmp_path / "a").read_text().split()} <= {"good", "bad"}
    assert [row["text"] for row in read_back(tmp_path / "a.csv")] == ["fine, dull", "cold"]


def test_another_ending_is_refused_before_any_work(run, tmp_path, capsys):
    assert main(["predict", "--model", str(run), "--text", "fine", "--out", str(tmp_path / "a.xlsx")]) == 2
    assert "answers cannot be written as .xlsx; name a file with the ending .jsonl" in capsys.readouterr().err


def test_values_that_are_not_texts_are_cells_of_json():
    table = beside([Row("", {}, {"id": 7, "meta": {"a": [1, "é"]}, "none": None, "text": 'a "b"'})], ["x"],
                   [{"probabilities": ByClass(x=0.75, y=0.25)}], numbered=False)
    head, cells = csv.reader(io.StringIO(comma_separated(table)))
    assert head == ["id", "meta", "none", "text", "predicted", "probabilities.x", "probabilities.y"]
    assert cells == ["7", '{"a": [1, "é"]}', "", 'a "b"', "x", "0.75", "0.25"]
    with pytest.raises(UserError, match=r"contains a tab or a line end, which a \.tsv cannot hold"):
        tab_separated([{"text": "a\nb"}])
