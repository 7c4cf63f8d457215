"""Rows of files: forms, names of columns, quotes, encodings, and what is said of a row that cannot be read."""
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.tasks import TASKS, classify, labels, rows
from pyllama.tasks.columns import found
from pyllama.tasks.row_files import quoted
from pyllama.tasks.rows import Row, Source, read
from pyllama.tasks.task import labels_of, number_of
from tests.shared import written

# Rows

FIELDS, USABLE = classify.task.fields, classify.task.usable
REVIEWS = [{"text": "a fine film", "label": "good"}, {"text": 'dull, "long"\tand loud', "label": 7}]


@pytest.mark.parametrize(("name", "text"), [
    ("a.jsonl", "\n".join(map(json.dumps, REVIEWS)) + "\n\n"),
    ("a.json", json.dumps(REVIEWS)),
    ("a.json", json.dumps({"data": REVIEWS})),
    ("a.csv", 'label,text\ngood,a fine film\n7,"dull, ""long""\tand loud"\n'),
    ("a.csv", '\ufefftext,other,label\na fine film,x,good\n"dull, ""long""\tand loud",,7\n'),
])
def test_every_form_of_a_file_gives_the_same_rows(tmp_path, name, text):
    found, notes = read(Source(written(tmp_path / name, text)), FIELDS, USABLE)
    assert notes == ()
    assert [row.values for row in found] == [{**row, "label": str(row["label"])} for row in REVIEWS]


@pytest.mark.parametrize("head", ["", "source\ttarget\n", "target\tsource\n", "source\ttarget\r\n"])
def test_a_tsv_names_its_columns_or_has_them_in_order(tmp_path, head):
    line = "b\ta" if head.startswith("target") else "a\tb" + "\r\n" * head.endswith("\r\n")
    (row,), _ = read(Source(written(tmp_path / "a.tsv", head + line)), ("source", "target"), TASKS["g2p"].usable)
    assert row.values == {"source": "a", "target": "b"}


def test_fields_of_other_names_are_read_in_the_tasks_order(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"zh": "门", "en": "door", "id": 3}')
    (row,), _ = read(Source(path, ("en", "zh")), ("source", "target"), TASKS["translate"].usable)
    assert row == (f"{path} line 1", {"source": "door", "target": "门"}, {"zh": "门", "en": "door", "id": 3}, 1)


BAD = """{"text": "fine", "label": "good"}
{"text": "  ", "label": "bad"}
{"text": "no label"}
not json
[1, 2]
{"text": "fine too", "label": "bad"}
"""


def test_bad_rows_are_counted_and_located(tmp_path, capsys):
    path = written(tmp_path / "a.jsonl", BAD)
    found, notes = read(Source(path, bad_rows="skip"), FIELDS, USABLE)
    assert [row.place for row in found] == [f"{path} line 1", f"{path} line 6"]
    assert capsys.readouterr() == ("", "")
    reasons = ("line 2: 'text' is empty", "line 3: it has no field 'label', only text",
               "line 4: it is not JSON", "line 5: it is not an object")
    assert notes[0] == "4 of 6 rows skipped:"
    for note, reason in zip(notes[1:], reasons, strict=True):
        assert reason in note
    _, many = read(Source(written(tmp_path / "b.jsonl", BAD * 2), bad_rows="skip"), FIELDS, USABLE)
    assert (len(many), many[-1]) == (1 + rows.SHOWN + 1, "  and 3 more")
    with pytest.raises(UserError, match=r"a\.jsonl line 2: 'text' is empty; fix it, or set bad_rows"):
        read(Source(path), FIELDS, USABLE)


