"""What BERT and BART learn from plain text, and the commands that train every model on it."""
import json
from dataclasses import replace

import numpy as np
import pytest

from pyllama.cli.main import main
from pyllama.models import MODELS, transformer
from pyllama.models.config import Dimensions
from pyllama.rng import generator
from pyllama.text import special
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import joined, windows
from pyllama.training import objectives
from pyllama.training.loop import Settings, start

TOKENS = special.byte_pairs([], 260, ["<mask>"])            # the special tokens and the bytes
MASK = TOKENS.mask_id
TEXT = joined([np.array([*TOKENS.encode("A cat sat. A dog ran! Who saw it? " * 9), special.EOS]) for _ in range(9)])
SETTINGS = Settings(batch_size=4, block_size=24, max_steps=2, warmup_steps=0, shards=1)
MASKED = ("bert", "bart")


def configuration(model, width=16):
    family = MODELS[model].config
    return family.small(Dimensions(vocab_size=TOKENS.vocab_size, context=24, head=next(iter(family.LEARNS)),
                                   width=width, layers=1, heads=2, dropout=0.0))


def source(model):
    return objectives.objective_of(configuration(model), TOKENS).source(TEXT)


def test_a_bert_is_asked_for_what_was_hidden_and_sees_the_rest():
    ids, labels = source("bert").batch(replace(SETTINGS, batch_size=40), 0).inputs.values()
    asked = labels != -100
    assert 0.1 < asked.mean() < 0.2
    assert 0.7 < np.mean(ids[asked] == MASK) < 0.9
    assert (labels[asked] > MASK).all()                     # no special token is asked for


def test_a_bart_tells_the_whole_text_from_what_is_left_of_it():
    batch = source("bart").batch(SETTINGS, 0)
    windows = source("bart").tokens[:].tolist()
    for read, mask, labels in zip(batch.inputs["ids"], batch.inputs["mask"], batch.inputs["labels"], strict=True):
        assert labels.tolist() in [windows[i:i + 24] for i in range(len(windows))]
        assert mask.sum() < 24
        assert set(read[mask]) - set(labels) == {MASK}
    assert batch.targets == 4 * 24


def test_sentences_of_a_bart_change_their_places():
    """Between two ends of sentences, and nowhere else, is what is not hidden cut and moved."""
    row = np.array(TOKENS.encode("ab. cd. ef. gh. ij."))
    damage = objectives.noised(configuration("bart"), TOKENS)
    read = [damage(row[None], np.random.default_rng(seed)).inputs["ids"][0] for seed in range(40)]
    orders = {"".join(c for c in TOKENS.decode(ids, skip_special_tokens=True) if c in "ace") for ids in read}
    assert {"ace", "cea", "eca"} <= orders


@pytest.mark.parametrize("model", MASKED)
def test_the_damage_depends_on_seed_and_step_alone_and_not_on_the_evaluation(model):
    def ids(settings, step):
        return source(model).batch(settings, step).inputs["ids"]

    assert np.array_equal(ids(SETTINGS, 3), ids(SETTINGS, 3))
    for other in (ids(SETTINGS, 4), ids(replace(SETTINGS, seed=1), 3)):
        assert not np.array_equal(ids(SETTINGS, 3), other)
    c = configuration(model)
    state = start(c, SETTINGS)
    first, again = (objectives.evaluate(state, source(model), SETTINGS) for _ in range(2))
    assert first == again
    assert abs(first.loss - np.log(TOKENS.vocab_size)) < 1          # untrained: as good as any guess
    assert objectives.evaluate(state, source(model), SETTINGS, most=24).loss != first.loss
    one = objectives.evaluate(state, source(model), SETTINGS, most=1)
    assert one == objectives.evaluate(state, source(model), SETTINGS, most=24)      # one window at least


def test_a_batch_that_hides_nothing_does_not_lower_the_loss():
    """Windows of four tokens, one at a time: of most nothing is asked.  An untrained model knows nothing about any."""
    small = replace(SETTINGS, batch_size=1, block_size=4)
    c = configuration("bert")
    found = objectives.evaluate(start(c, small), source("bert"), small)
    assert abs(found.loss - np.log(TOKENS.vocab_size)) < 0.5
    assert found.tokens < len(TEXT) / 4


