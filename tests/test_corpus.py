"""Texts are read from every kind of source in a fixed order; an error names the file and the line."""
import gzip
import io
import json
import os
import tarfile
import threading
import zipfile
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.tasks import row_files
from pyllama.text import corpus
from pyllama.text.corpus import documents


def texts(*arguments, **options):
    return [text for _, text in documents(*arguments, **options)]


@pytest.fixture
def folder(tmp_path):
    for name, text in {"b.txt": "second", "a.md": "first", "c/d.jsonl": '{"text": "third"}\n', "c/e.py": "code",
                       ".hidden/f.txt": "no", "c/.g.txt": "no", "h.cfg": "{}"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


# What is read

def test_a_text_file_is_one_document_to_the_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\n\ttwo\r漢\n\n".encode())
    assert list(documents(tmp_path / "a.txt")) == [(str(tmp_path / "a.txt"), "one\r\n\ttwo\r漢\n\n")]


def test_a_folder_is_read_deep_sorted_and_without_what_is_hidden_or_no_text(folder):
    assert texts(folder) == ["first", "second", "third"]


def test_a_pattern_takes_any_suffix_and_several_sources_follow_each_other(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert texts("**/*.py") == ["code"]
    assert texts("*") == ["first", "second", "{}"]
    assert texts(["c", "b.txt", folder / "a.md", "?.txt"]) == ["third", "second", "first", "second"]


def test_a_file_named_like_a_pattern_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[1].txt").write_text("bracket")
    (tmp_path / "a1.txt").write_text("one")
    assert texts("a[1].txt") == ["bracket"]


def test_compressed_files_and_pipes_are_read(tmp_path):
    lines = json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "two"}) + "\n"
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfa text"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("inside.txt", "of a zip")
    with zipfile.ZipFile(tmp_path / "d.csv.zip", "w") as archive:
        archive.writestr("inside/a.TSV", 'id\ttext\n1\ta "record" of a zip\n')
    packed = [tmp_path / name for name in ("a.txt.gz", "b.jsonl.gz", "c.zip", "d.csv.zip")]
    assert texts(packed) == ["a text", "one", "two", "of a zip", 'a "record" of a zip']
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("of a pipe"))
    writer.start()
    for _ in range(2):                                      # to see whether it changed, and to encode it
        assert texts(tmp_path / "pipe") == ["of a pipe"]
    writer.join()
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"a text" * 99)[:-9])
    with pytest.raises(UserError, match=r"cut\.txt\.gz is not a complete compressed file"):
        texts(tmp_path / "cut.txt.gz")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("one.txt", "1")
        archive.writestr("two.txt", "2")
    with pytest.raises(UserError, match=r"two\.zip is a \.zip of 2 files \(one\.txt, two\.txt\); unpack it"):
        texts(tmp_path / "two.zip")


def test_a_line_of_deep_json_is_named(tmp_path):
    (tmp_path / "deep.jsonl").write_text('{"text": "fine"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(UserError, match=r"deep\.jsonl line 2 is not JSON \(its lists or objects are nested"):
        texts(tmp_path / "deep.jsonl")


@given(st.lists(st.text(st.sampled_from("a\n \r漢"), min_size=1).map(lambda text: f"x{text}\n"), min_size=1),
       st.sampled_from(["<|endoftext|>\n", "<|endoftext|> \r\n"]), st.booleans(), st.integers(1, 40))
def test_documents_lie_between_separator_lines(tmp_path_factory, parts, separator, last, chunk):
    path = tmp_path_factory.getbasetemp() / "separated.txt"
    path.write_bytes((separator.join(parts) + last * separator.strip()).encode())
    with mock.patch.object(corpus, "CHUNK", chunk):
        without = [part.removesuffix("\n").removesuffix("\r") for part in parts]    # the separator's own line break
        assert texts(path) == (without if last else [*without[:-1], parts[-1]])
        assert len({name for name, _ in documents(path)}) == len(parts)


def test_a_separator_within_a_line_separates_nothing_and_blank_documents_are_left_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>\n \n<|endoftext|>\nsay <|endoftext|>\n<|endoftext|> twice\n<|endoftext|>")
    assert texts(path) == ["say <|endoftext|>\n<|endoftext|> twice"]


def test_json_lines_give_the_field_asked_for_and_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a\\n\\u6f22", "en": "b"}\r\n\n{"en": "c\u2028d", "text": "e"}'.encode())
    assert list(documents(path)) == [(f"{path} line 1", "a\n漢"), (f"{path} line 3", "e")]
    assert texts(path, field="en") == ["b", "c\u2028d"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(name, tmp_path):
    content = '{"text": "a"}' if name == "a.jsonl" else "a"
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert texts(tmp_path) == ["a"]


def test_the_same_character_later_on_is_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", 1)
    (tmp_path / "a.txt").write_text("a\n\ufeffb")
    assert texts(tmp_path) == ["a\n\ufeffb"]


def test_the_order_is_that_of_the_names_not_of_the_disk(tmp_path):
    for name in "ecahgbdf":
        (tmp_path / f"{name}.txt").write_text(name)
    assert texts(tmp_path) == texts(f"{tmp_path}/*") == list("abcdefgh")


def test_standard_input_can_be_read_twice(monkeypatch):
    corpus._standard_input.cache_clear()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"typed\n<|endoftext|>\nmore")))
    assert texts("-") == texts("-") == ["typed", "more"]
    corpus._standard_input.cache_clear()


