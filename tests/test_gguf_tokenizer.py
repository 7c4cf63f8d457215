"""Tokenizers in GGUF files: they encode as SentencePiece, or as the tokenizer.json they come from, or are refused."""
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

import pyllama
from pyllama import pretrained
from pyllama.errors import UserError
from pyllama.formats import gguf_probe, gguf_tokenizer, gguf_tokenizer_keys, llama2c
from pyllama.formats.gguf_metadata import Metadata
from pyllama.formats.gguf_tokenizer import CONTROL, NORMAL, PREFIX, UNUSED, USER_DEFINED
from pyllama.models import llama
from pyllama.text import frames, special
from pyllama.text.tokenizer import Tokenizer
from tests.extras import needs_sentencepiece
from tests.shared import SHARED, needs

STORIES = SHARED / "fixtures/stories260K"
TEXTS = ["The cat sat on the mat, and the rat ate 1234 oats.\n", "def f(x):\n\treturn x + 10  # the end\n",
         "Il était une fois à l'été; ça va?", "日本語の文字と the Greek αβγ", "I'LL don't we've 12 345 6789"] * 3
HARD = ["", " ", "  two  spaces  ", "the cat's\n\n\nmat 2024!?", "\tthe ▁ mat", "é日🦙\u200b",
        "THE'LL 12345 x=1.5e-3\r\n "]
texts = st.text(max_size=20) | st.text(st.sampled_from("the cat1 29'S\né日."), max_size=20)


def read(metadata, vocab_size=None):
    """(tokenizer, notes) of the keys of a file."""
    size = len(metadata[f"{PREFIX}tokens"]) if vocab_size is None else vocab_size
    return gguf_tokenizer.read(Metadata(Path("model.gguf"), metadata), size)


def again(tokenizer, vocab_size=None, notes=()):
    """The tokenizer, through the keys of a file.  notes: those of writing"""
    size = tokenizer.vocab_size if vocab_size is None else vocab_size
    metadata, written_notes = gguf_tokenizer_keys.written(tokenizer, size)
    assert written_notes == notes
    result, read_notes = read(metadata, size)
    assert read_notes == ()
    return result


def assert_alike(ours, theirs, text):
    for options in ({}, {"add_special_tokens": True}, {"allowed_special": "all"}):
        assert ours.encode(text, **options).tolist() == theirs.encode(text, **options).tolist()


# SentencePiece

@functools.cache
def trained(prefix=True):
    """(SentencePiece's processor of a model like LLaMA's, the keys of its file as llama.cpp's converter has them)"""
    import sentencepiece as library
    file = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=file, minloglevel=2, model_type="bpe", vocab_size=360,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        add_dummy_prefix=prefix, allow_whitespace_only_pieces=True, user_defined_symbols=["<|im_end|>"],
        hard_vocab_limit=False)
    processor = library.SentencePieceProcessor(model_proto=file.getvalue())
    kinds = [(processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6)]
    ids = range(processor.vocab_size())
    types = [next((code for test, code in kinds if test(i)), 4 if processor.id_to_piece(i) == "<|im_end|>" else 1)
             for i in ids]
    return processor, {
        f"{PREFIX}model": "llama", f"{PREFIX}tokens": [processor.id_to_piece(i) for i in ids],
        f"{PREFIX}scores": np.array([processor.get_score(i) for i in ids], np.float32),
        f"{PREFIX}token_type": np.array(types, np.int32), f"{PREFIX}add_space_prefix": prefix,
        **{f"{PREFIX}{name}_token_id": np.uint32(i) for i, name in enumerate(("unknown", "bos", "eos"))}}


library_warns = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")


