"""Files of word vectors: every number survives, only the wanted rows are kept, damage is reported."""
import gzip
import json
import os
import re
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import files, params, pretrained
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.formats import vectors
from pyllama.models import llama, skipgram
from pyllama.tasks import TASKS
from pyllama.tasks.vectors import heads_for
from pyllama.text import special
from pyllama.text.tokens import joined
from pyllama.training import loop

GLOVE = "the 0.5 -1.25\nword 3 4e-05\n"
names = st.text(st.characters(exclude_characters=" \r\n", exclude_categories=["Cs"]), min_size=1)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vectors")


def written(folder, content, name="some.txt"):
    path = folder / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("name", ["some.txt", "some.vec", "some.txt.gz", "some.vec.gz"])
@given(pairs=st.data())
def test_words_and_numbers_come_back_bit_for_bit(folder, name, pairs):
    """Every float32, of words that may be numbers or hold any character but a space or a line's end."""
    width = pairs.draw(st.integers(1, 3))
    rows = pairs.draw(st.dictionaries(names | st.sampled_from(["7", "12", "0.5"]), st.lists(floats, min_size=width,
                                                                                          max_size=width), min_size=1))
    array = np.array(list(rows.values()), np.float32)
    vectors.write(folder / name, list(rows), array)
    found, read = vectors.read(folder / name)
    assert found == list(rows)
    np.testing.assert_array_equal(read.view(np.uint32), array.view(np.uint32), strict=True)
    kept = set(list(rows)[::2])
    found, read = vectors.read(folder / name, kept)
    assert found == list(rows)[::2]
    np.testing.assert_array_equal(read, array[::2], strict=True)
    assert [path.name for path in folder.iterdir() if "tmp" in path.name] == []


def test_the_forms_of_other_programs_are_read(folder):
    want = np.array([[0.5, -1.25], [3, 4e-5]], np.float32)
    for content, name in ((GLOVE, "a.txt"), ("2 2\n" + GLOVE, "a.vec"), (GLOVE, "a.vec"), (GLOVE[:-1], "a.txt"),
                          (GLOVE.replace("\n", " \n"), "a.txt"), (GLOVE.replace("\n", "\r\n"), "a.txt")):
        found, read = vectors.read(written(folder, content, name))
        assert found == ["the", "word"], content
        np.testing.assert_array_equal(read, want, strict=True)
    vectors.write(folder / "b.txt", ["the", "word"], want)
    assert (folder / "b.txt").read_text() == "the 0.5 -1.25\nword 3 3.9999999e-05\n"
    vectors.write(folder / "b.vec", ["the", "word"], want)
    assert (folder / "b.vec").read_text().startswith("2 2\nthe 0.5 -1.25\n")


def test_of_a_word_that_comes_twice_the_first_counts(folder):
    found, read = vectors.read(written(folder, "a 1 2\nb 3 4\na 5 6\n"))
    assert found == ["a", "b"]
    assert read.tolist() == [[1, 2], [3, 4]]
    assert vectors.read(written(folder, "3 2\na 1 2\nb 3 4\na 5 6\n"))[0] == ["a", "b"]     # lines are what it counts


def test_a_word_may_hold_spaces_where_its_last_part_is_no_number(folder):
    path = written(folder, "a 1 2\n. . . 3 4\nat name@domain.com 5 6\nnon\u00a0breaking\u2028 7 8\n")
    found, read = vectors.read(path)
    assert found == ["a", ". . .", "at name@domain.com", "non\u00a0breaking\u2028"]
    assert read.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert vectors.read(path, [". . ."])[1].tolist() == [[3, 4]]


@pytest.mark.parametrize(("content", "message"), [
    ("a 1 2\nb 3\n", "line 2 has 1 numbers where 2 should follow a word; fix or remove it"),
    ("a 1 2\nb 3 4 5\n", "line 2 has 3 numbers where 2 should follow a word; fix or remove it"),
    ("a 1 2\n\nb 3 4\n", "line 2 has 0 numbers where 2 should follow a word; fix or remove it"),
    ("a\n", "line 1 has 0 numbers where some should follow a word; fix or remove it"),
    ("3 0\na\n", "announces 3 words of 0 numbers; give a file of word vectors"),
    ("a 1 2\nb 3 nan\n", "line 2 has 'nan', which is not a finite float32 number; fix or remove it"),
    ("a 1 2\nb -inf 3\n", "line 2 has '-inf', which is not a finite float32 number; fix or remove it"),
    ("a 1 2\nb 1e39 3\n", "line 2 has '1e39', which is not a finite float32 number; fix or remove it"),
    ("a 1 2\nb 1 x\n", "line 2 has 'x', which is not a finite float32 number; fix or remove it"),
    (b"a 1 2\n\xff\xfe 3 4\n", "line 2 is not UTF-8: invalid start byte; save the file as UTF-8"),
    ("a 1 2\n 3 4\n", "line 2 has no word before its numbers; remove it"),
    ("3 2\na 1 2\nb 3 4\n", "announces 3 words in its first line but has 2; it is truncated or damaged; "
                             "fetch it again"),
    ("", "is empty; give a file of word vectors"),
    ("0 5\n", "announces 0 words of 5 numbers; give a file of word vectors"),
    ("3 9999999\na 1\n", "announces 3 words of 9999999 numbers; give a file of word vectors"),
])
def test_damage_is_named_with_its_line(folder, content, message):
    path = written(folder, content)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path} {message}')}$"):
        vectors.read(path)


