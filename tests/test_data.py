"""Tokens index like one array, are encoded once, and never pass for the tokens of another text or tokenizer."""
import io
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama.errors import UserError
from pyllama.text import corpus, frames
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Tokens, prepare, token_file

BYTES = Tokenizer.bytes()
PAIRS = Tokenizer.byte_pairs(["the cat sat on the mat"], 270)


@st.composite
def several(draw):
    """Tokens of several stretches, out of order and some empty, and the same ids as a plain array."""
    ends = np.cumsum(draw(st.lists(st.integers(0, 5), min_size=1, max_size=8)))
    ids = np.arange(100, 100 + ends[-1], dtype=np.uint16)
    stretches = draw(st.permutations([(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]))
    starts, stops = np.array(stretches).T
    return Tokens(ids, starts, stops), np.concatenate([ids[start:stop] for start, stop in stretches]).astype(np.int64)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text"
    path.mkdir()
    (path / "a.txt").write_text("the cat")
    (path / "b.txt").write_text("sat on the mat")
    return path


def identity(folder):
    """What shows that a file was not written again."""
    return [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]


# Tokens

@given(several(), st.data())
def test_tokens_index_like_the_array_they_lay_end_to_end(both, data):
    tokens, plain = both
    assert len(tokens) == len(plain)
    assert tokens[:].tolist() == plain.tolist()
    assert tokens[:].dtype == np.int64
    cut = data.draw(st.slices(len(plain)))
    assert tokens[cut].tolist() == plain[cut].tolist()
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(plain))] * 2)))
    assert tokens.between(begin, end)[:].tolist() == plain[begin:end].tolist()
    if len(plain):
        positions = np.array(data.draw(st.lists(st.integers(0, len(plain) - 1), min_size=4, max_size=4))).reshape(2, 2)
        assert tokens[positions].tolist() == plain[positions].tolist()


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_the_tokens_is_an_error_and_not_another_document(position):
    tokens = Tokens(np.arange(9), np.array([2]), np.array([5]))
    with pytest.raises(IndexError, match="of 3 tokens"):
        tokens[np.array([0, position])]


# Encode once

def test_prepared_tokens_are_the_documents_each_with_its_end(source, tmp_path):
    tokens = prepare(source, PAIRS, tmp_path / "tokens")
    assert PAIRS.decode(tokens[:]) == "the cat<|endoftext|>sat on the mat<|endoftext|>"
    assert tokens.starts.tolist() == [0, 1 + len(PAIRS.encode("the cat"))]
    assert tokens.stops.tolist() == [tokens.starts[1], len(tokens)]


def test_line_breaks_separate_documents_without_an_end_token_and_batches_make_one_file(source, tmp_path, monkeypatch):
    monkeypatch.setattr("pyllama.text.encoding.AT_ONCE", 3)
    seen = []
    tokens = prepare(source, BYTES, tmp_path / "tokens", progress=lambda *state: seen.append(state))
    assert BYTES.decode(tokens[:]) == "the cat\nsat on the mat"
    assert tokens.starts.tolist() == [0, 7]
    assert seen == [(7, 21), (21, 21)]
    assert tokens.ids.dtype == np.uint16


def test_a_document_that_ends_with_a_line_break_gets_no_other_and_a_vocabulary_may_lack_it(source, tmp_path):
    (source / "a.txt").write_text("the cat\n")
    assert BYTES.decode(prepare(source, BYTES, tmp_path / "tokens")[:]) == "the cat\nsat on the mat"
    (source / "a.txt").write_text("the cat")
    letters = Tokenizer.characters("the catsat on the mat")
    assert letters.decode(prepare(source, letters, tmp_path / "tokens")[:]) == "the catsat on the mat"


@pytest.mark.parametrize(("tokens", "first", "last", "whole"), [
    (["<s>", "</s>"], "<s>", None, "<s>the cat<s>sat on the mat"),      # LLaMA: as its post-processor says, no more
    (["<s>", "</s>"], "<s>", "</s>", "<s>the cat</s><s>sat on the mat</s>"),
    (["<s>", "</s>"], None, None, "the cat</s>sat on the mat</s>"),     # no post-processor: the end token
    (["[BOS]"], None, None, "the cat\nsat on the mat")])
def test_documents_have_the_special_tokens_of_the_tokenizer_around_them(tokens, first, last, whole, source, tmp_path):
    tokenizer = Tokenizer.byte_pairs(["the cat"], 300, tokens)
    if first or last:
        tokenizer = Tokenizer(frames.framed(tokenizer.rust, first, last))
    prepared = prepare(source, tokenizer, tmp_path / "tokens")
    assert tokenizer.decode(prepared[:]) == whole
    assert [int(i) for i in prepared.stops] == [int(prepared.starts[1]), len(prepared)]