def test_python_brings_its_language_reference():
    found = dict(documents("python-docs"))
    assert list(found) == sorted(found)
    assert "python-docs/lambda" in found
    assert sum(map(len, found.values())) > 300_000                      # 465 kB in Python 3.11


# What cannot be read

@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"),
    (b" \n\n", "is empty"),
    (b"<|endoftext|>\n", "is empty"),
    (b"ab\nc\xe9d\n", r"is not UTF-8 at byte 4 \(line 2\)"),
    (b"abc\n\xe6\xbc", r"is not UTF-8 at byte 4 \(line 2\)"),              # cut within a character
    ("\ufeffa".encode("utf-16-le"), r"is not UTF-8 at byte 0 \(line 1\)"),
    (b"ab\nc\nd\0e", r"has a zero character \(NUL\) in line 3, .*; save it as UTF-8"),
    ("ab".encode("utf-16-le"), r"has a zero character \(NUL\) in line 1, so it is UTF-16 or not text"),
    (b"PAR1\x15\x04", "is Parquet: write its rows as .jsonl"),
    (b"\x93NUMPY\x01\0", r"is an array of NumPy: .* token ids with array\.astype\('uint16'\)\.tofile\(FILE\)"),
    (b'\x40\0\0\0\0\0\0\0{"a":{}}', "is safetensors, which holds weights"),
    (b"\x89PNG\r\n", r"is not UTF-8 at byte 0 \(line 1\)"),
])
@pytest.mark.parametrize("chunk", [1, 2**24])
def test_a_text_file_that_is_none_is_named(content, said, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", chunk)
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.txt {said}"):
        texts(tmp_path)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip"])
def test_a_tar_archive_is_never_read_as_text(name, tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 99)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    raw = (tmp_path / "a.tar").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.tar", raw)
    for path in (tmp_path / "a.tar.gz", tmp_path / "a.tgz"):
        path.write_bytes(gzip.compress(raw))
    with pytest.raises(UserError, match=rf"{name} (is|holds) a tar archive: unpack it with `tar -xf`"):
        texts(tmp_path / name)


@pytest.mark.parametrize(("line", "said"), [
    ("plain words", r"is not JSON \(Expecting value"),
    ("[1]", r'is not a JSON object.*\{"text": ...\}'),
    ('{"label": 1, "sentence": "a"}', "no text in a field 'text'; its fields are label, sentence"),
    ('{"text": 1}', "no text in a field 'text'; its fields are text"),
    ("{}", "its fields are none"),
    (r'{"text": "\ud83d"}', "half of a surrogate pair"),
])
def test_a_line_that_is_not_a_record_is_named(line, said, tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "good"}) + f"\n{line}\n")
    with pytest.raises(UserError, match=rf"bad\.jsonl line 2 .*{said}"):
        texts(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder '.*nowhere\.txt'"):
        texts(tmp_path / "nowhere.txt")
    (tmp_path / "code.py").write_text("code")
    with pytest.raises(UserError, match=r"has no .*\.txt file.*\*\*/\*\.py"):
        texts(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied"):
        texts(tmp_path)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(UserError, match="the name of a source is empty"):
        list(corpus.documents(""))


# Runs

RUN = {"log.jsonl": '{"step": 1}\n', "data/train.jsonl": '{"text": "row"}\n', "data/dev.jsonl": '{"text": "row"}\n',
       "checkpoints/step-00000001/notes.txt": "no text"}


@pytest.mark.parametrize("mark", ["checkpoints", "lock", "data/tokens.bin.json"])
@pytest.mark.parametrize("run", ["out", "runs/deep/out", "."])
def test_what_runs_wrote_is_not_read(folder, monkeypatch, mark, run):
    """Also of one that was killed before its first checkpoint; the user's own files beside it are read."""
    monkeypatch.chdir(folder)
    want = texts("."), texts("**/*.*")
    for name, text in RUN.items():
        if mark == "checkpoints" or "checkpoints" not in name:
            (folder / run / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / run / name).write_text(text)
    if mark != "checkpoints":
        (folder / run / mark).write_text("{}")
    assert (texts("."), texts("**/*.*")) == want
    assert texts(folder) == want[0]
    assert texts(f"{run}/data/train.jsonl") == ["row"]          # unless it is named
    (folder / run / "data/story.txt").write_text("mine")
    assert "mine" in texts(".")


def test_files_named_like_a_run_s_are_read(tmp_path):
    for name in "log.jsonl", "data/train.jsonl", "notes/checkpoints/a/b.md":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "read"}')
    assert len(texts(tmp_path)) == 3


def test_a_folder_can_be_trained_on_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 9)
    flags = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2", "--block_size", "8",
             "--max_steps", "1"]
    for run in "out", "runs/second", "third":
        assert main(["train", "--data", ".", "--out_dir", run, *flags]) == 0
    assert len({(tmp_path / run / "data/tokens.bin").read_bytes() for run in ("out", "runs/second", "third")}) == 1


