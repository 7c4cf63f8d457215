"""A text that is cut at the borders of a tokenizer has the tokens of the whole."""
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Rust

from pyllama.text import borders
from pyllama.text import tokenizer as module
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import text_run

SAMPLE = ["the cat sat on the mat", "a rat  ran\naway é 漢字 the cats", "x\n\ny the  the"] * 4


def trained(model, trainer, normalizer=None, before=None):
    rust = Rust(model)
    if normalizer:
        rust.normalizer = normalizer
    if before:
        rust.pre_tokenizer = before
    rust.train_from_iterator(SAMPLE, trainer)
    return rust


def word_pieces():
    rust = trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False),
        normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer())
    rust.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return rust


def unigram(scheme="always"):
    return trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>",
                                                            show_progress=False),
                   normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(),
                                         normalizers.Replace(Regex(" {2,}"), " ")]),
                   pre_tokenizers.Metaspace(prepend_scheme=scheme))


def llama(**options):
    words = ["<unk>", *sorted({*"".join(SAMPLE), "▁"}), "▁t", "▁th", "▁the", "at", "cat", "▁▁"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "t"), ("c", "at"), ("▁", "▁")]
    rust = Rust(models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True,
                           **options))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.add_special_tokens(["<unk>"])
    return rust


CUT = {"word pieces": word_pieces, "unigram": unigram, "llama": llama}
PARTS = ["the", "cat", "s", " ", "  ", "\n", "é", "e\u0301", "漢", "_", "?", "▁", "\u0301", "x"]
text = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)


@pytest.mark.parametrize("kind", CUT)
@given(text=text)
def test_the_parts_have_the_tokens_of_the_whole(kind, text):
    tokenizer = Tokenizer(CUT[kind]())
    with mock.patch.multiple(module, PIECE=1, PARTS=1):
        assert tokenizer.encode(text).tolist() == tokenizer.rust.encode(text, add_special_tokens=False).ids
        parts = [i for ids in tokenizer.encode_in_parts(text) for i in ids.tolist()]
    assert parts == tokenizer.rust.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", CUT)
def test_such_a_text_is_cut(kind):
    tokenizer = Tokenizer(CUT[kind]())
    with mock.patch.object(module, "PIECE", 5):
        pieces = tokenizer._pieces("the cat\nthe cat sat\nthe cat")
    assert len(pieces) > 1
    assert "".join(pieces).replace(" ", "") == "thecat\nthecatsat\nthecat"


def crossing():
    rust = llama()
    rust.add_tokens(["t s"])
    return rust


def across_spaces():
    rust = Rust(models.BPE({"<unk>": 0, "▁": 1, "a": 2, "a▁": 3}, [("a", "▁")], unk_token="<unk>"))
    rust.normalizer = llama().normalizer
    return rust


@pytest.mark.parametrize("made", [crossing, across_spaces, lambda: unigram("never"), lambda: llama(ignore_merges=True)])
def test_nothing_is_cut_where_a_token_may_cross(made):
    assert borders.border(made()) is None


@given(st.lists(st.lists(st.sampled_from([*PARTS, "\t", "\u00a0", "\u3000", "'s", "!\x1c"]), max_size=30).map("".join)))
def test_words_are_learned_from_pieces_as_from_the_whole(texts):
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = list(borders.pieces((f"{text} " for text in texts), 1))
    assert "".join(parts) == "".join(f"{text} " for text in texts)
    cut = [word for part in borders.pieces(texts, 20) for word, _ in before.pre_tokenize_str(part)]
    assert cut == [word for text in texts for word, _ in before.pre_tokenize_str(text)]


def test_every_piece_is_bounded_even_without_white_space():
    text = "the cat. " * 40 + "漢" * 1000
    parts = list(borders.pieces([text], 10))
    assert "".join(parts) == text
    assert max(map(len, parts)) == 40
    assert all(part.startswith(" ") for part in parts[1:27])


def test_a_vocabulary_is_that_of_the_uncut_text():
    def learned(least):
        with mock.patch.object(borders.pieces, "__defaults__", (least,)):
            return Tokenizer.byte_pairs(SAMPLE, 290).hash
    assert learned(10) == learned(2**30)


def test_a_sample_is_spread_evenly_over_the_texts():
    texts = ["".join(f" {number:03}" for number in range(start, start + 100)) for start in (0, 100)]
    assert "".join(borders.spread(texts, 800, 800, 4)) == "".join(texts)
    taken = "".join(borders.spread(texts, 800, 200, 4)).split()
    assert taken == [f"{number:03}" for number in range(0, 200, 4)]


def test_byte_pairs_of_a_large_text_are_learned_from_a_sample_and_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("the cat sat " * 4000 + "on the mat " * 4000)
    text, notes = text_run.Text((str(tmp_path / "a.txt"),), "bpe", 300), []
    whole = text_run.make_tokenizer(text, False, notes.append)
    assert notes == []
    monkeypatch.setattr(text_run, "SAMPLE", 50_000)
    assert text_run.make_tokenizer(text, False, notes.append).vocab_size == whole.vocab_size
    assert notes == ["the text has 92,000 characters: byte pairs are learned from 50,000 of them, spread evenly over "
                     "it"]