def test_tokens_are_made_anew_when_the_end_token_changes(source, tmp_path):
    tokenizer = Tokenizer.byte_pairs(["the cat"], 300, ["[EOS]", "<|im_end|>"])
    for end in "[EOS]", "<|im_end|>":
        same = Tokenizer(tokenizer.rust, {"eos_token": end})
        assert same.decode(prepare(source, same, tmp_path / "tokens")[:]) == f"the cat{end}sat on the mat{end}"


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path):
    text = "".join(map(chr, range(0x10000, 0x20001)))
    (tmp_path / "a.txt").write_text(text)
    tokens = prepare(tmp_path / "a.txt", Tokenizer.characters(text), tmp_path / "tokens")
    assert tokens[-1:].tolist() == [65536]
    assert (tmp_path / "tokens" / "tokens.bin").stat().st_size == 4 * 65537


def test_a_long_document_is_encoded_in_parts_like_a_short_one(source, tmp_path, monkeypatch):
    whole = prepare(source, PAIRS, tmp_path / "whole")
    monkeypatch.setattr("pyllama.text.encoding.AT_ONCE", 2)
    monkeypatch.setattr("pyllama.text.tokenizer.PIECE", 1)
    monkeypatch.setattr("pyllama.text.tokenizer.PARTS", 1)
    parts = prepare(source, PAIRS, tmp_path / "parts")
    assert parts[:].tolist() == whole[:].tolist()
    assert parts.starts.tolist() == whole.starts.tolist()
    with pytest.raises(UserError, match=r"b\.txt: the vocabulary has no 's' .* at position 0"):
        prepare(source, Tokenizer.characters("the ca"), tmp_path / "lacking")


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_encoding_a_long_text_takes_a_few_bytes_a_character(kind, tmp_path):
    """The text, its bytes, a copy of each while it is read, and 2 bytes for each id: 6; 34 before it went in parts."""
    size = 3_000_000
    (tmp_path / "a.txt").write_text("the cat sat on the mat.\n" * (size // 24))
    tokenizer = BYTES if kind == "bytes" else Tokenizer.characters("the cat sat on the mat.\n")
    tracemalloc.start()
    try:
        tokens = prepare(tmp_path / "a.txt", tokenizer, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(tokens) == size
    assert peak < 10 * size


def test_tokens_are_used_again_while_nothing_changed(source, tmp_path, monkeypatch):
    first = prepare(source, PAIRS, tmp_path / "tokens")
    before = identity(tmp_path / "tokens")
    source.rename(tmp_path / "moved")                                   # the same text elsewhere is the same text
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    again = prepare(tmp_path / "moved", PAIRS, tmp_path / "tokens")
    assert identity(tmp_path / "tokens") == before
    assert again[:].tolist() == first[:].tolist()
    assert again.starts.tolist() == first.starts.tolist()


def change_text(source, folder):
    (source / "b.txt").write_text("sat on the hat")                     # as many bytes as before


def move_a_border(source, folder):
    (source / "a.txt").write_text("the ca")
    (source / "b.txt").write_text("tsat on the mat")


def truncate(source, folder):
    os.truncate(folder / "tokens.bin", 10)


def empty(source, folder):
    os.truncate(folder / "tokens.bin", 0)


def lose_file(source, folder):
    (folder / "tokens.bin").unlink()


def lose_sidecar(source, folder):
    (folder / "tokens.bin.json").unlink()


def spoil_sidecar(source, folder):
    (folder / "tokens.bin.json").write_text('{"format": 1')


def forget_in_sidecar(source, folder):
    side = json.loads((folder / "tokens.bin.json").read_text())
    (folder / "tokens.bin.json").write_text(json.dumps({key: side[key] for key in side if key != "documents"}))


@pytest.mark.parametrize("cause", [change_text, move_a_border, truncate, empty, lose_file, lose_sidecar, spoil_sidecar,
                                   forget_in_sidecar], ids=lambda cause: cause.__name__)
def test_tokens_are_made_anew_when_anything_does_not_fit(cause, source, tmp_path):
    prepare(source, BYTES, tmp_path / "tokens")
    cause(source, tmp_path / "tokens")
    texts = [text for _, text in corpus.documents(source)]
    tokens = prepare(source, BYTES, tmp_path / "tokens")
    assert BYTES.decode(tokens[:]) == "\n".join(texts)
    assert tokens.starts.tolist() == [0, len(texts[0])]
    assert token_file(tmp_path / "tokens" / "tokens.bin")[:].tolist() == tokens[:].tolist()


def test_tokens_are_made_anew_for_another_tokenizer_of_the_same_size(source, tmp_path):
    text = "".join(text for _, text in corpus.documents(source))
    prepare(source, Tokenizer.characters(text), tmp_path / "tokens")
    other = Tokenizer.characters(text + "a few more")
    assert other.decode(prepare(source, other, tmp_path / "tokens")[:]) == text


def test_a_failure_leaves_the_old_tokens_and_nothing_half_written(source, tmp_path):
    characters = Tokenizer.characters("the catsat on the mat")
    prepare(source, characters, tmp_path / "tokens")
    before = identity(tmp_path / "tokens")
    (source / "b.txt").write_text("sat on\nthe mât")
    with pytest.raises(UserError, match=r"b\.txt: the vocabulary has no '.n' \(U\+000A\) at position 6"):
        prepare(source, characters, tmp_path / "tokens")
    assert identity(tmp_path / "tokens") == before


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("text", ["sat on the hat", "sat on the mat"], ids=["go on", "go back"])
def test_a_process_killed_between_the_two_files_leaves_no_wrong_tokens(stop, text, source, tmp_path):
    """Tokens of the same size as before: only the order of writing tells the new file from the old sidecar."""
    prepare(source, BYTES, tmp_path / "tokens")
    (source / "b.txt").write_text("sat on the hat")
    program = f"""
import os
from pyllama.text import tokens, tokenizer
renames, rename = [], os.replace
def replace(path, target):
    renames.append(path)
    if len(renames) == {stop}:
        os._exit(9)
    return rename(path, target)
os.replace = replace
tokens.prepare({str(source)!r}, tokenizer.Tokenizer.bytes(), {str(tmp_path / "tokens")!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    (source / "b.txt").write_text(text)
    assert BYTES.decode(prepare(source, BYTES, tmp_path / "tokens")[:]) == "the cat\n" + text


def test_a_folder_that_cannot_be_made_is_named(source):
    with pytest.raises(UserError, match=r"cannot write .*tokens\.bin: (Not a directory|File exists)"):
        prepare(source, BYTES, source / "a.txt")


def test_standard_input_is_prepared_though_it_is_read_twice(tmp_path, monkeypatch):
    corpus._standard_input.cache_clear()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"typed")))
    assert BYTES.decode(prepare("-", BYTES, tmp_path)[:]) == "typed"
    corpus._standard_input.cache_clear()


# Ready token files

def header(magic, version, count):
    return np.array([magic, version, count] + [0] * 253, np.int32).tobytes()


@pytest.mark.parametrize(("head", "dtype"), [
    (b"", np.uint16), (header(20240520, 1, 3), np.uint16), (header(20240801, 7, 3), np.uint32)])
def test_token_files_of_nanogpt_and_llm_c_are_read(head, dtype, tmp_path):
    (tmp_path / "train.bin").write_bytes(head + np.array([7, 50256, 9], dtype).tobytes())
    tokens = token_file(tmp_path / "train.bin", vocab_size=50257)
    assert tokens[:].tolist() == [7, 50256, 9]
    assert tokens.ids.dtype == dtype
    with pytest.raises(UserError, match=r"train\.bin has the id 50256, but the vocabulary has 50256 tokens"):
        token_file(tmp_path / "train.bin", vocab_size=50256)


@pytest.mark.parametrize(("dtype", "vocab_size", "read_as"), [
    (np.uint16, 50257, np.uint16), (np.uint16, None, np.uint16), (np.uint32, 70000, np.uint32),
    (np.uint32, 50257, np.uint32), (np.uint32, None, np.uint32), (np.int32, 300, np.uint32)])
def test_the_width_of_ids_without_a_header_is_found(dtype, vocab_size, read_as, tmp_path):
    ids = np.random.default_rng(0).integers(0, vocab_size or 300, 20000)
    ids.astype(dtype).tofile(tmp_path / "train.bin")
    tokens = token_file(tmp_path / "train.bin", vocab_size)
    assert tokens.ids.dtype == read_as
    np.testing.assert_array_equal(tokens[:], ids)


@pytest.mark.parametrize(("content", "message"), [
    (np.arange(99, dtype=np.int64).tobytes(), "has ids of 64 bits; write them as uint16, or as uint32 for"),
    (np.full(99, 3e-5, np.float32).tobytes(), "has the id 43138, but the vocabulary has 300 tokens"),
    (header(20240520, 2, 3) + bytes(6), r"has version \[2\] of llm\.c's format, which is not supported"),
])
def test_token_files_of_another_form_are_refused(content, message, tmp_path):
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.bin {message}"):
        token_file(tmp_path / "train.bin", vocab_size=300)


@pytest.mark.parametrize("content", [b"", b"abc", header(20240520, 1, 3) + b"1234", header(20240520, 1, 0),
                                     header(20240520, 1, 3)[:500]])
def test_a_token_file_cut_short_is_refused(content, tmp_path):
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.bin is not a complete token file: it has {len(content)} bytes"):
        token_file(tmp_path / "train.bin")


def test_ids_narrower_than_the_vocabulary_needs_are_named(tmp_path):
    (tmp_path / "train.bin").write_bytes(np.arange(9, dtype=np.uint16).tobytes())
    with pytest.raises(UserError, match=r"has 18 bytes, .* ids of 32 bits are expected, because .* 70,000 tokens"):
        token_file(tmp_path / "train.bin", vocab_size=70000)


def test_a_prepared_file_cut_short_or_missing_is_refused(source, tmp_path):
    prepare(source, BYTES, tmp_path / "tokens")
    os.truncate(tmp_path / "tokens" / "tokens.bin", 10)
    with pytest.raises(UserError, match=r"tokens\.bin and tokens\.bin\.json do not fit together"):
        token_file(tmp_path / "tokens" / "tokens.bin")
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.bin: No such file"):
        token_file(tmp_path / "nowhere.bin")
