"""Readability and repetition of a text, compared with values computed by hand."""
import csv
import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyllama.cli.main import main
from pyllama.text.readability import longest_repeat, measures, sentences, syllables

CAT = "The cat sat. The cat sat on the mat! Why?"


@pytest.mark.parametrize(("word", "count"), [
    ("cat", 1), ("make", 1), ("table", 2), ("me", 1), ("the", 1), ("syllable", 3), ("whole", 1), ("free", 1),
    ("idea", 2), ("rhythm", 1), ("1984", 1), ("don't", 1), ("e", 1), ("beauty", 2)])
def test_syllables_follow_the_rule(word, count):
    assert syllables(word) == count


def test_sentences_end_where_they_should():
    assert sentences('He paid 3.50 for it. "Well-known!" she\nsaid… Don\'t\n\nNo end') == [
        ["he", "paid", "3", "50", "for", "it"], ["well-known"], ["she", "said"], ["don't"], ["no", "end"]]
    assert sentences("你好。“走吧！”他说。... !") == [["你", "好"], ["走", "吧"], ["他", "说"]]


def test_english_by_hand():
    found = measures([CAT])
    assert (found["sentences"], found["words"], found["chinese_characters"]) == (3, 10, 0)
    assert found["words_per_sentence"] == pytest.approx(10 / 3)
    assert found["syllables_per_word"] == 1
    assert found["reading_ease"] == pytest.approx(206.835 - 84.6 - 1.015 * 10 / 3)
    assert found["characters_per_sentence"] is None
    assert found["distinct_1"] == pytest.approx(6 / 10)
    assert found["distinct_2"] == pytest.approx(7 / 9)
    assert found["distinct_3"] == pytest.approx(7 / 8)
    assert (found["longest_repeat"], found["longest_repeat_words"]) == ("the cat sat", 3)
    assert found["repeated_trigrams"] == [["the cat sat", 2]]


def test_chinese_by_hand():
    found = measures(["你好。你好吗？"])
    assert (found["sentences"], found["words"], found["chinese_characters"]) == (2, 0, 5)
    assert found["characters_per_sentence"] == 2.5
    assert found["reading_ease"] is found["words_per_sentence"] is None
    assert found["distinct_1"] == 3 / 5
    assert (found["longest_repeat"], found["longest_repeat_words"]) == ("你好", 2)


def test_a_sentence_with_chinese_in_it_is_none_of_english():
    found = measures(["I like 北京 immensely. Hello there."])
    assert (found["sentences"], found["words"], found["chinese_characters"]) == (2, 5, 2)
    assert found["words_per_sentence"] == 2
    assert found["syllables_per_word"] == 1.5
    assert found["characters_per_sentence"] == 2


def test_nothing_is_counted_across_documents():
    found = measures(["x y z", "y z x", "z"])
    assert found["distinct_2"] == 3 / 4                     # xy yz yz zx
    assert found["longest_repeat"] == "y z"
    assert measures(["a", "b a", "b"])["longest_repeat"] == "a"
    assert measures(["a b", "a c"])["distinct_3"] is None
    assert measures(["a b c", "a b c"])["repeated_trigrams"] == [["a b c", 2]]


def test_a_text_without_words_has_no_measures():
    found = measures(["... --- !"])
    assert found["sentences"] == found["words"] == found["longest_repeat_words"] == 0
    assert found["longest_repeat"] == ""
    assert found["distinct_1"] is found["reading_ease"] is None


@given(st.lists(st.integers(0, 2), max_size=40))
@example([*range(7), *range(7)])                            # 4, doubled, is too long; 6 and 7 are not
@example([0, 1, 5, 0, 1, 6, 1, 2, 3, 1, 2, 3])              # the first of length 2 is not the first of length 3
def test_the_longest_repeat_is_the_longest(ids):
    place, length = longest_repeat(np.array(ids, int))

    def places(n):
        runs = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
        return [i for i, run in enumerate(runs) if runs.count(run) > 1]

    assert not places(length + 1)
    assert place == (places(length)[0] if length else len(ids))


def test_report_reads_files_and_standard_input(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(f"{CAT}\n<|endoftext|>\nAnother.")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("pyllama.text.corpus._standard_input", lambda: "你好。你好吗？[/x]".encode())
    assert main(["report", str(path), "-", "--out", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"sentences +4 +3", out)
    assert re.search(r"distinct 1 +0.636 +0.667", out)      # 7 of 11, 4 of 6
    assert re.search(r"longest repeat +the cat sat +你好", out)
    assert "2 × the cat sat" in out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["-"] == measures(["你好。你好吗？[/x]"])
    assert found[str(path)] == measures([f"{CAT}\n", "Another."])
    assert main(["report"]) == 0
    assert re.search(r"sentences +3", capsys.readouterr().out)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"say": "One. Two."}))
    assert main(["report", str(tmp_path / "rows.jsonl"), "--field", "say"]) == 0
    assert re.search(r"sentences +2", capsys.readouterr().out)


def test_a_text_that_stands_twice_is_summarized(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(f"w{i}" for i in range(5000))
    (tmp_path / "a.txt").write_text(f"{text}\n{text}\n{'x' * 900} a b " * 2)
    assert main(["report", str(tmp_path / "a.txt"), "--out", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 60
    assert re.search(r"longest repeat +w0 w1 w2", out)
    assert json.loads((tmp_path / "r.json").read_text())[str(tmp_path / "a.txt")]["longest_repeat"].startswith(text)


@pytest.mark.parametrize(("flags", "message"), [
    (["{tmp}/none.txt"], "there is no file or folder .*none.txt"),
    (["{tmp}/empty.txt"], "empty.txt is empty; add some text"),
    (["{tmp}/a.txt", "--out", "{tmp}/no/r.json"], "cannot write .*r.json: No such file or directory; name a file")])
def test_what_cannot_be_reported_is_refused_in_a_sentence(flags, message, tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt").write_text(CAT)
    assert main(["report", *(flag.format(tmp=tmp_path) for flag in flags)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


def test_measures_are_written_by_the_ending(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text(CAT)
    for ending in ("csv", "TSV", "jsonl", "json"):
        assert main(["report", str(text), "--out", str(tmp_path / f"m.{ending}")]) == 0
    for ending, delimiter in (("csv", ","), ("TSV", "\t")):
        lines = (tmp_path / f"m.{ending}").read_text().splitlines()
        row, = csv.DictReader(lines, delimiter=delimiter)
        assert (row["data"], row["sentences"], row["longest_repeat"]) == (str(text), "3", "the cat sat")
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {
        "data": str(text), **json.loads((tmp_path / "m.json").read_text())[str(text)]}
    capsys.readouterr()
    assert main(["report", str(text), "--out", str(tmp_path / "m.conll")]) == 2
    assert capsys.readouterr() == ("", "pyllama: measures cannot be written as .conll; name a file with the ending "
                                       ".json, .jsonl, .ndjson, .csv, .tsv\n")