@pytest.mark.parametrize(("name", "text", "fields", "message"), [
    ("a.jsonl", "", (), "has no valid row; give a file with text, label"),
    ("a.jsonl", '{"data": {"text": "a"}, "label": 1}', (), "it has no field 'text', but 'data.text'; name that with"),
    ("a.tsv", "one\ntwo\n", (), "line 1: it has 1 column instead of 2"),
    ("a.xlsx", "x", (), r"has an unknown format; convert it to \.jsonl, \.json, \.csv, \.tsv"),
    ("a.json", "{", (), "is not JSON"),
    ("a.json", "3", (), "is not a list of objects"),
    ("a.csv", "a,b\n1,2\n", (), "the first line of .* does not name text, label, but a, b; name the columns to "
     "read with fields or, if it is a row, write the line text,label above it"),
    ("a.tsv", "one\ttwo\tthree\n", (), "line 1: it has 3 columns instead of 2"),
    ("a.jsonl", '{"text": "a", "label": "b"}', ("text",), "fields names 1 fields, but this task reads 2"),
    ("a.csv", 'text,label\n"open,1\n', (), "line 2: its quotes do not match .unexpected end of data."),
    ("a.jsonl", '{"text": "\\ud800", "label": "b"}', (), "'text' contains half of a surrogate pair"),
    ("a.jsonl", '{"text": "a", "label": [1]}', (), r"'label' is \[1\], not a name or a number"),
])
def test_a_file_that_is_not_data_is_refused_in_one_sentence(tmp_path, name, text, fields, message):
    with pytest.raises(UserError, match=message):
        read(Source(written(tmp_path / name, text), fields), FIELDS, USABLE)


def test_other_encodings_and_absent_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory; give a"):
        read(Source(tmp_path), FIELDS, USABLE)
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 at byte 14"):
        read(Source(tmp_path / "a.csv"), FIELDS, USABLE)
    with pytest.raises(UserError, match=r"cannot read .*b\.csv: No such file"):
        read(Source(tmp_path / "b.csv"), FIELDS, USABLE)


@given(count=st.integers(3, 40), dev=st.sampled_from([0.0, 0.2, 0.34]), test=st.sampled_from([0.0, 0.2]),
       seed=st.integers(0, 9))
def test_a_split_has_every_row_once(count, dev, test, seed):
    every = [Row(str(i), {}) for i in range(count)]
    parts = rows.split(every, (dev, test), seed)
    assert sorted(int(row.place) for part in parts for row in part) == list(range(count))
    assert [len(part) for part in parts[1:]] == [round(dev * count), round(test * count)]
    assert parts == rows.split(every, (dev, test), seed)


def test_too_few_rows_to_split_are_refused():
    with pytest.raises(UserError, match=r"the data has 2 rows, too few to hold out 0\.1 of them; give more"):
        rows.split([Row("a", {}), Row("b", {})], (0.1, 0.0), 0)
    with pytest.raises(UserError, match=r"a share of 1\.5 cannot be held out"):
        rows.split([Row("a", {})], (1.5,), 0)


# Names of columns

BODY = [f"film number {i}\t{i % 2}" for i in range(6)]


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".csv"])
@pytest.mark.parametrize(("head", "swap"), [
    ("text\tlabel", False), ("Text\tLabel", False), ("TEXT\tLabel ", False), ("sentence\tlabel", False),
    ("label\tsentence", True), ("Category\tReview Text", True), ("index\tsentence\tlabel", False),
    ("\ttext\tlabel", False), ("Unnamed: 0\tlabel\treview_text", True)])
def test_a_header_in_another_spelling_or_order_is_not_a_row(tmp_path, suffix, head, swap):
    lines = ["\t".join(line.split("\t")[::-1]) if swap else line for line in BODY]
    if head.count("\t") == 2:
        lines = [f"{i}\t{line}" for i, line in enumerate(lines)]
    content = "\n".join([head, *lines])
    content = content.replace("\t", ",") if suffix == ".csv" else content
    found_rows, _ = classify.task.read(Source(written(tmp_path / f"a{suffix}", content)))
    assert [row.values for row in found_rows] == [{"text": f"film number {i}", "label": str(i % 2)} for i in range(6)]
    assert found_rows[0].place.endswith("line 2")


