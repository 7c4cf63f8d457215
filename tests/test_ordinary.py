"""Texts are data: no special token appears because a text spells it, and no character disappears."""
import gc
import json
import weakref

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.text import special
from pyllama.text.ordinary import Alphabet, ordinary
from pyllama.text.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "[SEP]"]
SAMPLE = ["the cat sat on the mat", "<s>a rat</s> ran [SEP] here", "</s></s><unk> <pad>"]
LETTERS = sorted(set("".join(SAMPLE)))


def byte_pairs():
    return special.framed(Tokenizer.byte_pairs(SAMPLE, 320, SPECIAL)).rust


def byte_pairs_that_merge_a_special_token():
    merges = [("<", "s"), ("<s", ">"), ("<s>", "a")]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *LETTERS, "<s", "<s>a"]))}
    rust = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    rust.add_special_tokens(SPECIAL)
    return rust


def unigram():
    rust = tokenizers.Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL),
                                                *((letter, -3.0) for letter in LETTERS)], unk_id=3))
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    rust.add_special_tokens(SPECIAL)
    return rust


def words():
    rust = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, "cat", "the"])}, "<unk>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens(SPECIAL)
    return rust


def word_pieces():
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    rust.normalizer, rust.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.WhitespaceSplit()
    rust.train_from_iterator(SAMPLE, trainers.WordPieceTrainer(special_tokens=SPECIAL, show_progress=False))
    rust.post_processor = processors.BertProcessing(("[SEP]", 4), ("<s>", 1))
    return rust


def with_tokens_behind():
    """Special tokens that are not in the model's vocabulary, with an ordinary added token between them."""
    rust = tokenizers.Tokenizer.from_str(Tokenizer.bytes().rust.to_str())
    rust.add_special_tokens(["<s>"])
    rust.add_tokens(["<tool>"])
    rust.add_special_tokens(["</s>"])
    return rust


ALL = [byte_pairs, byte_pairs_that_merge_a_special_token, unigram, words, word_pieces, with_tokens_behind]
on_all = pytest.mark.parametrize("made", ALL, ids=lambda made: made.__name__)
spelled = st.lists(st.sampled_from([*SPECIAL, *"the cat", "<", "s>", "\n"]), max_size=12).map("".join)


@on_all
@given(text=spelled)
def test_a_text_never_becomes_a_special_token_other_than_the_unknown_one(made, text):
    tokenizer = Tokenizer(made())
    unknown = tokenizer.rust.token_to_id("<unk>")
    assert set(tokenizer.encode(text).tolist()).isdisjoint({*tokenizer.special_ids} - {unknown})
    [(ids, _)] = tokenizer.encode_with_positions([text])
    np.testing.assert_array_equal(ids, tokenizer.encode(text))


@on_all
@given(text=st.text(st.sampled_from("thec at\n")))
def test_a_text_that_spells_none_has_the_ids_of_the_library(made, text):
    rust = made()
    assert Tokenizer(rust).encode(text, add_special_tokens=True).tolist() == rust.encode(text).ids
    assert ordinary(rust).encode(text).ids == rust.encode(text).ids


@on_all
def test_allowed_special_tokens_are_those_of_the_library(made):
    rust, text = made(), "the cat</s> the<s> cat</s>"
    tokenizer = Tokenizer(rust)
    assert tokenizer.encode(text, allowed_special="all").tolist() == rust.encode(text, add_special_tokens=False).ids
    ids = tokenizer.encode(text, allowed_special=["</s>"]).tolist()
    assert ids.count(rust.token_to_id("</s>")) == 2
    assert rust.token_to_id("<s>") not in ids


def test_every_token_keeps_its_id_and_ordinary_added_tokens_are_still_found():
    rust = with_tokens_behind()
    ids = Tokenizer(rust).encode("<s><tool></s>").tolist()
    assert ids == [*b"<s>", rust.token_to_id("<tool>"), *b"</s>"]


