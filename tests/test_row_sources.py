"""Rows that come through standard input, a pipe or a compressed file."""
import gzip
import json
import os
import subprocess
import sys
import threading
import zipfile

import pytest

from pyllama.errors import UserError
from pyllama.tasks import classify, qa
from pyllama.tasks.rows import Source
from tests.test_problem_types import foreign

ROWS = [{"text": "a fine film", "label": "good"}, {"text": "a dull film", "label": "bad"}]
FORMS = {
    ".csv": "text,label\na fine film,good\na dull film,bad\n",
    ".tsv": "text\tlabel\na fine film\tgood\na dull film\tbad\n",
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".json": json.dumps(ROWS, indent=1),
    ".data.json": json.dumps({"data": ROWS}),
}
READ = """
import pathlib, sys
from pyllama.tasks import classify, rows
source = rows.Source(pathlib.Path(sys.argv[1]))
print([tuple(row.values.values()) for row in classify.task.read(source)[0]])
"""


def values(path):
    return [row.values for row in classify.task.read(Source(path))[0]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", ["gz", "zip", "pipe"])
def test_every_form_is_read_in_every_wrapping(tmp_path, form, packed):
    if packed == "gz":
        path = tmp_path / f"a{form}.gz"
        path.write_bytes(gzip.compress(FORMS[form].encode()))
        assert values(path) == ROWS
    elif packed == "zip":
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"inside/a{form}", FORMS[form])
        assert values(path) == ROWS
    else:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_text, args=(FORMS[form],))
        writer.start()
        assert values(path) == ROWS
        writer.join()


@pytest.mark.parametrize("form", [".csv", ".jsonl"])
def test_a_hyphen_is_standard_input(form):
    done = subprocess.run([sys.executable, "-c", READ, "-"], input=FORMS[form], capture_output=True, text=True,
                          check=True)
    assert done.stdout == f"{[tuple(row.values()) for row in ROWS]}\n"
    done = subprocess.run([sys.executable, "-c", READ, "-"], input="text,label\n,bad\n", capture_output=True, text=True,
                          check=False)
    assert "UserError: standard input line 2: 'text' is" in done.stderr


def test_squad_in_a_compressed_file_is_unfolded(tmp_path):
    squad = {"data": [{"paragraphs": [{"context": "one two", "qas": [{"question": "1?", "answers": [
        {"text": "one", "answer_start": 0}]}]}]}]}
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(squad).encode()))
    (row,), _ = qa.task.read(Source(path))
    assert row.values["answer"] == "one"


def test_an_unknown_format_is_refused_by_the_name_inside(tmp_path):
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match=r"a\.parquet\.gz holds a\.parquet, which has an unknown format; convert it"):
        values(path)


def test_predict_reads_and_writes_the_standard_streams(tmp_path):
    """A file with the name - is neither read nor written."""
    path = foreign(tmp_path / "m", "bert", "classification", {"id2label": {"0": "bad", "1": "good"}})
    for out in ([], ["--out", "-"]):
        done = subprocess.run([sys.executable, "-m", "pyllama", "predict", "--model", path, "--data", "-", *out],
                              input=FORMS[".csv"], capture_output=True, text=True, check=True, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": os.getcwd()})
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["text"] for answer in answers] == ["a fine film", "a dull film"]
        assert {answer["predicted"] for answer in answers} <= {"bad", "good"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