@needs_sentencepiece
@library_warns
@pytest.mark.parametrize("prefix", [True, False])
@given(text=texts | st.sampled_from(HARD))
def test_a_file_of_pieces_encodes_as_sentencepiece(prefix, text):
    processor, metadata = trained(prefix)
    ours, notes = keyed(prefix)
    assert notes == ()
    ids = processor.encode(text)
    assert ours.encode(text).tolist() == ids
    assert ours.decode(ids) == processor.decode(ids)
    assert ours.encode(text, add_special_tokens=True).tolist() == [1, *ids]
    pieces = gguf_tokenizer.read_vocabulary(Metadata(Path("m"), metadata), len(metadata[f"{PREFIX}tokens"]), "llama")
    if text:
        assert gguf_probe.merged(gguf_probe.SPACE * prefix + text.replace(" ", gguf_probe.SPACE), pieces) == ids


@functools.cache
def keyed(prefix):
    return read(trained(prefix)[1])


@needs_sentencepiece
@library_warns
@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_are_written_as_they_were_read(prefix):
    metadata = trained(prefix)[1]
    ours, _ = read(metadata)
    written, notes = gguf_tokenizer_keys.written(ours, len(metadata[f"{PREFIX}tokens"]))
    assert notes == ()
    assert written.pop(f"{PREFIX}add_bos_token")
    assert not written.pop(f"{PREFIX}add_eos_token")
    scores, theirs = written.pop(f"{PREFIX}scores"), metadata[f"{PREFIX}scores"]
    normal = np.flatnonzero(metadata[f"{PREFIX}token_type"] == NORMAL)
    merging = [i for i in normal if len(metadata[f"{PREFIX}tokens"][i]) > 1]
    np.testing.assert_array_equal(np.argsort(-scores[merging]), np.argsort(-theirs[merging]))
    for key, value in written.items():
        np.testing.assert_array_equal(value, metadata[key], err_msg=key)
    other, _ = read({**written, f"{PREFIX}scores": scores})
    for text in (*TEXTS, *HARD):
        assert_alike(other, ours, text)


