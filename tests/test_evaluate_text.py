"""A model is evaluated on documents as it has read them: with the special tokens that it knows, each for itself."""
import json
import re

import numpy as np
import pytest

from pyllama import pretrained
from pyllama.cli.main import main
from pyllama.ops import cross_entropy
from pyllama.text import frames, special
from pyllama.text.tokenizer import Tokenizer
from pyllama.training.log import read_log
from tests.shared import SHARED, needs

STORIES, TINY = SHARED / "fixtures/stories260K", SHARED / "data/quickstart/lm_en_tinystories.txt"


def nats(model, ids):
    """(summed loss, number) of the ids but the first, each given all before it."""
    z, _ = model.logits([ids[:-1]])
    return float(cross_entropy(z[0], np.array(ids[1:]), count=1)[0]), len(ids) - 1


@needs(STORIES, TINY)
def test_stories260k_has_the_loss_of_its_stories_each_after_a_start_token(tmp_path, capsys):
    """1.3008, computed here by hand; end to end with </s> behind each, which the model never saw, it is 1.7111."""
    files = [str(STORIES / "stories260K.bin"), str(STORIES / "tok512.bin")]
    model = pretrained.load(*files)
    stories = [story.strip() for story in re.split(r"<\|endoftext\|>", TINY.read_text(encoding="utf-8"))][:60]
    assert all(stories)
    loss, count = map(sum, zip(*(nats(model, [1, *model.tokenizer.encode(story)][:512]) for story in stories),
                               strict=True))
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    assert main(["eval", "--model", files[0], "--tokenizer", files[1], "--data", str(tmp_path / "stories.txt"),
                 "--out", str(tmp_path / "metrics.json")]) == 0
    said, metrics = capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())
    assert f"{loss / count:.4f}" == "1.3008"
    assert re.search(rf"^loss 1\.3008 nats per token .* over {count:,} tokens$", said, re.MULTILINE)
    assert "each document for itself, after <s>; 10 of 60 documents are longer than 512 tokens" in said
    assert metrics["loss"] == pytest.approx(loss / count, rel=1e-5)     # float32, batches of other lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model whose tokenizer puts <s> before a text, and two documents."""
    where = tmp_path_factory.mktemp("model")
    (where / "data.jsonl").write_text("".join(json.dumps({"text": f"{word} " * 20}) + "\n" for word in ("cat", "rat")))
    tokenizer = Tokenizer.byte_pairs(["the cat sat"], 300, ["<s>", "</s>"])
    Tokenizer(frames.framed(tokenizer.rust, "<s>", None)).save(where / "tokenizer")
    assert main(["train", "--data", str(where / "data.jsonl"), "--tokenizer", str(where / "tokenizer/tokenizer.json"),
                 "--n_layer", "1", "--n_head", "1", "--n_embd", "8", "--block_size", "8", "--batch_size", "2",
                 "--max_iters", "2", "--warmup_iters", "0", "--out_dir", str(where / "run"),
                 "--validation", "0.3"]) == 0
    return where


def test_evaluation_and_training_say_how_they_cut_the_text(folder, capsys, tmp_path):
    assert main(["eval", "--model", str(folder / "run"), "--data", str(folder / "data.jsonl")]) == 0
    assert "each document for itself, after <s>, in windows of 8 tokens" in capsys.readouterr().out
    assert main(["train", "--data", str(folder / "data.jsonl"), "--init_from", str(folder / "run"), "--block_size", "8",
                 "--max_iters", "1", "--warmup_iters", "0", "--batch_size", "2", "--validation", "0.3",
                 "--out_dir", str(tmp_path / "more")]) == 0
    assert "documents end to end in windows of 8 tokens, each after <s>" in capsys.readouterr().out
    assert len(read_log(tmp_path / "more")) == 1


def test_the_loss_of_documents_is_that_of_each_after_the_start_token(folder, capsys, tmp_path):
    model = pretrained.load(folder / "run")
    texts = ["cat", "a rat", "the"]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert main(["eval", "--model", str(folder / "run"), "--data", str(tmp_path / "short.jsonl")]) == 0
    rows = [model.tokenizer.encode(text, add_special_tokens=True).tolist() for text in texts]
    assert all(row[0] == 0 and len(row) <= 8 for row in rows)
    loss, count = map(sum, zip(*(nats(model, row) for row in rows), strict=True))
    assert f"loss {loss / count:.4f} nats per token" in capsys.readouterr().out


@pytest.mark.parametrize("prepared", [True, False])
def test_tokens_are_evaluated_as_they_are(prepared, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.bin").write_bytes((folder / "run/data/tokens.bin").read_bytes())
    if prepared:
        (tmp_path / "x.bin.json").write_bytes((folder / "run/data/tokens.bin.json").read_bytes())
    command = ["eval", "--model", str(folder / "run"), "--data", "x.bin"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert ("each document for itself" if prepared else "the text in windows of 8 tokens") in said
    if prepared:
        assert main([*command[:-1], str(folder / "data.jsonl")]) == 0
        assert capsys.readouterr().out == said
    (tmp_path / "x.bin").write_bytes(b"")
    for words in command, ["train", "--data", "x.bin", "--tokenizer", str(folder / "tokenizer/tokenizer.json")]:
        assert main(words) == 2
        assert re.match(r"pyllama: x\.bin ", capsys.readouterr().err)


@pytest.mark.parametrize(("tokens", "note"), [
    (["<pad>", "<end_of_turn>"], ("none of the special tokens is known as the end of a text; if one of <end_of_turn> "
                                  "is, name it as eos_token in tokenizer_config.json",)),
    (["<unk>", "<pad>"], ()), (["<eod>", "</s>"], ()), ([], ())])
def test_an_end_token_that_is_not_known_is_looked_for(tokens, note):
    tokenizer = Tokenizer.byte_pairs(["text"], 300, tokens)
    assert special.no_end(tokenizer) == note
    if note:
        assert special.no_end(Tokenizer(tokenizer.rust, {"eos_token": "<end_of_turn>"})) == ()
        assert special.no_end(Tokenizer(frames.framed(tokenizer.rust, None, "<end_of_turn>"))) == ()
