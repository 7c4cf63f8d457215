"""Tokenizers decode what they encode, agree with the library on the same file, and explain errors."""
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pyllama.errors import UserError
from pyllama.text import tokenizer as module
from pyllama.text.ordinary import ordinary
from pyllama.text.tokenizer import Tokenizer

SAMPLE = "It's the cat's; the cat sat on the mat.\nThe rat ran at 12 o'clock\n\n  naïve 漢字 漢字 😀\r\n" * 3
SPACES = " \n\n  \t\n\n'\n \r\n.\n" * 3                              # so that byte pairs hold runs of white space
KINDS = {"characters": Tokenizer.characters(SAMPLE), "bytes": Tokenizer.bytes(),
         "byte_pairs": Tokenizer.byte_pairs([SAMPLE, SPACES], 300)}
BYTES, PAIRS = KINDS["bytes"], KINDS["byte_pairs"]
kinds = pytest.mark.parametrize("kind", KINDS)

# Newlines, spaces, quotes and letters side by side: where GPT-2's pattern could see across a cut.
tricky = st.text(st.sampled_from("ab '\n\r\t.1é漢\u2028\x1c\x85")).map(lambda text: text.replace("1", "<|endoftext|>"))
sampled = st.text(st.sampled_from(sorted(set(SAMPLE))))


# Round trips

@given(st.text() | tricky)
def test_bytes_and_byte_pairs_give_any_text_back(text):
    assert bytes(BYTES.encode(text).tolist()) == text.encode()
    assert BYTES.decode(BYTES.encode(text)) == text
    assert PAIRS.decode(PAIRS.encode(text)) == text


@given(st.data(), st.text(min_size=1))
def test_characters_give_text_over_their_vocabulary_back_in_code_point_order(data, text):
    characters = Tokenizer.characters(text)
    other = data.draw(st.text(st.sampled_from(text)))
    assert characters.decode(characters.encode(other)) == other
    assert characters.encode("".join(sorted(set(text)))).tolist() == list(range(characters.vocab_size))


@pytest.mark.parametrize("name", ["quickstart/lm_zh_classics.txt", "tinyshakespeare/input.txt"])
def test_corpora_come_back(name):
    path = Path(__file__).parents[2] / "shared/data" / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    text = path.read_bytes().decode()
    for tokenizer in (Tokenizer.characters(text), BYTES, PAIRS):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@kinds
def test_ids_are_of_the_smallest_unsigned_type(kind):
    assert KINDS[kind].encode("").dtype == KINDS[kind].encode("cat").dtype == np.uint16
    assert KINDS[kind].encode("").shape == (0,)


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_a_vocabulary_above_65536_takes_32_bits(size, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + size)))
    ids = Tokenizer.characters(text).encode(text)
    assert ids.dtype == dtype
    assert ids[-1] == size - 1


# Agreement with the library

@kinds
@given(text=sampled)
def test_ids_are_the_librarys(kind, text):
    tokenizer = KINDS[kind]
    assert tokenizer.encode(text).tolist() == tokenizer.rust.encode(text).ids


@given(st.lists(tricky, max_size=5))
def test_a_text_cut_for_speed_has_the_ids_of_the_whole(texts):
    with mock.patch.multiple(module, PIECE=1, AT_ONCE=2):
        encoded = PAIRS.encode_batch(texts)
    plain = ordinary(PAIRS.rust)
    assert [ids.tolist() for ids in encoded] == [plain.encode(text).ids for text in texts]


@kinds
@given(text=tricky.filter(lambda text: set(text) <= set(SAMPLE)) | sampled)
def test_the_parts_of_a_text_are_the_whole(kind, text):
    with mock.patch.multiple(module, PIECE=1, PARTS=2):
        parts = [*KINDS[kind].encode_in_parts(text)]
    assert np.concatenate([np.zeros(0, int), *parts]).tolist() == KINDS[kind].encode(text).tolist()


