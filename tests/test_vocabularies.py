"""Tokenizers are read from every form of file that Hugging Face's folders have, with the ids of their writers."""
import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from pyllama.errors import UserError
from pyllama.text import sentencepiece, special
from pyllama.text.tokenizer import Tokenizer
from tests.extras import needs_sentencepiece

TEXTS = ["the cat sat on the mat", "a rat ran", "Hello naïve world, I'm here 12 times"] * 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "Cat", "cafe", "漢", ",", "café"]


def write(folder, **files):
    """Files of a folder: vocab_txt="..." writes vocab.txt."""
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return folder


# Word pieces

def test_a_vocab_txt_is_berts_tokenizer(tmp_path):
    write(tmp_path, vocab_txt="\n".join(WORDS) + "\n")
    for path in tmp_path, tmp_path / "vocab.txt":
        bert = Tokenizer.load(path)
        assert bert.encode("The cats, café 漢!", add_special_tokens=True).tolist() == [2, 5, 6, 7, 11, 9, 10, 1, 3]
        assert (bert.pad_id, bert.mask_id, bert.special_ids) == (0, 4, [0, 1, 2, 3, 4])
        assert special.around(bert, texts=2) == [[2], [3], [3]]
        assert bert.encode("[MASK]", allowed_special="all").tolist() == [4]


def test_settings_say_whether_letters_are_made_small(tmp_path):
    write(tmp_path, vocab_txt="\n".join(WORDS), tokenizer_config_json={"do_lower_case": False})
    assert Tokenizer.load(tmp_path).encode("Cat café").tolist() == [8, 12]


# Byte pairs

@pytest.mark.parametrize(("tokens", "first", "last"), [
    (["<|endoftext|>"], [], []), (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], [0], [2])])
def test_a_vocab_json_with_merges_is_gpt2s_or_robertas_tokenizer(tokens, first, last, tmp_path):
    learned = Tokenizer.byte_pairs(TEXTS, 320, tokens)
    learned.rust.model.save(str(tmp_path))
    merges = tmp_path / "merges.txt"
    merges.write_text("\ufeff" + merges.read_text(encoding="utf-8"), encoding="utf-8")
    for path in tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt":
        loaded = Tokenizer.load(path)
        for text in [*TEXTS, " 日本 \n\n x"]:
            assert loaded.encode(text, add_special_tokens=True).tolist() == [*first, *learned.encode(text), *last]
            assert loaded.decode(loaded.encode(text)) == text
        assert (loaded.eos_id, loaded.special_ids) == (learned.eos_id, learned.special_ids)


def test_added_tokens_keep_the_ids_of_their_file(tmp_path):
    Tokenizer.byte_pairs(TEXTS, 300).rust.model.save(str(tmp_path))
    write(tmp_path, added_tokens_json={"<|im_end|>": 301, "<tool>": 300},
          special_tokens_map_json={"eos_token": "<|im_end|>"})
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("<tool><|im_end|>", allowed_special="all").tolist() == [300, 301]
    assert (loaded.eos_id, loaded.special_ids) == (301, [0, 301])
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").hash == loaded.hash
    write(tmp_path, added_tokens_json={"<tool>": 305})
    with pytest.raises(UserError, match=r"'<tool>' has the id 305 .* but the vocabulary gives it 300"):
        Tokenizer.load(tmp_path)
    stored = {"300": {"content": "<think>", "special": False}}
    write(tmp_path, tokenizer_config_json={"added_tokens_decoder": stored})
    assert Tokenizer.load(tmp_path).encode("<think>").tolist() == [300]


# SentencePiece

def number(value):
    """A varint."""
    return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])


def message(*fields):
    """A message of protocol buffers, from (number, int, float or bytes)."""
    parts = []
    for key, value in fields:
        if isinstance(value, int):
            parts.append(number(key << 3) + number(value))
        elif isinstance(value, float):
            parts.append(number(key << 3 | 5) + struct.pack("<f", value))
        else:
            parts.append(number(key << 3 | 2) + number(len(value)) + value)
    return b"".join(parts)


