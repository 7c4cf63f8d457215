"""A run that is stopped within a step or an evaluation ends, after a resume, like an undisturbed one."""
import itertools
import math
import os
import re
import signal
import weakref
from unittest import mock

import numpy as np
import pytest

from pyllama.cli.display import interruptible
from pyllama.cli.main import main
from pyllama.cli.output import console
from pyllama.models import llama
from pyllama.text.tokens import Tokens
from pyllama.training import checkpoint, loop
from pyllama.training.adapting import continued
from pyllama.training.log import read_log, record_of
from pyllama.training.parallel import Solo
from pyllama.training.run import BestSoFar, RunPolicy, Saved, from_stored, restore, run
from tests.checkpoints import outcome

CONFIG = llama.LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8, resid_pdrop=0.2)
SETTINGS = loop.Settings(batch_size=2, block_size=5, shards=1, max_steps=6, learning_rate=0.01, warmup_steps=2)
POLICY = RunPolicy(eval_steps=2, save_steps=99, patience=9)


def tokens(seed, n=100):
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).astype(np.uint16)
    return Tokens(ids, np.array([0]), np.array([n]))


def begin(folder, training=None, evaluate=loop.evaluate, comm=None, kind="text"):
    state = loop.start(CONFIG, SETTINGS)
    return state, run(folder, state, training or tokens(0), tokens(1, 60), SETTINGS, POLICY, {kind: {}},
                      evaluate=evaluate, comm=comm or Solo())


def resume(folder):
    saved = checkpoint.load(folder)
    state = loop.start(CONFIG, SETTINGS)
    restore(state, saved)
    return run(folder, state, tokens(0), tokens(1, 60), SETTINGS, POLICY, {"text": {}},
               best_so_far=from_stored(BestSoFar, saved.trainer["standing"]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    list(begin(folder)[1])
    return outcome(folder)


@pytest.mark.parametrize("step", [2, 4, 6])
@pytest.mark.parametrize("batches", [0, 1])
def test_a_resume_makes_up_for_a_stopped_evaluation(tmp_path, undisturbed, monkeypatch, step, batches):
    comm, windows, seen = Solo(), loop.evaluation_windows, []

    def stopping_windows(*args):
        for number, batch in enumerate(windows(*args)):
            comm.stop = state.step == step and number >= batches
            seen.append(state.step)
            yield batch

    monkeypatch.setattr(loop, "evaluation_windows", stopping_windows)
    state, records = begin(tmp_path, comm=comm)
    *_, last = itertools.islice(records, step)
    records.close()
    assert (last.step, last.evaluation, seen.count(step)) == (step, None, batches + 1)
    assert checkpoint.load(tmp_path).trainer["standing"]["pending"]["step"] == step
    comm.stop = False
    first, *_ = resume(tmp_path)
    assert (first.step, first.evaluation is None) == (step, False)
    assert outcome(tmp_path) == undisturbed


class Interrupting:
    """A source of batches that is interrupted in a step."""

    def __init__(self, step):
        self.step = step

    def __len__(self):
        return len(tokens(0))

    def batch(self, settings, step):
        if step == self.step:
            raise KeyboardInterrupt
        return tokens(0).batch(settings, step)


@pytest.mark.parametrize("step", [1, 2, 5])
def test_ctrl_c_within_a_step_saves_the_step_before(tmp_path, undisturbed, step):
    _, records = begin(tmp_path, Interrupting(step))
    with pytest.raises(KeyboardInterrupt):
        list(records)
    assert checkpoint.load(tmp_path).step == step
    list(resume(tmp_path))
    assert outcome(tmp_path) == undisturbed


def test_ctrl_c_within_an_evaluation_saves_its_step(tmp_path, undisturbed):
    def evaluate(state, *rest):
        if state.step == 4:
            raise KeyboardInterrupt
        return loop.evaluate(state, *rest)

    _, records = begin(tmp_path, evaluate=evaluate)
    with pytest.raises(KeyboardInterrupt):
        list(records)
    assert checkpoint.load(tmp_path).step == 4
    assert [record.step for record in resume(tmp_path)] == [4, 5, 6]
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("place", ["before", "after"])
def test_ctrl_c_within_an_update_does_not_save_it(tmp_path, undisturbed, place, monkeypatch):
    """The parameters are perhaps half updated; the checkpoint is the last one, here the best at step 2."""
    state, records = begin(tmp_path)
    step = state.optimizer.step

    def interrupted(*args):
        if place == "after":
            step(*args)
        raise KeyboardInterrupt

    list(itertools.islice(records, 3))
    monkeypatch.setattr(state.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(records)
    assert checkpoint.load(tmp_path).step == 2
    list(resume(tmp_path))
    assert outcome(tmp_path) == undisturbed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_that_drops_the_generator_saves_nothing(tmp_path):
    _, records = begin(tmp_path)
    next(records)
    child = os.fork()
    if not child:
        records.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not (tmp_path / "latest").exists()
    assert [record.step for record in records] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["text", "task"])
def test_metrics_do_not_outlive_the_best_checkpoint(tmp_path, kind):
    """The best comes at step 2 of 6."""
    (tmp_path / "metrics.json").write_text("{}")
    _, records = begin(tmp_path, kind=kind)
    next(records)
    assert (tmp_path / "metrics.json").exists()
    next(records)
    assert (tmp_path / "metrics.json").exists() == (kind == "text")
    (tmp_path / "metrics.json").write_text("{}")
    assert [record.step for record in records] == [3, 4, 5, 6]
    assert (tmp_path / "metrics.json").exists()


# The command line

TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "8", "--batch_size", "2", "--block_size", "8", "--shards", "1",
        "--max_steps", "4", "--eval_steps", "2", "--warmup_steps", "1"]


@pytest.fixture
def commands(tmp_path):
    """A command without a folder for each kind of run."""
    text, rows = tmp_path / "text.txt", tmp_path / "rows.csv"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    rows.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 40)
    task = ["--task", "classify", "--data", str(rows), "--model", "lstm", "--vocab_size", "300", "--batch_size", "4",
            "--max_steps", "4", "--eval_steps", "2", "--dev", "0.5"]
    return {"text": ["train", "--data", str(text), *TINY],
            "masked text": ["train", "--data", str(text), *TINY, "--model", "bert", "--tokenizer", "bpe",
                            "--vocab_size", "270"],
            "rows": ["finetune", *task]}


