"""Rows that a tokenizer cannot read are found before a model learns from them, or answers them."""
import json
import re

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

import pyllama
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.text.tokenizer import Tokenizer

ROWS = [{"text": text, "label": label} for text, label in [("ab c", "a"), ("c ab", "b")] * 12]
UNREAD = [{"text": "日本", "label": "a"}, {"text": "\u0301\u0301", "label": "b"}]


@pytest.fixture
def tokenizer(tmp_path):
    """Byte pairs without an unknown token, which drop 日, and whose normalizer removes accents."""
    rust = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "c": 3}, [("a", "b")]))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    Tokenizer(rust).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer/tokenizer.json"


def finetune(tmp_path, tokenizer, rows, *flags):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return main(["finetune", "--task", "classify", "--model", "bert", "--data", str(tmp_path / "rows.jsonl"),
                 "--tokenizer", str(tokenizer), "--max_steps", "1", "--max_length", "8", "--out_dir",
                 str(tmp_path / "run"), *flags])


@pytest.mark.parametrize(("row", "message"), [
    (UNREAD[0], r"line 25: 'text' cannot be encoded: the vocabulary has no '日' \(U\+65E5\)"),
    (UNREAD[1], r"line 25: 'text' has no token, because the tokenizer removes all of")])
def test_such_a_row_stops_a_training_or_is_skipped_and_counted(row, message, tokenizer, tmp_path, capsys):
    assert finetune(tmp_path, tokenizer, [*ROWS, row]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert finetune(tmp_path, tokenizer, [*ROWS, row], "--bad_rows", "skip", "--dev", "0.5") == 0
    said = capsys.readouterr().out
    assert "1 of " in said
    assert re.search(message, said)
    kept = "".join((tmp_path / f"run/data/{part}.jsonl").read_text() for part in ("train", "dev"))
    assert kept.count("\n") == 24


def test_such_a_text_is_not_answered(tokenizer, tmp_path, capsys):
    assert finetune(tmp_path, tokenizer, ROWS) == 0
    capsys.readouterr()
    for text in "日本", "\u0301":
        assert main(["predict", "--model", str(tmp_path / "run"), "--text", text]) == 2
        said = capsys.readouterr().err
        assert said.startswith("pyllama: input 1: 'text' ")
        assert "bad_rows" not in said
        with pytest.raises(UserError, match=r"input 2: 'text' (?!.*bad_rows)"):
            pyllama.predict(tmp_path / "run", ["ab", text])