def test_a_special_token_that_is_found_after_normalization_is_hidden_too():
    rust = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1}, "<unk>"))
    rust.normalizer, rust.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    rust.add_special_tokens([tokenizers.AddedToken("<s>", normalized=True, special=True)])
    assert rust.encode("<S>").ids == [0]
    assert Tokenizer(rust).encode("<S>").tolist() == [1]


def test_a_prompt_may_spell_special_tokens_and_gets_none_behind_it():
    tokenizer = special.framed(Tokenizer.byte_pairs(SAMPLE, 320, [*SPECIAL, "<|im_start|>"]))
    start = tokenizer.rust.token_to_id("<|im_start|>")
    assert special.prompt(tokenizer, "<|im_start|>") == [1, start]
    assert special.prompt(tokenizer, "") == [1]
    assert special.prompt(tokenizer, "the</s>")[-1] == 2                # the user's own stays


# Characters that would be lost

def lossy(vocabulary, **options):
    rust = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], **options))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    return rust


def byte_level_without(lost):
    alphabet = [byte for byte in pre_tokenizers.ByteLevel.alphabet() if byte != lost]
    rust = lossy(alphabet)
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return rust


FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize(("rust", "text", "lost"), [
    (lossy("abc"), "ab ät", "ä"), (lossy("abc"), "a\nb日", "日"),
    (lossy([*FALLBACK[:100], "a"], byte_fallback=True), "é", "é"),
    (byte_level_without("Ġ"), "ab cd", " "), (byte_level_without("Ã"), "aé", "é")])
def test_a_character_that_would_be_dropped_is_refused_with_its_place(rust, text, lost):
    tokenizer, line = Tokenizer(rust), text.count("\n", 0, text.index(lost)) + 1
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_with_positions([text])):
        with pytest.raises(UserError, match=rf"no '{lost}' \(U\+{ord(lost):04X}\) at position {text.index(lost)} "
                                            rf"\(line {line}\).*byte-level"):
            encode(text)


@pytest.mark.parametrize("rust", [
    lossy(["a", "?"], unk_token="?"), lossy([*FALLBACK, "a"], byte_fallback=True), byte_level_without(None), words(),
    lossy(["a", "é</w>"], end_of_word_suffix="</w>"), lossy(["a", "##é"], continuing_subword_prefix="##")])
def test_a_character_that_is_encoded_or_unknown_is_not_refused(rust):
    assert Alphabet(rust).missing("aé") is None


def test_a_tokenizer_that_nobody_uses_is_freed():
    tokenizer = Tokenizer(lossy("abc"))
    tokenizer.rust.add_special_tokens(["<s>"])
    with pytest.raises(UserError, match="has no '<'"):
        tokenizer.encode("a<s>")
    references = [weakref.ref(tokenizer), weakref.ref(tokenizer._alphabet)]
    del tokenizer
    gc.collect()                                            # of the error's traceback
    assert [reference() for reference in references] == [None, None]


def test_what_the_normalizer_and_the_pre_tokenizer_remove_is_not_lost():
    rust = lossy("ae")
    rust.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    assert Tokenizer(rust).encode("a \n é").tolist() == [0, 1]


def test_html_tags_in_rows_are_learnt_as_text(tmp_path, capsys):
    rows = [{"source": f"<s>old</s> new {i % 3}", "corrected": f"<s>old</s> new {i % 3}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    assert main(["finetune", "--task", "write", "--model", "transformer", "--data", str(tmp_path / "rows.jsonl"),
                 "--out_dir", str(run), "--max_steps", "1", "--vocab_size", "300", "--max_length", "24",
                 "--fields", "source", "corrected"]) == 0
    tokenizer = Tokenizer.load(run / "checkpoints/step-00000001")
    for row in rows[:3]:
        ids, = special.encode(tokenizer, [row["source"]])
        assert (ids[0], ids[-1]) == (1, 2)
        assert set(ids[1:-1].tolist()).isdisjoint(tokenizer.special_ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["source"]
    capsys.readouterr()