@pytest.mark.parametrize("kind", ["text", "masked text", "rows"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_an_evaluation_between_two_batches(tmp_path, monkeypatch, commands, kind, number, capsys):
    batches, unless_stopped = [], loop.unless_stopped

    def with_a_signal(items):
        for item in unless_stopped(items):
            batches.append(item)
            if len(batches) == 2:
                signal.raise_signal(number)
            yield item

    monkeypatch.setattr(console, "quiet", False)            # undone below: after SIGHUP nobody reads
    monkeypatch.setattr(loop, "unless_stopped", with_a_signal)
    assert main([*commands[kind], "--out_dir", str(tmp_path / "cut")]) == 128 + number
    assert len(batches) == 2
    monkeypatch.undo()
    assert "stopping after this step" in capsys.readouterr().out
    saved = checkpoint.load(tmp_path / "cut")
    assert saved.trainer["standing"]["pending"]["step"] == saved.step == 2
    assert main(["resume", str(tmp_path / "cut")]) == 0
    assert main([*commands[kind], "--out_dir", str(tmp_path / "whole")]) == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("reentrant call inside <_io.BufferedWriter>")])
def test_a_signal_whose_message_cannot_be_printed_stops_all_the_same(monkeypatch, error):
    calls = []
    monkeypatch.setattr(console, "print", mock.Mock(side_effect=error))
    with interruptible(lambda: calls.append("stop")) as signals:
        signal.raise_signal(signal.SIGTERM)
    assert (signals, calls) == ([signal.SIGTERM], ["stop"])


def test_nohup_keeps_a_run_going(tmp_path, commands, monkeypatch, capsys):
    def with_a_signal(records, *rest):
        for record in records:
            signal.raise_signal(signal.SIGHUP)
            yield record

    monkeypatch.setattr("pyllama.cli.running.follow", with_a_signal)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main([*commands["text"], "--out_dir", str(tmp_path / "run")]) == 0
        assert "done at step 4" in capsys.readouterr().out
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_losses_on_the_screen_are_those_of_the_log(tmp_path, commands, capsys):
    assert main([*commands["text"], "--log_steps", "1", "--out_dir", str(tmp_path / "run")]) == 0
    shown = re.findall(r"^step +(\d+) +loss (\S+)", capsys.readouterr().out, re.MULTILINE)
    assert shown == [(str(line["step"]), f"{line['loss']:.4f}") for line in read_log(tmp_path / "run")]


def test_a_step_without_targets_has_no_loss(tmp_path):
    """Not the best loss there is, 0: no label counts.  JSON has no NaN."""
    class Empty(Interrupting):
        def batch(self, settings, step):
            batch = tokens(0).batch(settings, step)
            if step != self.step:
                return batch
            labels = np.full_like(batch.inputs["labels"], -100)
            return batch._replace(inputs=batch.inputs | {"labels": labels}, targets=0)

    _, records = begin(tmp_path, Empty(2))
    losses = [record.loss for record in records]
    assert [math.isnan(loss) for loss in losses] == [False, False, True, False, False, False]
    assert [line["loss"] is None for line in read_log(tmp_path)] == [math.isnan(loss) for loss in losses]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    line = {"loss": None, "step": 1, "grad_norm": 0.0, "lr": 0.1, "tokens": 1, "seconds": 1.0}
    assert math.isnan(record_of(line).loss)


def test_a_resumed_state_does_not_keep_the_checkpoint_in_memory(tmp_path):
    list(begin(tmp_path / "run")[1])
    saved = checkpoint.load(tmp_path / "run")
    arrays = [weakref.ref(a) for a in (*saved.tensors.values(), *saved.optimizer.values())]
    state = continued(CONFIG, Saved(saved, SETTINGS, POLICY, BestSoFar(), {}, None, None))
    assert state.step == SETTINGS.max_steps
    assert [array() for array in arrays] == [None] * len(arrays)