def test_a_step_that_would_mask_nothing_is_drawn_again():
    """One window of four tokens: of half of the steps nothing would be asked.  The others are as they were."""
    small = replace(SETTINGS, batch_size=1, block_size=4)
    made = source("bert")
    ids = [made.batch(small, step) for step in range(60)]
    assert all(batch.targets == np.sum(batch.inputs["labels"] != -100) >= 1 for batch in ids)
    first = [made.damage(windows(made.tokens, 1, 4, small.seed, step)[:, :-1], generator(small.seed, "damage", step))
             for step in range(60)]
    assert 15 < sum(batch.targets == 0 for batch in first) < 50
    for batch, once in zip(ids, first, strict=True):
        assert not once.targets or (batch.inputs["ids"] == once.inputs["ids"]).all()


@pytest.mark.parametrize(("config", "tokenizer", "message"), [
    (configuration("bert"), Tokenizer.bytes(), "masked tokens, but this tokenizer has no <mask>"),
    (replace(configuration("bert"), head="span"), TOKENS, "a bert with this head does not learn from plain text"),
    (replace(configuration("bart"), head="classification"), TOKENS, "an mbart with this head does not learn"),
    (transformer.TransformerConfig(vocab_size=9), TOKENS, "a transformer with this head does not learn"),
])
def test_what_learns_nothing_from_text_is_refused(config, tokenizer, message):
    with pytest.raises(objectives.UserError, match=message):
        objectives.objective_of(config, tokenizer)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat. The dog ran to the cat! Who saw the dog run? " * 40)
    return path


FLAGS = ["--tokenizer", "bpe", "--vocab_size", "300", "--n_layer", "1", "--n_head", "2", "--n_embd", "16",
         "--block_size", "64", "--batch_size", "4", "--warmup_steps", "1", "--learning_rate", "1e-2", "--eval_interval",
         "20"]


@pytest.mark.parametrize("model", ["bert", "bart", "gpt2", "llama"])
def test_every_model_is_trained_on_text_and_learns_a_task_from_there(model, text, tmp_path, capsys):
    run, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    assert main(["train", "--model", model, "--data", str(text), "--out_dir", str(run), "--max_steps", "40",
                 *FLAGS]) == 0
    said = capsys.readouterr().out
    assert f"try `pyllama {'finetune' if model in MASKED else 'generate'} --model" in said
    losses = [json.loads(line).get("val_loss") for line in (run / "log.jsonl").read_text().splitlines()]
    assert losses[39] < losses[19] < np.log(300)
    task = {"bert": "classify", "bart": "write", "gpt2": "instruct", "llama": "classify"}[model]
    fields = {"classify": ("text", "label"), "write": ("source", "corrected"), "instruct": ("instruction", "output")}
    rows.write_text("".join(json.dumps(dict(zip(fields[task], pair, strict=True))) + "\n"
                            for pair in [("the cat", "a"), ("the dog", "b")] * 5))
    assert main(["finetune", "--task", task, "--model", str(run), "--data", str(rows), "--max_steps", "2",
                 "--max_new_tokens", "4", "--out_dir", str(tmp_path / "task")]) == 0
    assert (tmp_path / "task/metrics.json").exists()


@pytest.mark.parametrize("model", MASKED)
def test_a_stopped_run_on_damaged_text_goes_on_bit_for_bit(model, text, tmp_path):
    flags = ["train", "--model", model, "--data", str(text), *FLAGS, "--lr_decay_iters", "6"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main([*flags, "--max_steps", "6", "--out_dir", str(whole)]) == 0
    assert main([*flags, "--max_steps", "3", "--out_dir", str(halves)]) == 0
    assert main(["resume", str(halves), "--max_steps", "6"]) == 0
    files = [next(run.glob("checkpoints/*6/model.safetensors")).read_bytes() for run in (whole, halves)]
    assert files[0] == files[1]


@pytest.mark.parametrize(("flags", "message"), [
    (["--model", "bert", "--tokenizer", "char"], "this tokenizer has no <mask>"),
    (["--model", "bart"], "a bart learns from text with masked tokens, but this tokenizer has no <mask>"),
    (["--model", "albert"], "an albert learns from text with masked tokens, but this tokenizer has no <mask>"),
    (["--model", "gpt2", "--sliding_window", "4"], "sliding_window applies only to llama"),
    (["--model", "bart", "--tokenizer", "bpe", "--bias"], "bias applies only to llama"),
    (["--model", "bert", "--tokenizer", "bpe", "--tie_word_embeddings"], "tie_word_embeddings applies only to "),
    (["--model", "lstm"], "--model is 'lstm'; it must be one of llama, "),
])
def test_flags_that_do_not_fit_the_model_are_refused(flags, message, text, tmp_path, capsys):
    assert main(["train", "--data", str(text), "--out_dir", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/latest").exists()