def test_a_table_without_a_header_has_the_columns_in_order(tmp_path):
    path = written(tmp_path / "a.tsv", "\n".join(BODY))
    found_rows, notes = classify.task.read(Source(path))
    assert (len(found_rows), notes) == (6, ())
    assert found_rows[0] == (f"{path} line 1", {"text": "film number 0", "label": "0"},
                             {"text": "film number 0", "label": "0"}, 1)


@pytest.mark.parametrize("head", ["comment\ttoxic", "Phrase\tmood", "index\tdescription", "wie\tlabel", "toxic\tnr"])
def test_a_first_line_that_may_be_a_header_is_refused(tmp_path, head):
    """The column below is of numbers, or one of the two names is known."""
    with pytest.raises(UserError, match=rf"the first line of .*a\.tsv seems to name its columns \({head.split()[0]}, "):
        classify.task.read(Source(written(tmp_path / "a.tsv", "\n".join([head, *BODY]))))
    found_rows, _ = classify.task.read(Source(tmp_path / "a.tsv", tuple(head.split())))
    assert len(found_rows) == 6


def test_rows_to_predict_may_have_the_columns_of_glue_without_labels(tmp_path):
    path = written(tmp_path / "test.tsv", "index\tsentence\n0\ta fine film\n1\ta dull film\n")
    found_rows, notes = classify.task.read(Source(path), answer=False)
    assert [row.values["text"] for row in found_rows] == ["a fine film", "a dull film"]
    assert found_rows[1].given == {"index": "1", "sentence": "a dull film"}
    assert notes == ("the field 'sentence' is read as 'text'",)