def model_file(algorithm=2, pieces=("▁", "a", "b", "ab", "▁ab")):
    special_pieces = [message((1, text.encode()), (2, 0.0), (3, kind))
                      for text, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3))]
    ordinary = [message((1, text.encode()), (2, -float(i))) for i, text in enumerate(pieces)]
    trainer, normalizer = message((3, algorithm), (43, 2 ** 64 - 1)), message((3, 1), (4, 0))
    return message(*((1, piece) for piece in special_pieces + ordinary), (2, trainer), (3, normalizer))


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 2 ** 64 - 1) | st.binary(max_size=300))))
def test_a_message_gives_its_fields_back(fields):
    assert [*sentencepiece.fields(message(*fields))] == fields


def test_a_model_is_read_without_the_package(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model_file())
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("ab b", add_special_tokens=True).tolist() == [1, 7, 3, 5]
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.special_ids) == (1, 2, None, [0, 1, 2])
    assert loaded.encode("</s>", allowed_special="all").tolist()[-1] == 2
    assert 2 not in loaded.encode("</s>").tolist()
    write(tmp_path, tokenizer_config_json={"add_bos_token": False, "add_eos_token": True})
    assert special.around(Tokenizer.load(tmp_path)) == [[], [2]]


@pytest.mark.parametrize("content", [b"", b"text", model_file()[:40], model_file(3), b"\x0a\xff",
                                     b"\x0a\x02\x0a\x00"])
def test_what_is_not_such_a_model_is_refused(content, tmp_path):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.model is (not )?a SentencePiece model"):
        Tokenizer.load(tmp_path / "a.model")


HARD = ["Hello world", "  two  spaces ", " lead", "trail ", "a\nb\n\nc\td", "naïve 日本語 😀 𝔘", "ﬁne ½ ① Ａ", "",
        "   ", "<s>x</s>", "▁▁under", "I'm can't", "\u00a0nbsp", "e\u0301", "x" * 50, *TEXTS]
KINDS = {
    "llama": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                  remove_extra_whitespaces=False, vocab_size=400),
    "t5": dict(model_type="unigram", vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "normalized pairs": dict(model_type="bpe", vocab_size=80),
    "symbols": dict(model_type="unigram", vocab_size=340, byte_fallback=True, user_defined_symbols=["<sep>", "at"]),
    "no prefix": dict(model_type="bpe", vocab_size=80, add_dummy_prefix=False)}


@needs_sentencepiece
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
def test_ids_are_those_of_sentencepiece(kind, tmp_path):
    import sentencepiece as library
    file = io.BytesIO()
    library.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 20), model_writer=file, minloglevel=2,
                                       hard_vocab_limit=False, **KINDS[kind])
    (tmp_path / "spiece.model").write_bytes(file.getvalue())
    theirs = library.SentencePieceProcessor(model_proto=file.getvalue())
    ours = Tokenizer.load(tmp_path)
    for text in HARD:
        ids = theirs.encode(text)
        assert ours.encode(text).tolist() == ids
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)
    frame = [[], [1]] if kind == "t5" else [[], [2]] if kind == "symbols" else [[1], []]
    assert special.around(ours) == frame


# Which file

def test_a_tokenizer_json_comes_first_and_other_kinds_are_refused(tmp_path):
    write(tmp_path, vocab_txt="\n".join(WORDS))
    Tokenizer.bytes().save(tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == 256
    (tmp_path / "tokenizer.json").unlink()
    write(tmp_path, vocab_txt="just\nwords\n")
    with pytest.raises(UserError, match=r"vocab\.txt has no unknown token"):
        Tokenizer.load(tmp_path)
    models.BPE({"a</w>": 0, "b": 1}, []).save(str(tmp_path))
    with pytest.raises(UserError, match=r"vocab\.json has tokens that end in </w>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*merges\.txt: No such file.*; vocab\.json needs it beside it"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model_file(1))
    write(tmp_path, config_json={"model_type": "mbart"})
    with pytest.raises(UserError, match=r"kind of model \(.*mbart\) cannot be made from sentencepiece"):
        Tokenizer.load(tmp_path)