@needs_sentencepiece
@library_warns
def test_the_probe_finds_scores_that_are_missing_or_equal():
    metadata = trained()[1]
    scores = metadata[f"{PREFIX}scores"]
    for equal in (np.zeros_like(scores), scores // 50):
        _, notes = read({**metadata, f"{PREFIX}scores": equal})
        assert "otherwise than llama.cpp, as where pieces have equal scores; give the tokenizer.json" in notes[0]
    _, notes = read({key: value for key, value in metadata.items() if key != f"{PREFIX}scores"})
    assert len(notes) == 1


@needs_sentencepiece
@library_warns
def test_a_file_without_types_and_ids_has_llamas_usual_ones():
    """As the first files: <unk>, <s> and </s> are 0, 1 and 2, and a space comes before a text."""
    metadata = trained()[1]
    ids = {f"{PREFIX}add_space_prefix", *(f"{PREFIX}{name}_token_id" for name in ("unknown", "bos", "eos"))}
    without, _ = read({key: value for key, value in metadata.items() if key not in ids})
    assert (without.bos_id, without.eos_id) == (1, 2)
    assert without.encode("the cat", add_special_tokens=True).tolist() == [1, *trained()[0].encode("the cat")]
    ours, _ = read({key: value for key, value in metadata.items() if key != f"{PREFIX}token_type"})
    for text in HARD:
        assert_alike(ours, keyed(True)[0], text)


@needs(STORIES)
def test_llama2cs_tokenizer_comes_back():
    tokenizer = llama2c.read_tokenizer(STORIES / "tok512.bin")
    ours = again(tokenizer)
    for text in (*TEXTS, *HARD):
        assert_alike(ours, tokenizer, text)
    assert ours.settings == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


# Byte-level byte pairs

# As the tokenizer.json of LLaMA 3 has it.
LLAMA3 = {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                 r"\s*[\r\n]+|\s+(?!\S)|\s+"}},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
SPLITS = {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
          "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                             pre_tokenizers.ByteLevel(add_prefix_space=False)]), "llama-bpe": None}
MARKS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


@functools.cache
def byte_pairs(name):
    """A tokenizer as others write it: special tokens behind the others, one that is not special, a start token."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = SPLITS[name] or pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if name == "llama-bpe":
        stored = json.loads(rust.to_str())
        stored["pre_tokenizer"] = LLAMA3
        stored["model"]["ignore_merges"] = True
        rust = tokenizers.Tokenizer.from_str(json.dumps(stored))
    rust.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    rust.add_tokens([AddedToken("<tool>", normalized=False)])
    return Tokenizer(frames.framed(rust, MARKS[0], None), {"eos_token": "<|end_of_text|>", "chat_template": "{{ x }}"})


@pytest.mark.parametrize("name", SPLITS)
@example(text="a<|eot_id|>b <tool>c")
@example(text="I'LL wE'Ve ſ's 1234567")
@given(text=texts | st.sampled_from(HARD))
def test_byte_pairs_come_back(name, text):
    assert_alike(came_back(name), byte_pairs(name), text)


@functools.cache
def came_back(name):
    tokenizer = byte_pairs(name)
    metadata, notes = gguf_tokenizer_keys.written(tokenizer, tokenizer.vocab_size + 3)
    assert notes == ()
    assert (metadata[f"{PREFIX}model"], metadata[f"{PREFIX}pre"]) == ("gpt2", name)
    assert metadata[f"{PREFIX}tokens"][-3:] == [f"[PAD{tokenizer.vocab_size + i}]" for i in range(3)]
    assert metadata[f"{PREFIX}token_type"][-7:].tolist() == [CONTROL] * 3 + [USER_DEFINED] + [UNUSED] * 3
    ours, _ = read(metadata)
    assert json.loads(ours.rust.to_str())["model"]["ignore_merges"] == (name == "llama-bpe")
    assert ours.vocab_size == tokenizer.vocab_size
    assert ours.settings["chat_template"] == "{{ x }}"
    assert (ours.bos_id, ours.eos_id, ours.special_ids) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.special_ids)
    return ours


def test_the_usual_frame_is_that_of_llama_cpp():
    """A file of LLaMA 3 that does not say whether texts begin with the start token means that they do."""
    for name, begin in (("llama-bpe", True), ("gpt-2", False)):
        metadata, _ = gguf_tokenizer_keys.written(byte_pairs(name), byte_pairs(name).vocab_size)
        ours, _ = read({key: value for key, value in metadata.items() if key != f"{PREFIX}add_bos_token"})
        assert special.around(ours)[0] == [ours.bos_id] * begin
        ours, _ = read({**metadata, f"{PREFIX}add_bos_token": False, f"{PREFIX}add_eos_token": True})
        assert special.around(ours) == [[], [ours.eos_id]]


def test_our_own_byte_pairs_and_bytes_come_back():
    for tokenizer, notes in ((special.byte_pairs(TEXTS, 300, ["<mask>"]), ()), (Tokenizer.bytes(), ENDLESS)):
        ours = again(tokenizer, notes=notes)
        for text in (*TEXTS, *HARD):
            assert_alike(ours, tokenizer, text)


ENDLESS = ("the tokenizer has no end token, so llama.cpp takes the token 'ċ' for it; run it with --ignore-eos",)


# Characters

@given(text=st.text(st.sampled_from("abc !é\n日"), max_size=9))
def test_characters_come_back(text):
    tokenizer = Tokenizer.characters("abc !é\n日")
    metadata, notes = gguf_tokenizer_keys.written(tokenizer, 8)
    assert notes == ("the tokenizer has no end token, so llama.cpp takes the token '!' for it; run it with "
                     "--ignore-eos",)
    assert metadata[f"{PREFIX}tokens"] == ["\n", "▁", "!", "a", "b", "c", "é", "日"]
    assert not metadata[f"{PREFIX}add_space_prefix"]
    assert not metadata[f"{PREFIX}add_bos_token"]
    ours, read_notes = read(metadata)
    assert read_notes == ()
    assert ours.rust.to_str() == tokenizer.rust.to_str()
    assert ours.decode(ours.encode(text)) == text
    pieces = gguf_tokenizer.read_vocabulary(Metadata(Path("m"), metadata), 8, "llama")
    assert gguf_probe.merged(text.replace(" ", "▁"), pieces) == tokenizer.encode(text).tolist()


# Refused

def test_a_tokenizer_that_cannot_be_read_is_refused_by_name_and_another_can_be_given(tmp_path):
    tokenizer = byte_pairs("gpt-2")
    c = llama.LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                          num_attention_heads=1, max_position_embeddings=8)
    model = pretrained.Model(c, llama.init(c), tokenizer)
    original = gguf_tokenizer_keys.written

    def as_old(*arguments):
        metadata, notes = original(*arguments)
        del metadata[f"{PREFIX}pre"]
        return metadata, notes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_tokenizer_keys, "written", as_old)
        model.save(tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"in .*model\.gguf splits texts by no rule that it names, as old files do, but "
                                        r"gpt-2, llama-bpe, smollm are read; give another tokenizer with `tokenizer`"):
        pyllama.load(tmp_path / "model.gguf")
    tokenizer.save(tmp_path)
    loaded = pyllama.load(tmp_path / "model.gguf", tokenizer=tmp_path / "tokenizer.json")
    assert_alike(loaded.tokenizer, tokenizer, TEXTS[0])


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": "bert"}, "has a tokenizer of the kind 'bert', but llama and gpt2 are read"),
    ({"pre": "tekken"}, "splits texts by the rule 'tekken', but gpt-2, llama-bpe, smollm are read"),
    ({"pre": "default"}, "splits texts by the rule 'default'"),
    ({"tokens": None}, r"lacks tokenizer\.ggml\.tokens; convert the model again"),
    ({"merges": None}, r"lacks tokenizer\.ggml\.merges"),
    *(({"merges": [merge]}, f"has the merge '{merge}', but no such tokens") for merge in ("a b c", "zz qq", "a", "")),
    ({"token_type": np.zeros(3, np.int32)}, "has tokenizer.ggml.token_type = .* must be a list of 334 numbers"),
    ({"scores": np.array([np.nan] * 334)}, "has tokenizer.ggml.scores = .* must be a list of 334 numbers"),
    ({"bos_token_id": np.uint32(334)}, "has tokenizer.ggml.bos_token_id = 334, outside the vocabulary of 334"),
    ({"add_bos_token": np.uint8(1)}, r"has tokenizer\.ggml\.add_bos_token = 1, but it must be true or false"),
])
def test_keys_that_contradict_each_other_are_refused(changes, message):
    metadata, _ = gguf_tokenizer_keys.written(byte_pairs("gpt-2"), 334)
    for name, value in changes.items():
        metadata[PREFIX + name] = value
        if value is None:
            del metadata[PREFIX + name]
    with pytest.raises(UserError, match=rf"model\.gguf {message}"):
        read(metadata, 334)


def test_tokens_that_are_missing_or_twice_are_refused():
    metadata, _ = gguf_tokenizer_keys.written(byte_pairs("gpt-2"), 334)
    tokens = metadata[f"{PREFIX}tokens"]
    with pytest.raises(UserError, match="has 334 tokens, but embeddings of 333"):
        read(metadata, 333)
    with pytest.raises(UserError, match="has the token 'the' twice"):
        read({**metadata, f"{PREFIX}tokens": ["the", "the", *tokens[2:]]})
    with pytest.raises(UserError, match="has a token of 1,000,000 characters, but 1,000 are read; give another"):
        read({**metadata, f"{PREFIX}tokens": ["a" * 10**6, *tokens[1:]]})
    with pytest.raises(UserError, match="lacks the byte 33;"):
        read({**metadata, f"{PREFIX}tokens": ["one more", *tokens[1:]]})
    pieces = {f"{PREFIX}model": "llama", f"{PREFIX}tokens": ["<unk>", "<0x00>", "ab"],
              f"{PREFIX}token_type": np.array([2, 6, 1])}
    with pytest.raises(UserError, match="lacks the byte <0x01>"):
        read(pieces)
    with pytest.raises(UserError, match="has no unknown token"):
        read({**pieces, f"{PREFIX}token_type": np.array([1, 1, 1])})


def changed(name, change):
    stored = json.loads(byte_pairs(name).rust.to_str())
    change(stored)
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stored)))


def other_merges():
    """Byte pairs with byte fallback, learned by Hugging Face's library, which has one merge for each piece."""
    rust = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=420, show_progress=False, special_tokens=["<unk>", *sorted(gguf_tokenizer.HEX)]))
    return Tokenizer(rust)