@pytest.mark.parametrize(("available", "names"), [
    (("text", "Text", "label"), {"text": "text", "label": "label"}),
    (("Text", "TEXT", "label"), {"label": "label"}),                        # which one?
    (("review", "comment", "label"), {"label": "label"}),
    (("title", "body", "stars"), {"text": "body", "label": "stars"}),
    (("premise", "hypothesis", "label"), {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
    (("question", "sentence", "label"), {"text": "question", "text_pair": "sentence", "label": "label"}),
    (("sentence", "label"), {"text": "sentence", "label": "label"}),
    (("text", "hypothesis", "premise"), {"text": "text"}),
])
def test_a_field_is_found_where_one_column_stands_for_it(available, names):
    assert found(("text", "text_pair", "label"), available) == names


def test_fields_inside_others_are_named_by_dots(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"data": {"text": "fine"}, "meta": {"stars": 5}}\n{"data": 3}')
    (row,), notes = classify.task.read(Source(path, ("data.text", "meta.stars"), "skip"))
    assert row.values["text"], row.values["label"] == ("fine", "5")
    assert "line 2: it has no field 'data.text', only data" in notes[1]


def test_a_null_is_not_an_absent_field(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": null, "label": "b"}\n{"text": "fine", "label": "b"}')
    with pytest.raises(UserError, match="line 1: 'text' is null; fix it"):
        classify.task.read(Source(path))
    found_rows, _ = classify.task.read(Source(path, bad_rows="skip"))
    assert [row.number for row in found_rows] == [2]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_two_columns_of_a_name_that_is_read_are_refused(tmp_path, suffix):
    comma = "," if suffix == ".csv" else "\t"
    path = written(tmp_path / f"a{suffix}", comma.join(["text", "label", "text"]) + "\n" + comma.join("abc"))
    with pytest.raises(UserError, match="has two columns 'text'; rename one of them"):
        classify.task.read(Source(path))
    written(path, comma.join(["text", "label", "", "", "note", "note"]) + "\n" + comma.join("abcdef"))
    (row,), _ = classify.task.read(Source(path))
    assert row.given == {"text": "a", "label": "b", "": "c", ".1": "d", "note": "e", "note.1": "f"}


def test_a_json_row_with_a_field_twice_is_a_bad_row(tmp_path):
    path = written(tmp_path / "a.jsonl", '{"text": "a", "text": "b", "label": "c"}')
    with pytest.raises(UserError, match="line 1: it has the field 'text' twice"):
        classify.task.read(Source(path))


# Labels

@pytest.mark.parametrize(("label", "name"), [
    ("pos ", "pos"), ("\tpos\u00a0", "pos"),
    (0.0, "0"), (1.0, "1"), (1, "1"), (2.5, "2.5"), (True, "True"), (-3, "-3")])
def test_a_label_is_a_name_or_a_number(label, name):
    assert USABLE({"text": "a", "label": label})["label"] == name


@pytest.mark.parametrize("label", [[1], {"a": 1}, " ", "", float("nan")])
def test_other_labels_are_bad_rows(label):
    with pytest.raises(rows.BadRow, match="not a name or a number"):
        USABLE({"text": "a", "label": label})


def test_white_space_around_labels_is_removed_with_a_note(tmp_path):
    path = written(tmp_path / "a.csv", "text,label\na,pos\nb,pos \nc, neg\n")
    found_rows, notes = classify.task.read(Source(path))
    assert [row.values["label"] for row in found_rows] == ["pos", "pos", "neg"]
    assert notes == ("white space around 'label' is removed in 2 of 3 rows",)


def test_a_class_of_an_older_model_may_have_white_space_around_its_name():
    """Models of 0.1.0 have the classes of their rows as they were; the rows of such a run keep their labels."""
    config = SimpleNamespace(extra={"id2label": {"0": "bad ", "1": "good", "2": "good "}})
    assert labels_of(config) == ["bad", "good", "good"]
    assert [number_of(label, config) for label in ("bad", "bad ", "good", "good ")] == [0, 0, 1, 2]
    with pytest.raises(UserError, match="the model has the classes bad, good, good, but not 'fair'"):
        number_of("fair", config)


def test_labels_that_look_like_a_mistake_are_noted():
    assert labels.notes([*"aabb"]) == []
    assert labels.notes([*"ab"]) == []                      # all have one row
    numbers, = labels.notes([f"{i}.5" for i in range(40)])
    assert numbers.startswith("the labels are 40 different numbers, and each is a class")
    case, = labels.notes(["Pos", "pos", "neg", "Pos", "pos", "neg"])
    assert case.startswith("'Pos' and 'pos' are different classes")
    single, = labels.notes(["0", "1", "label", "0", "1"])
    assert single == "1 of 3 classes have only one row: 'label'"


def test_many_or_long_names_are_cut_in_a_message(tmp_path):
    head = ",".join(['"a long\nreview ' + "x" * 99 + '"', *(f"c{i}" for i in range(40))])
    with pytest.raises(UserError) as error:
        classify.task.read(Source(written(tmp_path / "a.csv", head + "\n")))
    assert f"but a long review {'x' * 26}, c0, c1, " in str(error.value)
    assert "c10, ...; name" in str(error.value)
    path = written(tmp_path / "a.jsonl", json.dumps({f"c{i}": i for i in range(40)}))
    with pytest.raises(UserError, match=r"no field 'text', only c0, .* c11, \.\.\.; choose"):
        classify.task.read(Source(path))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl", ".json"])
@pytest.mark.parametrize("task", TASKS)
def test_an_empty_file_is_refused_by_every_task(tmp_path, task, suffix):
    for text in ("", "\n \n"):
        with pytest.raises(UserError):
            TASKS[task].read(Source(written(tmp_path / f"a{suffix}", text)))


# Quotes, lines and encodings

@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("wrong", "number"), [
    ('"open,1', 3), ('"open" x,1', 3), ('x,"1', 3)])
def test_an_open_quote_is_told_at_its_line_and_skipped(tmp_path, end, wrong, number):
    path = tmp_path / "a.csv"
    path.write_bytes(end.join(["text,label", "one,1", wrong, '"two, 2",2', "three,3", ""]).encode())
    with pytest.raises(UserError, match=rf"a\.csv line {number}: its quotes do not match"):
        classify.task.read(Source(path))
    found_rows, notes = classify.task.read(Source(path, bad_rows="skip"))
    assert [row.values["text"] for row in found_rows] == ["one", "two, 2", "three"]
    assert notes[0] == "1 of 4 rows skipped:"


def test_a_quoted_cell_may_have_several_lines_and_its_row_is_where_it_begins(tmp_path):
    path = written(tmp_path / "a.csv", 'text,label\n"one\nand ""more""",1\ntwo,2\n')
    found_rows, _ = classify.task.read(Source(path))
    assert [(row.place.rsplit(" ")[-1], row.values["text"]) for row in found_rows] == [
        ("2", 'one\nand "more"'), ("4", "two")]


@given(st.lists(st.text('a",\n', max_size=8), max_size=8))
def test_every_line_of_a_table_is_in_a_record_or_an_error_of_its_own(lines):
    """Whatever the quotes: the numbers rise, and reading ends."""
    lines = [line + "\n" for text in lines for line in text.split("\n")]
    numbers = [number for number, _ in quoted(["a,b\n", *lines], ",")]
    assert numbers == sorted(set(numbers))
    assert all(1 <= number <= len(lines) + 1 for number in numbers)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_csv_may_have_other_separators(tmp_path, separator):
    for names in (["text", "label"], ['"text"', '"label"']):
        path = written(tmp_path / "a.csv", separator.join(names) + f'\n"a, b"{separator}1\n')
        (row,), _ = classify.task.read(Source(path))
        assert row.values == {"text": "a, b", "label": "1"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_windows_line_ends_and_a_mark_are_no_part_of_a_row(tmp_path, suffix):
    lines = {".csv": ["text,label", "a,1"], ".tsv": ["text\tlabel", "a\t1"], ".jsonl": ['{"text": "a", "label": 1}']}
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines[suffix], ""]).encode())
    (row,), _ = classify.task.read(Source(path))
    assert row.values == {"text": "a", "label": "1"}


