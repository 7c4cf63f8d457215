"""Batches, and the commands finetune, resume, predict and evaluate."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers.processors import TemplateProcessing

from pyllama import params
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models import MODELS, families_with, gpt2
from pyllama.models.config import Dimensions
from pyllama.tasks import TASKS, classify, finetune
from pyllama.tasks.rows import Row
from pyllama.tasks.task import Trained
from pyllama.text import special
from pyllama.text.special import encode
from pyllama.text.tokenizer import Tokenizer
from pyllama.training import checkpoint
from pyllama.training.examples import IGNORE, Examples, collate
from pyllama.training.loop import Settings
from tests.shared import written

# Batches

def test_padding_is_marked_and_does_not_count():
    batch = collate([{"ids": np.array([5, 6, 7]), "labels": np.array([1])},
                     {"ids": np.array([8]), "labels": np.array([2, IGNORE, 3])}])
    assert batch.inputs["ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.inputs["mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch.inputs["labels"].tolist() == [[1, IGNORE, IGNORE], [2, IGNORE, 3]]
    assert batch.targets == 3
    assert collate([{"ids": np.array([5]), "labels": 1}, {"ids": np.array([6, 7]), "labels": 0}]).targets == 2


@given(count=st.integers(1, 9), size=st.integers(1, 5), accumulate=st.integers(1, 2), seed=st.integers(0, 3))
def test_an_epoch_has_every_example_once(count, size, accumulate, seed):
    """Steps laid end to end are epochs, in an order that depends on nothing but seed and epoch."""
    examples = Examples([{"ids": np.array([i]), "labels": i} for i in range(count)])
    settings = Settings(batch_size=size, gradient_accumulation_steps=accumulate, seed=seed)
    seen = np.concatenate([examples.batch(settings, step).inputs["labels"] for step in range(3 * count)])
    epochs = seen[:len(seen) // count * count].reshape(-1, count)
    assert (np.sort(epochs) == np.arange(count)).all()
    if count > 5:
        assert len({*map(tuple, epochs)}) > 1
    again = examples.batch(settings, 2 * count).inputs["labels"]
    assert (again == seen[2 * count * size * accumulate:][:len(again)]).all()


def test_a_long_text_keeps_its_start_and_end_tokens():
    tokenizer = Tokenizer.byte_pairs(["ab"], 259, ("<pad>", "<s>", "</s>"))
    short, long = encode(tokenizer, ["a", "abcdefg"], 5)
    assert short[[0, -1]].tolist() == long[[0, -1]].tolist() == [1, 2]
    assert len(short) == 3
    assert len(long) == 5


# The commands

WORDS = {"good": ["fine", "great", "lovely", "warm"], "bad": ["dull", "loud", "cold", "grim"]}
SMALL = ["--vocab_size", "300", "--batch_size", "8", "--shards", "2", "--learning_rate", "0.005", "--warmup_steps", "5",
         "--eval_steps", "10", "--save_steps", "10"]


@pytest.fixture
def reviews(tmp_path):
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": f"a {rng.choice(WORDS[label])} film of {rng.integers(99)} minutes", "label": label,
                         "same": 1}) for label in ("good", "bad") for _ in range(40)]
    return str(written(tmp_path / "reviews.jsonl", "\n".join(lines)))


@pytest.mark.parametrize("model", classify.task.models())
def test_every_model_learns_to_classify(model, reviews, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["finetune", "--task", "classify", "--model", model, "--data", reviews, "--out_dir", str(out),
                 "--max_steps", "30", *SMALL, "--eval_steps", "30"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] == 1
    assert sum(map(sum, metrics["confusion"])) == metrics["rows"] == 8
    capsys.readouterr()
    assert main(["predict", "--model", str(out), "--text", "a great film", "a grim film of 12 minutes"]) == 0
    assert capsys.readouterr().out.split() == ["good", "bad"]
    assert main(["evaluate", "--model", str(out), "--data", reviews, "--out", str(tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["accuracy"] == 1


def test_balanced_classes_count_the_same(tmp_path):
    """30 rows of one class and 10 of another weigh 40/60 and 40/20: 20 for either class together."""
    labels = ["a"] * 30 + ["b"] * 10
    weights = finetune.balanced(["a", "b"], labels)
    assert weights == [40 / 60, 2.0]
    config = SimpleNamespace(extra={"task": {"class_weights": weights}, "id2label": {"0": "a", "1": "b"}},
                             takes_types=False)
    work = Trained(config, {}, Tokenizer.bytes(), 8)
    examples = classify.examples([Row("", {"text": "x", "label": label}) for label in labels], work)
    batch = collate(examples.rows)
    assert batch.targets == pytest.approx(40)
    assert batch.inputs["weights"][batch.inputs["labels"] == 1].sum() == 20


def test_a_stopped_run_goes_on_bit_for_bit(reviews, tmp_path):
    """With dropout, from a checkpoint in the middle, the file of rows being gone."""
    runs = [tmp_path / "whole", tmp_path / "parts"]
    for out, steps in zip(runs, ("20", "10"), strict=True):
        assert main(["finetune", "--task", "classify", "--model", "bert", "--data", reviews, "--out_dir", str(out),
                     "--max_steps", steps, "--lr_decay_steps", "20", "--class_weights", "balanced", *SMALL]) == 0
    (tmp_path / "reviews.jsonl").unlink()
    assert main(["resume", str(runs[1]), "--max_steps", "20"]) == 0
    one, other = (checkpoint.load(out) for out in runs)
    assert one.step == other.step == 20
    for name, a in one.tensors.items():
        np.testing.assert_array_equal(a, other.tensors[name], err_msg=name)
    for name, a in one.optimizer.items():
        np.testing.assert_array_equal(a, other.optimizer[name], err_msg=name)


@pytest.mark.parametrize("model", families_with("seq2seq"))
def test_a_text_for_a_text_is_learned_and_a_trained_model_learns_on(model, tmp_path, capsys):
    """Words of one or two letters, spelled in capitals: the loss falls, and goes on where the trained model had it."""
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcd"), rng.integers(1, 3))) for _ in range(60)]
    path = written(tmp_path / "pairs.tsv", "".join(f"{word}\t{word.upper()}\n" for word in words))
    losses = []
    for source, out in ((model, "one"), (str(tmp_path / "one"), "two")):
        assert main(["finetune", "--task", "g2p", "--model", source, "--data", str(path), "--max_steps", "40", *SMALL,
                     "--out_dir", str(tmp_path / out), "--max_length", "16", "--num_beams", "2",
                     "--max_new_tokens", "8"]) == 0
        log = [json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()]
        losses.append((log[0]["loss"], log[-1]["loss"]))
    assert losses[0][0] > losses[1][0] > losses[1][1]
    metrics = json.loads((tmp_path / "two/metrics.json").read_text())
    assert metrics["rows"] == 6
    capsys.readouterr()
    assert main(["predict", "--model", str(tmp_path / "two"), "--data", str(path), "--max_new_tokens", "8"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["source"] for answer in answers] == words
    assert np.mean([answer["predicted"] == word.upper() for answer, word in zip(answers, words, strict=True)]) > 0.8


@pytest.mark.parametrize(("flags", "message"), [
    (["--task", "guess", "--model", "bert"], "there is no task 'guess'; the tasks are classify, "),
    (["--task", "classify", "--model", "transformer"],
     "a transformer model cannot do the task classify; choose one of llama, "),
    (["--task", "g2p", "--model", "nowhere", "--fields", "text", "label"], "there is no trained model at nowhere"),
    (["--task", "classify", "--model", "bert", "--block_size", "64"], "block_size has no effect on rows; remove it"),
    (["--task", "classify", "--model", "bert", "--dev", "0"], r"dev is 0\.0; it must lie between 0 and 1"),
    (["--task", "classify", "--model", "bert", "--max_length", "0"], "max_length is 0; it must be at least 3"),
    (["--task", "classify", "--model", "bert", "--fields", "text", "same"],
     "every row has the label '1'; give rows of at least 2 classes"),
])
def test_what_cannot_be_trained_is_refused(flags, message, reviews, tmp_path, capsys):
    assert main(["finetune", *flags, "--data", reviews, "--out_dir", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


@pytest.mark.parametrize("taken", ["data/dev.jsonl", "data"])
def test_a_run_takes_nobodys_place(taken, reviews, tmp_path, capsys):
    """Rows of the user's that lie where the run would keep its own, or a file where it needs a folder."""
    written_by_me = tmp_path / "mine" / taken
    written_by_me.parent.mkdir(parents=True)
    written(written_by_me, "mine")
    assert main(["finetune", "--task", "classify", "--model", "lstm", "--data", reviews, "--max_steps", "1",
                 "--out_dir", str(tmp_path / "mine")]) == 2
    assert "choose another out_dir" in capsys.readouterr().err
    assert written_by_me.read_text() == "mine"


