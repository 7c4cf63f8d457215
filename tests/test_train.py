"""The training loop and the run folder: exactness of accumulation and of resuming, stopping, logs, diagnosis."""
import itertools
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.errors import UserError
from pyllama.models import llama
from pyllama.text.tokens import Batch, Tokens, evaluation_windows, windows
from pyllama.training import checkpoint, loop
from pyllama.training.log import read_log
from pyllama.training.optim import clip_scale, global_norm
from pyllama.training.run import BestSoFar, RunPolicy, from_stored, restore, run

CONFIG = llama.LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                           num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8, resid_pdrop=0.2)
SHORT = loop.Settings(batch_size=3, block_size=5, gradient_accumulation_steps=2, shards=2, max_steps=6,
                       learning_rate=0.01, min_lr=0.001, warmup_steps=2)


def tokens(seed, n=200):
    ids = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n).astype(np.uint16)
    return Tokens(ids, np.array([0]), np.array([n]))


TEXT, HELD_OUT = tokens(0), tokens(1, 60)


def gradient(state, ids, settings):
    """(loss, gradient) of a step, shard after shard."""
    flats = [np.full_like(state.flat, np.nan) for _ in range(settings.shards)]
    batch = Batch({"ids": ids, "labels": ids}, ids[:, 1:].size)
    return loop.gradient(state, batch, settings, [params.over(flat, state.p) for flat in flats]), sum(flats)


def test_a_small_text_is_learned_by_heart():
    """A repeating sequence of six tokens has an entropy of zero given the one before."""
    ids = np.tile(np.arange(6, dtype=np.uint16), 30)
    settings = loop.Settings(batch_size=4, block_size=8, max_steps=80, learning_rate=0.02, warmup_steps=5)
    state = loop.start(replace(CONFIG, resid_pdrop=0.0, initializer_range=0.2), settings)
    text = Tokens(ids, np.array([0]), np.array([ids.size]))
    records = list(loop.train(state, text, settings))
    assert [r.step for r in records] == list(range(1, 81))
    assert records[0].loss > 1.5
    assert records[-1].loss < 0.05
    result = loop.evaluate(state, text, settings)
    assert result.accuracy == 1
    assert result.loss < 0.05


def test_the_first_of_twelve_layers_is_not_the_eleventh():
    p = {"layers": [np.zeros(1)] * 12}
    assert params.chosen(p, ["layers.1"]) == {"layers.1"}


@given(piece=st.integers(1, 6), shards=st.integers(1, 7), smoothing=st.sampled_from([0.0, 0.1]))
@settings(max_examples=10)
def test_pieces_and_shards_add_up_to_the_whole_batch(piece, shards, smoothing):
    """The mean over the tokens of the step, whatever the split: equal to rounding (a sum in another order).

    With dropout too: what is dropped belongs to a place in the step.
    """
    ids = np.random.default_rng(piece).integers(0, CONFIG.vocab_size, (6, 6))
    whole = replace(SHORT, shards=1, micro_batch_size=6, dtype="float64", label_smoothing=smoothing)
    state = loop.start(CONFIG, whole)
    loss, split = gradient(state, ids, replace(whole, shards=shards, micro_batch_size=piece))
    exact_loss, exact = gradient(state, ids, whole)
    assert loss == pytest.approx(exact_loss, rel=1e-13)
    np.testing.assert_allclose(split, exact, rtol=1e-10, atol=1e-14)


def test_shards_side_by_side_give_the_bits_of_one_after_the_other():
    settings = replace(SHORT, batch_size=7, shards=3)
    state, one_by_one = loop.start(CONFIG, settings), loop.start(CONFIG, settings)
    list(loop.train(state, TEXT, settings))
    for step in range(settings.max_steps):
        ids = windows(TEXT, 14, settings.block_size, settings.seed, step)
        _, grad = gradient(one_by_one, ids, settings)
        scale = clip_scale(global_norm(grad), settings.max_grad_norm)
        one_by_one.optimizer.step(one_by_one.flat, grad, settings.rate(step), settings.weight_decay, scale)
        one_by_one.step += 1
    np.testing.assert_array_equal(state.flat, one_by_one.flat)