REFUSED = {
    "NFC": (lambda: changed("gpt-2", lambda stored: stored.update(normalizer={"type": "NFC"})), "no such tokenizer"),
    "words": (lambda: Tokenizer.words(["a b c"], 9), "no such tokenizer"),
    "white space": (lambda: special.separate_words(TEXTS, 300), "no such tokenizer"),
    "another prefix": (lambda: changed("gpt-2", lambda stored: stored["pre_tokenizer"].update(add_prefix_space=True)),
                       "no such tokenizer"),
    "merges first": (lambda: changed("llama-bpe", lambda stored: stored["model"].update(ignore_merges=False)),
                     "no such tokenizer"),
    "▁ as a character": (lambda: Tokenizer.characters("a▁"), "has the character '▁', by which GGUF files write"),
    "another frame": (lambda: Tokenizer(framed_twice(byte_pairs("gpt-2").rust)), "puts other special tokens around"),
    "other merges": (other_merges, "the merges of the tokenizer are not SentencePiece's"),
}


def framed_twice(rust):
    rust = tokenizers.Tokenizer.from_str(rust.to_str())
    rust.post_processor = processors.TemplateProcessing(
        f"{MARKS[0]} {MARKS[2]} $A", special_tokens=[(mark, rust.token_to_id(mark)) for mark in MARKS])
    return rust


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_llama_cpp_cannot_have_is_not_written(name):
    make, message = REFUSED[name]
    tokenizer = make()
    with pytest.raises(UserError, match=rf"{message}.*; save the model as a folder"):
        gguf_tokenizer_keys.written(tokenizer, tokenizer.vocab_size)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_not_written():
    with pytest.raises(UserError, match="the tokenizer has 256 tokens but the model embeddings of 255; save"):
        gguf_tokenizer_keys.written(Tokenizer.bytes(), 255)