def test_a_trained_decoder_cannot_classify_unless_it_has_the_head(tmp_path, capsys):
    c = gpt2.GPT2Config(vocab_size=259, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps(c.to_dict()))
    save_file(dict(params.leaves(gpt2.init(c))), tmp_path / "m/model.safetensors")
    Tokenizer.byte_pairs(["ab"], 259, ("<pad>", "<s>", "</s>")).save(tmp_path / "m")
    data = written(tmp_path / "a.csv", "text,label\nx,1\ny,2\nz,1\n")
    assert main(["finetune", "--task", "classify", "--model", str(tmp_path / "m"), "--data", str(data), "--dev", "0.3",
                 "--out_dir", str(tmp_path / "x")]) == 2
    assert "a gpt2 model cannot do the task classify; choose one of llama" in capsys.readouterr().err


def test_a_tokenizer_made_elsewhere_keeps_its_own_special_tokens():
    """Ids of its own that are no place for padding, in arrays too small for what pads labels."""
    tokenizer = Tokenizer.byte_pairs(["ab"], 258, ("x", "<|endoftext|>"))

    def small(kind, tokenizer):
        return MODELS[kind].config.small(Dimensions(vocab_size=258, context=8, head="seq2seq",
                                                    **special.ids_of(tokenizer)))

    config = small("transformer", tokenizer)
    assert (config.eos_token_id, config.decoder_start_token_id) == (1, 1)
    tokenizer.rust.post_processor = TemplateProcessing("$A <|endoftext|>", special_tokens=[("<|endoftext|>", 1)])
    work = Trained(config, {}, tokenizer, 8)
    pairs = [Row("", {"source": "a", "target": text}) for text in ("b", "abc")]
    batch = collate(TASKS["g2p"].examples(pairs, work).rows)
    assert batch.inputs["labels"].min() == IGNORE
    assert (batch.inputs["labels"][:, -1] == [IGNORE, 1]).all()
    with pytest.raises(UserError, match="the tokenizer has no end token, which an mbart needs"):
        small("bart", Tokenizer.bytes())


def test_a_model_of_text_predicts_no_task(tmp_path, capsys):
    path = written(tmp_path / "a.txt", "to be or not to be, " * 20)
    assert main(["train", "--data", str(path), "--out_dir", str(tmp_path / "lm"), "--max_steps", "1", "--n_embd", "8",
                 "--n_head", "2", "--n_layer", "1", "--block_size", "8", "--batch_size", "2"]) == 0
    capsys.readouterr()
    assert main(["predict", "--model", str(tmp_path / "lm"), "--text", "x"]) == 2
    assert "was not trained on a task; fine-tune it on one first" in capsys.readouterr().err
    assert main(["predict", "--model", str(tmp_path / "lm")]) == 2
    assert "needs either --data FILE or --text TEXT; give one of them" in capsys.readouterr().err