def with_loss(loss):
    """CONFIG, but of a model that has this loss."""
    return type("Watched", (llama.LlamaConfig,), {"model": SimpleNamespace(loss=loss)})(**vars(CONFIG))


def test_a_piece_keeps_nothing_when_the_next_begins():
    """Its activations are what takes memory: two pieces' at once would be twice as much."""
    alive, most = [], []

    def loss(*inputs, **options):
        value, back = llama.loss(*inputs, **options)
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(back))
        return value, back

    settings = replace(SHORT, shards=1, micro_batch_size=2)
    state = loop.start(CONFIG, settings)
    state.config = with_loss(loss)
    gradient(state, windows(TEXT, 6, settings.block_size, settings.seed, 0), settings)
    assert most == [0, 0, 0]


@pytest.mark.parametrize(("hidden", "sizes"), [(2 ** 14, [3, 3]), (2 ** 15, [2, 2, 2]), (2 ** 20, [1] * 6), (8, [6])])
def test_a_piece_holds_a_mebibyte_of_a_layer_s_input_and_at_least_a_window(hidden, sizes):
    made = []

    def loss(ids, labels, p, c, **options):
        made.append(len(ids))
        return 0.0, lambda: p

    settings = replace(SHORT, shards=1)
    state = loop.start(CONFIG, settings)
    state.config = SimpleNamespace(model=SimpleNamespace(loss=loss), hidden_size=hidden)
    gradient(state, windows(TEXT, 6, settings.block_size, settings.seed, 0), settings)
    assert made == sizes


@pytest.mark.skipif(not backend.cpu, reason="the C kernels are not built")
@pytest.mark.parametrize(("threads", "shards", "workers", "each"),
                         [(1, 4, 1, 1), (2, 3, 2, 1), (8, 3, 3, 2), (2, 1, 1, 2)])
def test_shards_and_kernels_share_the_threads(threads, shards, workers, each, monkeypatch):
    """No bit depends on it, but speed and the other users of the machine do."""
    seen, pools = set(), []

    def loss(ids, labels, p, c, **options):
        seen.add(backend.cpu.threads())
        return 0.0, lambda: p

    def pool(n):
        pools.append(n)
        return ThreadPoolExecutor(n)

    monkeypatch.setattr(loop, "ThreadPoolExecutor", pool)
    before = backend.cpu.threads()
    backend.cpu.set_threads(threads)
    try:
        settings = replace(SHORT, batch_size=8, shards=shards)
        state = loop.start(CONFIG, settings)
        state.config = with_loss(loss)
        next(loop.train(state, TEXT, settings))
        assert backend.cpu.threads() == threads
    finally:
        backend.cpu.set_threads(before)
    assert (pools, seen) == ([workers], {each})


def test_parts_with_different_numbers_of_valid_labels_add_up_to_the_whole():
    """Token-weighted, not a mean of means: the parts hold 1, 5 and 0 valid labels."""
    rng = np.random.default_rng(0)
    p = llama.init(CONFIG, 0, "float64")
    ids = rng.integers(0, CONFIG.vocab_size, (3, 6))
    labels = np.where([[0, 0, 0, 1, 0, 0], [1] * 6, [1] + [0] * 5], ids, -100)
    value, back = llama.loss(ids, labels, p, CONFIG)
    whole, total, sums = dict(params.leaves(back())), 0.0, {}
    for row in range(3):
        part, part_back = llama.loss(ids[row:row + 1], labels[row:row + 1], p, CONFIG, count=6)
        total += part
        for name, g in params.leaves(part_back()):
            sums[name] = sums.get(name, 0) + g
    assert total == pytest.approx(value, rel=1e-13)
    for name, g in whole.items():
        np.testing.assert_allclose(sums[name], g, rtol=1e-10, atol=1e-14, err_msg=name)