@needs(STORIES)
def test_it_is_said_where_llama_cpp_reads_a_text_otherwise():
    """A pre-tokenizer that puts no space before a text that has one; llama.cpp always puts one."""
    stored = json.loads(llama2c.read_tokenizer(STORIES / "tok512.bin").rust.to_str())
    stored["normalizer"] = None
    stored["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stored)))
    _, notes = gguf_tokenizer_keys.written(tokenizer, 512)
    assert len(notes) == 1
    assert notes[0].startswith("llama.cpp will read ' Hello,")


def test_the_keys_are_those_of_the_package_gguf():
    theirs = pytest.importorskip("gguf", reason="needs the package gguf to compare with")
    keys = {value for value in vars(theirs.Keys.Tokenizer).values() if isinstance(value, str)}
    for tokenizer in (byte_pairs("gpt-2"), Tokenizer.characters("abcd")):
        metadata, _ = gguf_tokenizer_keys.written(tokenizer, tokenizer.vocab_size)
        assert metadata.keys() <= keys
    types = {kind.name: kind.value for kind in theirs.TokenType}
    assert [types[name] for name in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")] == \
        [NORMAL, gguf_tokenizer.UNKNOWN, CONTROL, USER_DEFINED, UNUSED, gguf_tokenizer.BYTE]
