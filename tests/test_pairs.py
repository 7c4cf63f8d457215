"""Pairs of texts, as the task classify reads and encodes them: like the tokenizers library, with its truncation."""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

import pyllama
from pyllama.cli.main import main
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.tasks import classify
from pyllama.tasks.pairs import inputs
from pyllama.tasks.rows import Row, Source
from pyllama.tasks.task import Trained
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from tests.shared import written
from tests.test_qa import word_pieces

PAIRS = [{"premise": f"{a} ran {i}", "hypothesis": f"a {b}", "label": "same" if a == b else "other"}
         for a in ("cat", "dog") for b in ("cat", "dog") for i in range(10)]


def roberta():
    """</s></s> between the texts."""
    tokenizer = special.byte_pairs([], 259)
    tokenizer.rust.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return tokenizer


TOKENIZERS = {"learned": special.byte_pairs([], 259), "bert": word_pieces(), "roberta": roberta(),
              "no special": Tokenizer.bytes()}
words = st.text("ab ", min_size=1, max_size=30)


def trained(tokenizer, family="bert", max_length=16):
    config = MODELS[family].config.small(Dimensions(
        vocab_size=300, context=64, head="classification", width=8, heads=2, **special.ids_of(tokenizer)))
    return Trained(config, {}, tokenizer, max_length)


def row(a, b=None):
    return Row("", {"text": a, **({} if b is None else {"text_pair": b})})


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=3), max_length=st.integers(4, 40))
def test_a_pair_is_encoded_and_truncated_as_the_library_does(name, pairs, max_length):
    work = trained(TOKENIZERS[name])
    whole = special.framed(work.tokenizer).rust
    made = inputs([row(*pair) for pair in pairs], work, max_length)
    whole.enable_truncation(max_length, strategy="longest_first")
    try:
        for pair, one in zip(pairs, made, strict=True):
            encoding = whole.encode(*pair)
            assert one["ids"].tolist() == encoding.ids
            if name != "roberta":                                           # its types are all 0, and it takes none
                assert one["types"].tolist() == encoding.type_ids
    finally:
        whole.no_truncation()


def test_texts_and_pairs_may_stand_in_one_batch():
    work = trained(TOKENIZERS["learned"])
    single, pair = inputs([row("ab"), row("a", "b")], work)
    assert single["types"].tolist() == [0] * 4
    assert pair["types"].tolist() == [0, 0, 0, 1, 1]
    assert "types" not in inputs([row("ab")], work)[0]
    assert "types" not in inputs([row("a", "b")], trained(TOKENIZERS["learned"], "llama"))[0]


@pytest.mark.parametrize(("content", "fields"), [
    (PAIRS, ()),
    ([{"text": one["premise"], "text_pair": one["hypothesis"], "label": one["label"]} for one in PAIRS], ()),
    ([{"Sentence1": one["premise"], "sentence2": one["hypothesis"], "label": one["label"], "id": 3} for one in PAIRS],
     ()),
    ([{"question": one["premise"], "sentence": one["hypothesis"], "label": one["label"]} for one in PAIRS], ()),
    ([{"a": one["premise"], "b": one["hypothesis"], "c": one["label"]} for one in PAIRS], ("a", "b", "c"))])
def test_a_pair_has_many_names(tmp_path, content, fields):
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, content)))
    found, _ = classify.task.read(Source(path, fields))
    assert [one.values for one in found] == [
        {"text": one["premise"], "text_pair": one["hypothesis"], "label": one["label"]} for one in PAIRS]


@pytest.mark.parametrize("family", classify.task.models())
def test_every_model_that_classifies_learns_pairs(family, tmp_path, capsys):
    """One step, by the command; then its answers, to rows under other names and without a label, and in Python."""
    single = {"premise": "a cat", "hypothesis": "", "label": "other"}
    data = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [single, *PAIRS])))
    run = tmp_path / "run"
    assert main(["finetune", "--task", "classify", "--model", family, "--data", str(data), "--out_dir", str(run),
                 "--max_steps", "1", "--vocab_size", "300", "--shards", "1", "--max_length", "12"]) == 0
    capsys.readouterr()
    others = written(tmp_path / "b.csv", "one,two\ncat ran,a cat\n")
    assert main(["predict", "--model", str(run), "--data", str(others), "--fields", "one", "two"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["one"], answer["two"]) == ("cat ran", "a cat")
    assert answer["predicted"] in ("same", "other")
    pair = {"text": "cat ran", "text_pair": "a cat"}
    assert pyllama.predict(run, pair) == answer["predicted"]
    assert main(["evaluate", "--model", str(run), "--data", str(data)]) == 0


def test_the_second_text_counts(tmp_path):
    """A BERT of random weights, with the types: a pair, the same text as one, and the pair the other way around."""
    work = trained(special.byte_pairs([], 259))
    config = replace(work.config, initializer_range=1.0)
    work = work._replace(config=config, params=config.model.init(config, 3))
    a, b, c = classify.scores_of([row("ab", "ba"), row("ba", "ab"), row("abba")], work)
    assert np.abs(a - b).max() > 1e-6
    assert np.abs(a - c).max() > 1e-6
    alone, = classify.scores_of([row("ab", "ba")], work)
    np.testing.assert_allclose(alone, a, rtol=1e-5)