def test_a_file_that_cannot_be_read_is_named(folder):
    with pytest.raises(UserError, match=r"^cannot read .*absent.txt: No such file or directory; give a file of"):
        vectors.read(folder / "absent.txt")
    assert vectors.read(written(folder, GLOVE).rename(folder / "plain.gz"))[0] == ["the", "word"]
    whole = written(folder, "".join(f"w{i} {i / 7} {i / 3}\n" for i in range(1000)), "cut.txt.gz")
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^.*cut.txt.gz is not a complete compressed file: Compressed file ended"):
        vectors.read(whole)


@pytest.mark.parametrize(("some", "rows", "message"), [
    (["a", "a"], [[1], [2]], "a word occurs twice, and a reader would keep only the first; remove one"),
    (["a b"], [[1]], "'a b' cannot be written as a word: it is empty or contains a space or a line end; leave it out"),
    (["a", ""], [[1], [2]], "'' cannot be written as a word: it is empty or contains a space or a line end; leave it "
                            "out"),
    (["a", "b"], [[1], [np.nan]], "the vector of 'b' is not finite; leave it out or train again"),
])
def test_what_would_not_come_back_is_not_written(folder, some, rows, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        vectors.write(folder / "not.txt", some, np.array(rows, np.float32))
    with pytest.raises(UserError, match=r"^cannot write .*: No such file or directory; free some space or choose"):
        vectors.write(folder / "no/such.txt", ["a"], np.ones((1, 1)))
    assert not (folder / "not.txt").exists()


def test_only_what_is_wanted_is_kept_and_parsed(folder):
    """2 MB of text, 800 kB as float32: 2 of 4000 rows need no tenth of it.  Past the last word nothing is read."""
    rows = np.random.default_rng(0).standard_normal((4000, 50)).astype(np.float32)
    vectors.write(folder / "large.vec", [f"w{i}" for i in range(4000)], rows)
    with open(folder / "large.vec", "ab") as file:
        file.write(b"broken\n")
    tracemalloc.start()
    found, read = vectors.read(folder / "large.vec", {"w3999", "w7"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ["w7", "w3999"]
    np.testing.assert_array_equal(read, rows[[7, 3999]])
    assert peak < rows.nbytes / 10
    with pytest.raises(UserError, match=r"large.vec line 4002 has 0 numbers"):
        vectors.read(folder / "large.vec", {"w3999", "absent"})


def test_known_words_go_into_their_rows_and_the_others_stay():
    c = llama.LlamaConfig(vocab_size=5, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1)
    flat, p = params.flatten(llama.init(c))
    table = p["model"]["embed_tokens"]["weight"]
    before = table.copy()
    rows = np.array([[1, 2], [3, 4], [5, 6]], np.float64)
    found = vectors.into(table, {"a": 4, "b": 1, "c": 0}, ["b", "x", "a"], rows)
    assert found.tolist() == [False, True, False, False, True]
    assert table[found].tolist() == [[1, 2], [5, 6]]
    np.testing.assert_array_equal(table[~found], before[~found])
    assert set(flat) >= {1, 2, 5, 6}, "the model's own parameters are meant"
    assert not vectors.into(table, {"a": 4}, ["z"], rows[:1]).any()
    with pytest.raises(UserError, match=r"^the vectors have width 2, but the table has width 3; choose vectors"):
        vectors.into(np.zeros((5, 3)), {}, ["a", "b", "c"], rows)


def test_rows_without_a_gradient_stay_to_the_last_bit():
    """What the docstring says of frozen rows: AdamW moves no number whose gradient was always zero."""
    c = skipgram.SkipgramConfig(5, 2, window=2, subsample=0.0)
    s = loop.Settings(batch_size=8, max_steps=5, warmup_steps=0, learning_rate=0.1)
    state = loop.start(c, s)
    batch = skipgram.batches(joined([np.arange(40) % 5]), c, s.batch_size, s.seed)
    found = vectors.into(state.p["input"]["weight"], {"a": 1, "b": 3}, ["b", "a"], np.array([[1, 2], [3, 4.0]]))
    before = state.p["input"]["weight"].copy()
    for step in range(5):
        _, back = skipgram.loss(*batch(step), state.p, c)
        grads = back()
        grads["input"]["weight"][found] = 0
        state.optimizer.step(state.flat, params.flatten(grads)[0], 0.1, 0.0)
    after = state.p["input"]["weight"]
    np.testing.assert_array_equal(after[found], before[found])
    assert (after[~found] != before[~found]).all()


# A task that begins with vectors

def reviews(folder):
    lines = [{"text": f"A {word} film of {n} minutes", "label": label} for n in range(10)
             for word, label in (("Fine", "good"), ("dull", "bad"))]
    return written(folder, "".join(json.dumps(line) + "\n" for line in lines), "reviews.jsonl")


@pytest.mark.parametrize("model", ["lstm", "bert", "llama"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_task_begins_with_the_vectors_of_its_words(model, frozen, tmp_path, capsys):
    """Capitals aside; a word without a vector has a random one; frozen vectors are those of the file in the end."""
    given = written(tmp_path, "fine 1 2 3 4 5 6\ndull 6 5 4 3 2 1\nminutes 0 0 0 0 0 9\nelse 1 1 1 1 1 1\n")
    freeze = ["--freeze", {"lstm": "embedding", "bert": "bert.embeddings", "llama": "model.embed_tokens"}[model]]
    out = tmp_path / "run"
    assert main(["finetune", "--task", "classify", "--model", model, "--data", str(reviews(tmp_path)), "--vectors",
                 str(given), "--max_steps", "3", "--warmup_steps", "0", "--out_dir", str(out), *freeze * frozen]) == 0
    assert "3 of " in capsys.readouterr().out
    found = pretrained.load(out)
    table = next(a for _, a in params.leaves(found.params) if a.shape == (found.config.vocab_size, 6))
    ids = [found.tokenizer.rust.token_to_id(word) for word in ("Fine", "dull", "minutes")]
    wanted = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [0, 0, 0, 0, 0, 9]], np.float32)
    assert np.array_equal(table[ids], wanted) == frozen
    assert np.abs(table[ids] - wanted).max() < 0.1
    assert np.abs(table[found.tokenizer.rust.token_to_id("film")]).max() > 0


@pytest.mark.parametrize(("content", "flags", "message"), [
    ("чужой 1 2\n", [], "has no vector for any token of the texts"),
    ("fine 1 2\nfilm 1\n", [], "line 2 has 1 numbers where 2 should follow"),
    ("fine 1 2\n", ["--freeze", "embed_tokens"], "there is no parameter at 'embed_tokens'"),
    ("fine 1 2 3\n", ["--model", "llama"], "vectors of width 3 do not fit a llama: the head width is 3"),
])
def test_vectors_that_do_not_fit_are_refused(content, flags, message, tmp_path, capsys):
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", str(reviews(tmp_path)), "--vectors",
                 str(written(tmp_path, content)), "--out_dir", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_task_that_writes_texts_takes_no_vectors(tmp_path, capsys):
    """Tokens that are words are decoded with a space between any two, whatever stood there."""
    rows = written(tmp_path, '{"source": "fine", "corrected": "fine"}\n' * 9, "rows.jsonl")
    assert main(["finetune", "--task", "write", "--model", "transformer", "--data", str(rows), "--vectors",
                 str(written(tmp_path, "fine 1 2\n")), "--out_dir", str(tmp_path / "run")]) == 2
    assert "word vectors need a vocabulary of words, but write writes text" in capsys.readouterr().err


def test_marks_of_a_task_stay_whole_among_words():
    tokenizer = special.words(["the <e1>film</e1> of <e2>war</e2>"], 99, TASKS["relations"].markers)
    ids = tokenizer.encode("<e1>film</e1>", allowed_special="all")
    assert [tokenizer.rust.id_to_token(i) for i in ids] == ["<e1>", "film", "</e1>"]


@pytest.mark.parametrize(("width", "heads"), [(300, 3), (100, 2), (50, 1), (128, 4), (6, 3), (7, 1)])
def test_heads_have_an_even_width_where_they_can(width, heads):
    assert heads_for(width) == heads


# --- other forms of files ---------------------------------------------------------------------------------------------

WORDS, ROWS = ["film", "naïve", "\ufeffmark"], np.array([[1.5, -2, 3e-5], [0, 1e30, -0.0], [10, 32, 2.5e-39]], "f4")


def binary(words, rows, end=b"\n"):
    return f"{len(words)} {rows.shape[1]}\n".encode() + b"".join(
        word.encode() + b" " + row.astype("<f4").tobytes() + end for word, row in zip(words, rows, strict=True))


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, None])
@given(data=st.data())
def test_the_binary_files_of_word2vec_are_read(folder, pack, end, data):
    """Numbers of any bits: line ends and spaces among them."""
    width = data.draw(st.integers(1, 40))
    words = data.draw(st.lists(names.filter(lambda word: word[0] != "\ufeff"), min_size=1, max_size=5, unique=True))
    bits = data.draw(st.lists(st.binary(min_size=4 * width, max_size=4 * width), min_size=len(words),
                              max_size=len(words)))
    rows = np.frombuffer(b"".join(bits), "<f4").reshape(len(words), width)
    rows = np.where(np.isfinite(rows), rows, np.float32(-0.0123)).astype("f4")
    rows[0, :1] = np.frombuffer(b"\x8f\xc2\xf5\xbd", "<f4")           # -0.12: no text has these bytes
    content = binary(words, rows, end)
    path = folder / "some.bin"
    if pack is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("vectors/some.bin", content)
    else:
        path.write_bytes(pack(content))
    found, read = vectors.read(path)
    assert found == words
    np.testing.assert_array_equal(read.view("u4"), rows.view("u4"))
    assert vectors.read(path, {words[0]})[0] == words[:1]


@pytest.mark.parametrize(("content", "message"), [
    (binary(WORDS, ROWS)[:-9], "ends in word 3 of the 3 that it announces; fetch it again"),
    (binary(WORDS, ROWS) + b"more", "has more than the 3 words that it announces; fetch it again"),
    (binary(WORDS, ROWS + np.float32(np.inf)), "word 1 has 'inf', which is not a finite float32 number; fix or remove"),
    ((793712314).to_bytes(4, "little") + bytes(99), "is a model of fastText with its subwords; give the .vec file b"),
    (b"\x93NUMPY\x01\x00", "is an array of NumPy: write vectors as text"),
    (b"\x80\x04\x95", "is a pickle: convert it with the program that wrote it"),
    (b"\xfd7zXZ\x00", "is xz: unpack it with unxz"),
    (b"a" * 2**24 + b" 1 2", "line 1 is longer than 16,777,216 bytes"),
    (b"a 1 2\nb 1 2\n" + b"a" * 2**24, "line 3 is longer than 16,777,216 bytes"),
    (b"9 2\na 1 2\nb 1 2\n" + b"a" * 2**24, "line 4 is longer than 16,777,216 bytes"),
    (gzip.compress(b"0" * 2**25), "line 1 is longer than 16,777,216 bytes"),
], ids=lambda x: x if isinstance(x, str) else "")                                   # not of the bytes: megabytes
def test_other_files_are_named_for_what_they_are(folder, content, message):
    path = written(folder, content, "some.bin")
    with pytest.raises(UserError, match=re.escape(f"{path} {message}")):
        vectors.read(path)


def test_a_byte_order_mark_is_not_part_of_the_first_word(folder):
    for name, content in {"some.txt": GLOVE, "some.vec": f"2 2\n{GLOVE}"}.items():
        assert vectors.read(written(folder, "\ufeff" + content, name))[0] == ["the", "word"]


def test_an_archive_of_several_files_lists_them(folder):
    path = folder / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("glove.50d.txt", GLOVE)
        archive.writestr("glove.100d.txt", GLOVE)
    with pytest.raises(UserError, match=r"is a \.zip of 2 files \(glove\.50d\.txt, glove\.100d\.txt\); unpack it and"):
        vectors.read(path)


def test_a_small_file_of_many_gigabytes_takes_no_memory(folder, monkeypatch):
    monkeypatch.setattr(files, "LEAST", 2**22)
    path = folder / "many.txt.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(9):
            file.write(b"word" + b" 0" * 2**19 + b"\n")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"holds more than 4,194,304 bytes, far more than its own size; if that is r"):
        vectors.read(path, {"another"})
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_a_pipe_is_read_twice(tmp_path):
    """A process substitution, <(zcat vectors.gz), is a pipe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text(GLOVE))
    writer.start()
    assert vectors.read(path)[0] == vectors.read(path)[0] == ["the", "word"]
    writer.join()
