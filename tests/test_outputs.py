"""Files that commands write: never over what they read, and through devices and pipes."""
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyllama import files
from pyllama.cli import main
from pyllama.errors import UserError
from tests.extras import needs_matplotlib

ROOT = Path(__file__).parents[1]
TINY = ["--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--batch_size", "2", "--block_size", "8", "--warmup_iters",
        "1", "--max_iters", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A text, rows, and models of both."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("the quick brown fox\n" * 40)
    Path("rows.csv").write_text("text,label\n" + "a,good\nb,bad\n" * 12)
    assert main(["train", "--data", "texts/a.txt", "--out_dir", "run", *TINY]) == 0
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", "rows.csv", "--out_dir", "tuned",
                 "--max_steps", "2", "--warmup_steps", "1", "--vocab_size", "300"]) == 0
    os.symlink("rows.csv", "link.csv")
    os.link("texts/a.txt", "hard.txt")
    capsys.readouterr()
    return tmp_path


@pytest.mark.parametrize("argv", [
    ["report", "texts/a.txt", "--out", "texts/a.txt"],
    ["report", "texts", "--out", "texts/../texts/a.txt"],
    ["report", "texts/*.txt", "--out", "{tmp}/texts/a.txt"],
    ["report", "texts/a.txt", "--out", "hard.txt"],
    ["predict", "--model", "tuned", "--data", "rows.csv", "--out", "rows.csv"],
    ["predict", "--model", "tuned", "--data", "rows.csv", "--out=./link.csv"],
    ["predict", "--model", "tuned", "--data", "link.csv", "--out", "rows.csv"],
    ["predict", "--model", "tuned", "--text", "a", "--out", "tuned/latest"],
    ["predict", "--model", "tuned", "--text", "a", "--export", "x.csv", "--out", "x.csv"],
    ["evaluate", "--model", "run", "--data", "texts/a.txt", "--out", "texts/a.txt"],
    ["evaluate", "--model", "run", "--data", "texts/a.txt", "--out", "run/data/tokens.bin"],
    ["evaluate", "--model", "run", "--data", "texts/a.txt", "--out", "run/log.jsonl"],
    pytest.param(["plot", "run", "--out", "run/best"], marks=needs_matplotlib),
    pytest.param(["plot", "run", "--out", "run/log.jsonl"], marks=needs_matplotlib),
], ids=" ".join)
def test_an_output_that_the_command_reads_is_refused(argv, folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([word.format(tmp=folder) for word in argv]) == 2
    assert "; write another file" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_outputs_may_lie_beside_what_is_read(folder):
    for _ in range(2):                                      # the second time it exists
        assert main(["report", "texts", "--out", "texts/report.json"]) == 0
        assert main(["evaluate", "--model", "run", "--data", "texts", "--out", "run/quality.json"]) == 0
        assert main(["predict", "--model", "tuned", "--data", "rows.csv", "--out", "tuned/answers.csv"]) == 0


def test_a_pipe_and_a_device_are_written_through(tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    thread.start()
    files.export("pipe", [b"a", b"b"])
    thread.join()
    assert read == [b"ab"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    files.export("/dev/null", [b"a"])
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    files.export("/dev/stdout", [b"out"])
    files.export("/dev/fd/2", [b"err"])
    assert capfdbinary.readouterr() == (b"out", b"err")
    for path in ("/dev/full", "/dev/fd/999", "/dev/no-such-device/x", "."):
        cure = "free some space" if path == "/dev/full" else "name a file"
        with pytest.raises(UserError, match=f"cannot write {path}: .*; {cure}"):
            files.export(path, [b"a"])


def test_a_folder_is_not_a_file_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for path in (".", "..", "/", "folder"):
        with pytest.raises(UserError, match=f"^cannot write {re.escape(path)}: it is a folder; name a file"):
            files.export(path, [b"a"])
    assert [*tmp_path.iterdir()] == [Path("folder").absolute()]


def test_standard_output_that_is_a_file_keeps_what_was_printed_before(folder):
    with open("all.txt", "wb") as out:
        done = subprocess.run([sys.executable, "-m", "pyllama", "report", "texts/a.txt", "--out", "/dev/stdout"],
                              stdout=out, check=False, env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"})
    assert done.returncode == 0
    text = Path("all.txt").read_text()
    assert text.index("sentences") < text.index('"sentences"')


def test_a_long_name_may_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("n" * 255, "日" * 85):
        files.export(name, [b"x"])
        assert Path(name).read_bytes() == b"x"
    assert not [*tmp_path.glob(".*.tmp")]