def test_evaluation_is_the_mean_over_every_token_but_the_first():
    state = loop.start(CONFIG, replace(SHORT, dtype="float64"))
    result = loop.evaluate(state, HELD_OUT, SHORT)
    losses, right = [], []
    for ids, labels in evaluation_windows(HELD_OUT, 1, SHORT.block_size):
        z, _ = llama.logits(ids[:, :-1], state.p, CONFIG)
        for row, target in zip(z[0], labels[0, 1:], strict=True):
            if target != -100:
                losses.append(np.log(np.exp(row).sum()) - row[target])
                right.append(row.argmax() == target)
    assert result.tokens == len(losses) == len(HELD_OUT) - 1
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-12)
    assert result.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-12)
    assert result.accuracy == pytest.approx(np.mean(right))
    assert loop.evaluate(state, HELD_OUT, SHORT, most=10).tokens == 10


def test_not_a_number_is_traced_to_the_parameter_and_leaves_the_state_alone():
    state = loop.start(CONFIG, SHORT)
    steps = loop.train(state, TEXT, SHORT)
    next(steps)
    state.p["model"]["layers"][1]["mlp"]["up_proj"]["weight"][2, 3] = np.inf
    before = state.flat.copy()
    with pytest.raises(UserError, match=r"step 2: the parameter model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
        next(steps)
    np.testing.assert_array_equal(state.flat, before)
    assert state.step == 1
    assert state.optimizer.t == 1


def test_an_overflow_is_traced_to_the_op():
    state = loop.start(CONFIG, SHORT)
    state.p["model"]["layers"][0]["mlp"]["up_proj"]["weight"][:] = 3e38
    state.p["model"]["layers"][0]["mlp"]["gate_proj"]["weight"][:] = 3e38
    with pytest.raises(UserError, match=r"the result of call \d+ of linear in the step is the first tensor"):
        list(loop.train(state, TEXT, SHORT))


@pytest.mark.parametrize(("wrong", "names"), [({"batch_size": 0}, "batch_size"), ({"min_lr": 1.0}, "min_lr"),
                                              ({"label_smoothing": 1.0}, "label_smoothing"),
                                              ({"max_grad_norm": -1.0}, "max_grad_norm")])
def test_settings_that_make_no_sense_are_refused(wrong, names):
    with pytest.raises(UserError, match=f"^{names} is "):
        replace(SHORT, **wrong)


# The run folder

def begin(folder, settings=SHORT, policy=None, text=TEXT):
    state = loop.start(CONFIG, settings)
    policy = policy or RunPolicy(eval_steps=2, save_steps=1, save_total_limit=99)
    return state, run(folder, state, text, HELD_OUT, settings, policy, {"text": {}})


def go_on(folder, settings=SHORT):
    saved = checkpoint.load(folder)
    assert not saved.notes
    state = loop.start(llama.LlamaConfig.from_dict(saved.config), settings)
    restore(state, saved)
    best_so_far = from_stored(BestSoFar, saved.trainer["standing"])
    return state, run(folder, state, TEXT, HELD_OUT, settings, from_stored(RunPolicy, saved.trainer["keeping"]),
                      saved.trainer["about"], best_so_far=best_so_far)


def without_time(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw", "float32"), ("sgd", "float32"), ("adamw", "bfloat16")])
def test_resuming_at_every_step_boundary_changes_no_bit(tmp_path, optimizer, dtype):
    """With dropout, accumulation and evaluation: weights, optimizer, losses and the best of the run."""
    settings = replace(SHORT, optimizer=optimizer, dtype=dtype)
    undisturbed, happenings = begin(tmp_path / "whole", settings)
    list(happenings)
    for step in range(1, settings.max_steps):
        folder = tmp_path / f"cut-{step}"
        _, happenings = begin(folder, settings)
        list(itertools.islice(happenings, step))
        happenings.close()
        state, happenings = go_on(folder, settings)
        assert state.step == step
        list(happenings)
        np.testing.assert_array_equal(state.flat, undisturbed.flat)
        for name, a in undisturbed.optimizer.state().items():
            np.testing.assert_array_equal(state.optimizer.state()[name], a)
        assert without_time(read_log(folder)) == without_time(read_log(tmp_path / "whole"))
        assert (folder / "best").read_text() == (tmp_path / "whole/best").read_text()
        assert (checkpoint.load(folder).trainer["standing"] == checkpoint.load(tmp_path / "whole").trainer["standing"])


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(tmp_path):
    """As after a kill: the log is ahead of the checkpoint, and its last line is unfinished."""
    _, happenings = begin(tmp_path / "run", policy=RunPolicy(eval_steps=99, save_steps=2))
    list(happenings)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    (tmp_path / "run/latest").write_text("step-00000004\n")
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    _, happenings = go_on(tmp_path / "run")
    list(happenings)
    assert [line["step"] for line in read_log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_closing_saves_the_last_whole_step_and_a_diverged_one_is_not_saved(tmp_path):
    state, happenings = begin(tmp_path / "closed", policy=RunPolicy(eval_steps=99, save_steps=99))
    list(itertools.islice(happenings, 3))
    happenings.close()
    saved = checkpoint.load(tmp_path / "closed")
    assert saved.step == 3
    np.testing.assert_array_equal(params.flatten(params.named(state.p, saved.tensors))[0], state.flat)

    state, happenings = begin(tmp_path / "broken", policy=RunPolicy(eval_steps=99, save_steps=2, save_total_limit=1))
    list(itertools.islice(happenings, 2))
    good = state.flat.copy()
    next(happenings)
    state.flat *= 1e38
    with pytest.raises(UserError, match="in step 4"):
        next(happenings)
    saved = checkpoint.load(tmp_path / "broken")
    assert saved.step == 2
    np.testing.assert_array_equal(params.flatten(params.named(state.p, saved.tensors))[0], good)


def test_patience_stops_and_the_best_checkpoint_is_kept(tmp_path):
    """With a learning rate that only harms, the first evaluation stays the best."""
    settings = replace(SHORT, max_steps=50, learning_rate=3.0, min_lr=3.0, warmup_steps=0, schedule="constant",
                       optimizer="sgd", weight_decay=0.0)
    _, happenings = begin(tmp_path, settings, RunPolicy(eval_steps=1, save_steps=1, save_total_limit=1, patience=3))
    done = list(happenings)
    losses = [h.evaluation.loss for h in done]
    best = int(np.argmin(losses)) + 1
    assert len(done) == best + 3 < 50
    assert checkpoint.best(tmp_path).name == f"step-{best:08d}"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-{best:08d}", f"step-{best + 3:08d}"]
    assert list(go_on(tmp_path, settings)[1]) == []                 # and resuming does not wake it up


def test_every_step_is_logged_with_its_evaluation(tmp_path):
    _, happenings = begin(tmp_path, policy=RunPolicy(eval_steps=4, save_steps=99))
    done = list(happenings)
    lines = read_log(tmp_path)
    assert [line["loss"] for line in lines] == [h.loss for h in done]
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 6]
    assert lines[3]["val_perplexity"] == done[3].evaluation.perplexity
    assert [line["lr"] for line in lines] == [SHORT.rate(i) for i in range(6)]


def test_tensorboard_event_files_hold_the_losses(tmp_path):
    """An event file is records of: length (8 bytes), its checksum (4), a protobuf, its checksum (4)."""
    pytest.importorskip("tensorboardX", reason="the extra 'tensorboard' is not installed")
    from tensorboardX.proto.event_pb2 import Event

    _, happenings = begin(tmp_path, policy=RunPolicy(eval_steps=4, save_steps=99, tensorboard=True))
    want = [h.loss for h in happenings]
    raw, got = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir()), {}
    while raw:
        size = int.from_bytes(raw[:8], "little")
        event = Event.FromString(raw[12:12 + size])
        raw = raw[12 + size + 4:]
        got |= dict([(event.step, value.simple_value) for value in event.summary.value if value.tag == "loss"])
    assert list(got) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(got.values()), want, rtol=1e-6)               # stored as float32


def test_a_longer_resume_does_not_warm_up_again(tmp_path):
    """The default warmup is a tenth of the steps, here 2 of 20; 40 steps would have 4."""
    policy = RunPolicy(eval_steps=99, save_steps=99)
    _, happenings = begin(tmp_path, replace(SHORT, max_steps=20, warmup_steps=None), policy)
    next(happenings)
    happenings.close()
    stored = checkpoint.load(tmp_path).trainer["settings"]
    assert replace(from_stored(loop.Settings, stored), max_steps=40).warmup == 2