@pytest.mark.parametrize("text", ["abc\nbé漢", "ab\n\ud83d", "😀"])
def test_an_error_in_a_part_has_the_place_in_the_whole(text):
    letters = Tokenizer.characters("abc\n")
    with pytest.raises(UserError) as whole:
        letters.encode(text)
    with mock.patch.multiple(module, PIECE=1, PARTS=1), pytest.raises(UserError) as part:
        list(letters.encode_in_parts(text))
    assert str(part.value) == str(whole.value)


@pytest.mark.parametrize(("before", "normalizer"), [
    (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), None),         # merges span newlines
    (pre_tokenizers.ByteLevel(add_prefix_space=True), None),                            # a text starts differently
    (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Prepend("_")),
    (pre_tokenizers.Metaspace(), None),
    (None, None),
])
def test_a_text_is_cut_only_for_a_tokenizer_that_does_not_see_it(before, normalizer):
    rust = tokenizers.Tokenizer(models.BPE())
    if before:
        rust.pre_tokenizer = before
    if normalizer:
        rust.normalizer = normalizer
    rust.train_from_iterator(["cat\nrat\ncat\nrat"], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    text = "cat\nrat\n" * module.PIECE
    assert len(PAIRS._pieces(text)) > 1
    assert Tokenizer(rust)._pieces(text) == [text]


@kinds
def test_a_saved_tokenizer_is_a_tokenizer_json_and_comes_back_the_same(kind, tmp_path):
    KINDS[kind].save(tmp_path / "deep")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "deep" / "tokenizer.json"))
    ids = KINDS[kind].encode(SAMPLE).tolist()
    assert library.encode(SAMPLE).ids == ids
    assert library.decode(ids) == SAMPLE
    for path in (tmp_path / "deep", tmp_path / "deep" / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.hash == KINDS[kind].hash
        assert loaded.encode(SAMPLE).tolist() == ids


def test_hash_depends_on_what_a_file_says_not_on_how(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(PAIRS.rust.to_str()), sort_keys=True, indent=7))
    assert Tokenizer.load(file).hash == PAIRS.hash
    assert Tokenizer.characters("abc").hash != Tokenizer.characters("abd").hash


def test_a_file_that_asks_to_cut_and_pad_does_not_shorten_a_corpus(tmp_path):
    rust = tokenizers.Tokenizer.from_str(PAIRS.rust.to_str())
    rust.enable_truncation(4)
    rust.enable_padding(length=4)
    rust.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(SAMPLE).tolist() == PAIRS.encode(SAMPLE).tolist()
    assert loaded.encode("a").size == 1
    assert loaded.hash == PAIRS.hash


# Byte pairs and special tokens

def test_byte_pairs_are_learned_the_same_every_time():
    tied = "ab cd ef gh " * 5                                           # every pair is equally frequent
    assert len({Tokenizer.byte_pairs([tied, SAMPLE], 290).hash for _ in range(5)}) == 1


def test_byte_pairs_keep_to_the_size_asked():
    assert PAIRS.vocab_size == 300
    assert Tokenizer.byte_pairs(["aa"], 300, special=()).vocab_size == 257
    assert Tokenizer.byte_pairs(["aa"], 258, special=["<s>", "</s>"]).vocab_size == 258
    with pytest.raises(UserError, match=r"vocab_size 257 is too small.*258"):
        Tokenizer.byte_pairs(["aa"], 257, special=["<s>", "</s>"])


@pytest.mark.parametrize(("special", "eos", "bos"), [
    (["<|endoftext|>"], 0, 0),                                          # GPT-2
    (["<unk>", "<s>", "</s>"], 2, 1),                                   # LLaMA
    (["<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>"], 2, 1),     # LLaMA 3
    (["<pad>"], None, None),
    ([], None, None),
])
def test_end_and_start_of_text_go_by_their_usual_names(special, eos, bos):
    tokenizer = Tokenizer.byte_pairs(["some text"], 270, special)
    assert (tokenizer.eos_id, tokenizer.bos_id) == (eos, bos)


def test_an_ordinary_word_that_spells_an_end_of_text_is_none():
    html = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    html.add_tokens(["</s>"])
    assert (Tokenizer(html).eos_id, Tokenizer(html).bos_id) == (None, None)