@pytest.mark.parametrize(("content", "cure"), [
    ("text,label\na,1\n".encode("utf-16"), "is UTF-16, not UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`"),
    ("text,label\na,1\n".encode("utf-16-be"), "contains the byte 0"),
    ("text,label\ncaf\xe9,1\n".encode("latin-1"), "byte 14 in line 2: 0xe9; if it is Western European, convert it"),
    (b"PK\x03\x04rest", "cannot be unpacked"), (b"\x1f\x8brest", "is not a complete compressed file"),
    (b"BZhrest", "is bzip2: unpack it with bunzip2"),
])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_another_encoding_is_refused_with_its_cure(tmp_path, suffix, content, cure):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(cure)):
        classify.task.read(Source(tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("task", ["classify", "qa", "instruct"])
def test_lists_that_are_nested_too_deeply_are_a_bad_row(tmp_path, task):
    deep, good = "[" * 100_000 + "]" * 100_000, json.dumps({"text": "a", "label": 1, "context": "a", "question": "a",
                                                            "answer": "a", "instruction": "a", "output": "a"})
    path = written(tmp_path / "a.jsonl", f'{good}\n{deep}\n{{"text": {deep}}}\n{good}')
    with pytest.raises(UserError, match="line 2: its lists are nested too deeply; fix it, or set bad_rows"):
        TASKS[task].read(Source(path))
    found_rows, notes = TASKS[task].read(Source(path, bad_rows="skip"))
    assert [row.number for row in found_rows] == [1, 4]
    assert "2 of 4 rows skipped:" in notes
    with pytest.raises(UserError, match=r"a\.json cannot be read: its lists are nested too deeply"):
        TASKS[task].read(Source(written(tmp_path / "a.json", deep)))