# Records

RECORDS = {
    **dict.fromkeys(("a.JSONL", "a.ndjson"), '{"text": "one"}\n{"text": "two"}\n'),
    "a.json": '[{"text": "one"}, {"text": "two"}]',
    "lines.json": '{"text": "one"}\n\n{"text": "two"}', "a.Json": '{"data": [\n{"text": "one"},\n{"text": "two"}]}',
    "a.csv": 'id,text\n1,one\n2,"two"\n', "a.TSV": "id\ttext\n1\tone\n2\ttwo\n"}


@pytest.mark.parametrize("name", RECORDS)
def test_records_give_their_texts_whatever_the_case_of_the_ending(name, tmp_path):
    (tmp_path / name).write_text("\ufeff" + RECORDS[name])
    assert texts(tmp_path / name) == ["one", "two"]
    with pytest.raises(UserError, match=r"field 'body'|column 'body'"):
        texts(tmp_path / name, field="body")


@pytest.mark.parametrize("pattern", ["", "*", "**/*.ndjson"])
def test_records_in_a_folder_or_of_a_pattern_are_records(pattern, tmp_path):
    (tmp_path / "a.ndjson").write_text(RECORDS["a.ndjson"])
    assert texts(tmp_path / pattern) == ["one", "two"]


def test_without_a_field_every_text_of_a_record_is_a_document(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "one", "number": 1, "answer": "two", "none": null}')
    (tmp_path / "a.csv").write_text("question,answer\nthree,four\n")
    assert texts([tmp_path / "a.jsonl", tmp_path / "a.csv"], field="") == ["one", "two", "three", "four"]


def test_a_folder_of_capital_endings_is_read(tmp_path):
    (tmp_path / "A.TXT").write_text("one")
    (tmp_path / "B.JSONL").write_text('{"text": "two"}')
    assert texts(tmp_path) == ["one", "two"]


def test_a_quoted_cell_may_span_lines_and_a_tab_separated_one_keeps_its_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"a ""quoted""\nline, with a comma",1\nb,2\n')
    (tmp_path / "a.tsv").write_text('text\tn\na "quoted\t1\n')
    assert list(documents(tmp_path / "a.csv")) == [(f"{tmp_path}/a.csv line 2", 'a "quoted"\nline, with a comma'),
                                                   (f"{tmp_path}/a.csv line 4", "b")]
    assert texts(tmp_path / "a.tsv") == ['a "quoted']


def test_a_text_may_be_inside_an_object_and_null_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"data": {"text": "deep"}}\n{"data.text": "flat"}\n')
    assert texts(tmp_path / "a.jsonl", field="data.text") == ["deep", "flat"]
    (tmp_path / "b.jsonl").write_text('{"text": null}\n{"text": "one"}\n')
    assert texts(tmp_path / "b.jsonl") == ["one"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", "{", r"a\.json is not JSON .*rename the file to \.txt"),
    ("a.json", "[1]", r"a\.json item 1 is not a JSON object"),
    ("a.json", '{"name": "x"}', r"a\.json item 1 has no text in a field 'text'; its fields are name"),
    ("a.csv", "hello, world\n", r"a\.csv has no column 'text'; its first line names hello, world; .*\.txt"),
    ("a.csv", 'text\n"open', r"a\.csv line \d: unexpected end of data"),
    ("a.csv", "", r"a\.csv has no column|a\.csv is empty"),
    ("a.csv", "text\na, b\n", r"a\.csv line 2 has 2 columns instead of 1; fix it, or rename the file to \.txt"),
    ("a.tsv", "id\ttext\n1\ta\n\n2\n", r"a\.tsv line 4 has 1 column instead of 2"),
    ("a.JSONL", "[" * 100_000, r"a\.JSONL line 1 is not JSON")])
def test_a_file_of_records_is_never_read_as_raw_text(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        texts(tmp_path / name)


@pytest.mark.parametrize("content", ['{"text": {"0": "one", "1": "two"}, "id": {"0": 1, "1": 2}}',
                                     '{"columns": ["text"], "index": [0], "data": [["one"]]}'])
def test_a_table_in_columns_is_named_for_what_it_is(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    for read in texts, lambda path: list(row_files.READERS[".json"](path, content, ("text",), 0)):
        with pytest.raises(UserError, match=r"a\.json has a table column by column; write one object a row"):
            read(tmp_path / "a.json")