def test_a_special_token_spelled_out_is_that_token_only_if_allowed():
    text = "cat<|endoftext|>rat"
    for allowed, count in ((), 0), ((), 0), ("all", 1), (["<|endoftext|>"], 1), (["<|other|>"], 0):
        ids = PAIRS.encode(text, allowed_special=allowed)
        assert (ids == PAIRS.eos_id).sum() == count
        assert PAIRS.decode(ids) == text
        assert PAIRS.decode(ids, skip_special_tokens=True) == ("catrat" if count else text)


def test_special_tokens_are_added_only_when_asked():
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(PAIRS.rust.to_str()))
    tokenizer.rust.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    for text in ("cat", "cat\nrat\n" * 9):
        plain = PAIRS.encode(text).tolist()
        with mock.patch.object(module, "PIECE", 1):                     # cut or not, a text has one beginning
            assert tokenizer.encode(text).tolist() == plain
            assert tokenizer.encode(text, add_special_tokens=True).tolist() == [0, *plain]


def test_vocab_size_is_the_rows_an_embedding_needs():
    gap = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a")))
    assert gap.vocab_size == 6


# Decoding id by id

@pytest.mark.parametrize("tokenizer", [BYTES, PAIRS], ids=["bytes", "byte_pairs"])
@given(data=st.data())
def test_a_stream_adds_up_to_the_text_of_any_ids(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special_tokens=skip)
    assert "".join([stream.push(i) for i in ids] + [stream.flush()]) == tokenizer.decode(ids, skip)


@given(st.text())
def test_a_stream_shows_each_character_when_its_last_byte_comes(text):
    text = text.replace("\ufffd", "")                                   # which looks like half a character
    stream = BYTES.stream()
    for character in text:
        *begun, last = (stream.push(i) for i in character.encode())
        assert [*begun, last] == [""] * len(begun) + [character]
    assert stream.flush() == ""


def test_a_stream_keeps_the_space_that_a_decoder_strips_at_the_start():
    rust = tokenizers.Tokenizer(models.WordLevel({"▁to": 0, "▁be": 1}, unk_token="▁to"))
    rust.decoder = decoders.Metaspace()
    stream = Tokenizer(rust).stream()
    assert [stream.push(i) for i in (0, 1, 0)] == ["to", " be", " to"]


def test_half_a_character_shows_as_a_replacement():
    ids = BYTES.encode("漢字")
    assert BYTES.decode(ids[1:4]) == "\ufffd\ufffd\ufffd"               # two stray ends and one beginning
    assert BYTES.decode(ids[:5]) == "漢\ufffd"


# What is wrong

@pytest.mark.parametrize("loaded", [False, True])
def test_a_missing_character_is_named_with_its_place(loaded, tmp_path):
    tokenizer = Tokenizer.characters("abc\n")
    if loaded:
        tokenizer.save(tmp_path)
        tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"no 'é' \(U\+00E9\) at position 5 \(line 2\).*byte-level"):
        tokenizer.encode("abc\nbé漢")
    with pytest.raises(UserError, match=r"no '😀' \(U\+1F600\) at position 0 \(line 1\)"):
        tokenizer.encode("😀")


@kinds
def test_half_a_surrogate_pair_is_no_text(kind):
    with pytest.raises(UserError, match=r"U\+D83D at position 2 \(line 2\)"):
        KINDS[kind].encode("a\n\ud83d")


def test_a_word_tokenizer_without_unknown_token_says_so():
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"cat": 0}, unk_token="?")))
    with pytest.raises(UserError, match="cannot encode this text"):
        tokenizer.encode("rat")


@pytest.mark.parametrize("wrong", [-100, -1, 256, 2**40])
def test_an_id_outside_the_vocabulary_is_named(wrong):
    with pytest.raises(IndexError, match=f"id {wrong} is outside the vocabulary of 256 tokens"):
        BYTES.decode([65, wrong, 66])


@pytest.mark.parametrize("content", [b"", b"not JSON", b"[]", b"{}", b'{"model": {"type": "Magic"}}', b"\xff\xfe\x00"])
def test_a_file_that_is_not_a_tokenizer_json_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_missing_file_and_an_empty_text_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json: No such file"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="the text is empty"):
        Tokenizer.characters("")
