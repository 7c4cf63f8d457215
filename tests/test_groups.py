"""Rates of their own: groups by name, rates by layer, layers that start later; and that every setting resumes."""
import itertools
from dataclasses import replace

import numpy as np
import pytest

from pyllama import backend, device, params
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import Dimensions
from pyllama.models.skipgram import SkipgramConfig
from pyllama.text.tokens import windows
from pyllama.training import loop
from pyllama.training.groups import Group, levels
from pyllama.training.optim import decaying, matrix_slices
from tests import fakecupy
from tests.test_train import CONFIG, SHORT, TEXT, begin, go_on, gradient

STEP = replace(SHORT, max_steps=1, warmup_steps=0, weight_decay=0.5, max_grad_norm=0.0, dtype="float64")


def rates(settings, config=CONFIG):
    """{name: (factor of the learning rate, weight decay, first step)} by the optimizer's parts."""
    state = loop.start(config, settings)
    by_number = [(part.rate, part.decay, part.since) for part in state.optimizer.parts
                 for _ in range(part.where.start, part.where.stop)]
    places = params.over(np.arange(len(by_number)), state.p)
    found = {}
    for name, leaf in params.leaves(places):
        [found[name]] = {by_number[place] for place in leaf.ravel()}
    return found


def ids_of_step(step):
    return windows(TEXT, SHORT.rows_per_step, SHORT.block_size, SHORT.seed, step)


def ending(found, end):
    return {value for name, value in found.items() if name.endswith(end)}


# Groups

def test_without_groups_the_parts_are_the_matrices_and_the_rest():
    state = loop.start(CONFIG, SHORT)
    assert state.optimizer.parts == decaying(state.flat.size, matrix_slices(state.p))


def test_a_step_moves_a_group_by_its_rate_and_its_decay():
    """SGD without momentum: p - η (g + λp), to a few roundings of numbers below 2."""
    settings = replace(STEP, optimizer="sgd", momentum=0.0, learning_rate=0.02, min_lr=0.0,
                       group=("norm:weight_decay=0.25", "layers.1.self_attn,lm_head:lr=0.005",
                                                       "lm_head:weight_decay=0"))
    state = loop.start(CONFIG, settings)
    before, (_, g) = state.flat.copy(), gradient(state, ids_of_step(0), settings)
    list(loop.train(state, TEXT, settings))
    own = {"norm": (0.02, 0.25), "layers.1.self_attn": (0.005, 0.5), "lm_head": (0.005, 0.0)}
    trees = (params.leaves(params.over(flat, state.p)) for flat in (state.flat, before, g))
    for (name, after), (_, p), (_, dp) in zip(*trees, strict=True):
        lr, decay = next((values for part, values in own.items() if part in name), (0.02, 0.5))
        np.testing.assert_allclose(after, p - lr * (dp + decay * p), rtol=1e-13, atol=1e-15, err_msg=name)


def test_the_last_group_that_sets_a_value_wins_and_keeps_what_it_does_not_set():
    found = rates(replace(SHORT, group=("layers:lr=0.001,weight_decay=0.2", "layers.1:lr=0.002")))
    assert ending(found, "layers.0.mlp.up_proj.weight") == {(0.1, 0.2, 0)}
    assert ending(found, "layers.1.mlp.up_proj.weight") == {(0.2, 0.2, 0)}
    assert ending(found, "layers.1.input_layernorm.weight") == {(0.2, 0.2, 0)}
    assert ending(found, "lm_head.weight") == {(1.0, None, 0)}


@pytest.mark.parametrize(("pattern", "name", "matches"), [
    ("layers.1", "model.layers.1.mlp", True), ("layers.1", "model.layers.10.mlp", False),
    ("layers.1", "model.layers.11", False), ("1.mlp", "model.layers.11.mlp", False),
    ("norm", "input_layernorm.b", True), (".", "weight", False), ("l0", "lstm.weight_ih_l0_reverse", True)])
def test_a_pattern_is_a_part_of_a_name_with_whole_numbers(pattern, name, matches):
    assert Group((pattern,)).matches(name) is matches


@pytest.mark.parametrize(("group", "message"), [
    ("norm", r"the group 'norm' must be written NAMES:KEY=VALUE"),
    (":lr=1", r"the group ':lr=1' must be written NAMES:KEY=VALUE"),
    ("norm,:lr=1", r"must be written NAMES:KEY=VALUE"),
    ("norm:rate=1", r"sets 'rate'; it can set lr and weight_decay"),
    ("norm:lr", r"lr is '' in the group 'norm:lr'; it must be a number of at least 0"),
    ("norm:lr=-1", r"lr is '-1' in"), ("norm:lr=nan", r"lr is 'nan' in"), ("norm:weight_decay=inf", r"'inf' in"),
    ("nrom:lr=1", r"the group 'nrom:lr=1' changes nothing: no parameter that is trained has 'nrom' in its name"),
    ("norm,layers.2:lr=1", r"has 'layers\.2' in its name")])
def test_a_group_that_is_not_one_is_refused(group, message):
    with pytest.raises(UserError, match=message):
        loop.start(CONFIG, replace(SHORT, group=(group,)))


# Levels

def test_rates_fall_from_the_head_to_the_embeddings():
    found = rates(replace(SHORT, lr_decay_by_layer=0.5, group=("layers.0:lr=0.02",)))
    assert {name: rate for name, (rate, _, _) in found.items() if "proj" not in name and "layernorm" not in name} == {
        "model.embed_tokens.weight": 0.25, "model.norm.weight": 1.0, "lm_head.weight": 1.0}
    assert {rate for name, (rate, _, _) in found.items() if "layers.1." in name} == {1.0}
    assert {rate for name, (rate, _, _) in found.items() if "layers.0." in name} == {2 * 0.5}


# The parameters outside the layers of every family: those read before them, and those after them.
BEFORE = ("embed", "wte", "wpe", "shared")
BETWEEN = ("model.encoder.layer_norm.",)


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind in MODELS for head in MODELS[kind].config.HEADS])
def test_levels_rise_from_the_embeddings_to_the_head_in_every_family(kind, head):
    c = MODELS[kind].config.small(Dimensions(vocab_size=11, context=7, head=head, width=8, layers=12, heads=2))
    if kind == "albert":
        c = replace(c, num_hidden_groups=12)
    level_of, layers = levels([name for name, _ in params.leaves(c.model.init(c))])
    assert layers == (24 if "model.decoder.layers.0.fc1.weight" in level_of else 12)
    assert set(level_of.values()) <= set(range(layers + 2))
    for name, level in level_of.items():
        if not any(character.isdecimal() for character in name):
            expected = 0 if any(word in name for word in BEFORE) else layers + 1
            assert level == (layers // 2 if name.startswith(BETWEEN) else expected), name


def test_layers_are_ordered_by_stack_and_number():
    names = [f"{stack}.layers.{n}.w" for stack in ("encoder", "decoder") for n in range(11)]
    assert levels(names) == ({name: level for level, name in enumerate(names, start=1)}, 22)
    assert levels(["embedding.w", "lstm.weight_ih_l0", "lstm.bias_hh_l0_reverse", "lstm.weight_hh_l1", "out.w"]) == (
        {"embedding.w": 0, "lstm.weight_ih_l0": 1, "lstm.bias_hh_l0_reverse": 1, "lstm.weight_hh_l1": 2, "out.w": 3}, 2)


@pytest.mark.parametrize("setting", [{"lr_decay_by_layer": 0.9}, {"unfreeze_steps": 2}])
def test_a_model_without_layers_is_refused(setting):
    with pytest.raises(UserError, match=f"^{next(iter(setting))} needs numbered layers, and this model has none"):
        loop.start(SkipgramConfig(9, 4), loop.Settings(**setting))


# Gradual unfreezing

@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_layers_start_one_after_the_other_and_each_as_if_it_were_the_first_step(optimizer):
    """The first AdamW step has the length η: a level that starts late starts with unbiased means."""
    settings = replace(SHORT, unfreeze_steps=2, max_steps=8, optimizer=optimizer, weight_decay=0.0, adam_epsilon=1e-30,
                       schedule="constant", warmup_steps=0, dtype="float64")
    state = loop.start(CONFIG, settings)
    level_of, layers = levels([name for name, _ in params.leaves(state.p)])
    assert layers == 2
    before = {name: a.copy() for name, a in params.leaves(state.p)}
    for record in loop.train(state, TEXT, settings):
        for name, a in params.leaves(state.p):
            moved, start = abs(a - before[name]).max(), 2 * (3 - level_of[name])
            assert (moved > 0) == (record.step > start), (record.step, name)
            if optimizer == "adamw" and record.step == start + 1:
                np.testing.assert_allclose(moved, settings.learning_rate, rtol=1e-9)
            before[name] = a.copy()


def test_what_does_not_train_yet_is_not_in_the_norm():
    settings = replace(SHORT, unfreeze_steps=1, max_steps=4)
    whole, norms = loop.start(CONFIG, SHORT), [r.grad_norm for r in loop.train(loop.start(CONFIG, settings), TEXT,
                                                                             settings)]
    _, g = gradient(whole, ids_of_step(0), SHORT)
    tree = params.over(g, whole.p)
    head = np.concatenate([tree["model"]["norm"]["weight"].ravel(), tree["lm_head"]["weight"].ravel()])
    assert norms[0] == pytest.approx(np.linalg.norm(head.astype(np.float64)), rel=1e-6)
    assert norms[3] > norms[0]


@pytest.mark.parametrize(("wrong", "message"), [
    ({"lr_decay_by_layer": 0.0}, "lr_decay_by_layer is 0.0; it must lie in 0 < a <= 1"),
    ({"lr_decay_by_layer": 1.1}, "lr_decay_by_layer is 1.1; it must lie in 0 < a <= 1"),
    ({"unfreeze_steps": -1}, "unfreeze_steps is -1; it must be at least 0"),
    ({"unfreeze_steps": 2, "freeze": ("model.norm",)}, "unfreeze_steps trains every parameter in the end, but freeze"),
    ({"freeze": "model"}, r"freeze is 'model'; give a tuple of texts, such as \('model',\)"),
    ({"group": "norm:lr=1"}, "group is 'norm:lr=1'; give a tuple of texts"),
    ({"sparsity": 1.0}, "sparsity is 1.0; it must lie in 0 <= a < 1"),
    ({"sparsity": -0.1}, "sparsity is -0.1; it must lie in 0 <= a < 1"),
    ({"sparsity_steps": 5}, "sparsity_steps has no effect without sparsity"),
    ({"sparsity": 0.5, "sparsity_steps": -5}, "sparsity_steps is -5; it must be at least 0")])
def test_settings_of_updates_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=f"^{message}"):
        replace(SHORT, **wrong)


def test_a_run_that_ends_too_early_is_noted():
    settings = replace(SHORT, max_steps=6, sparsity=0.5, sparsity_steps=6, unfreeze_steps=5)
    assert settings.notes == ()
    assert replace(settings, max_steps=5).notes == (
        "the run ends before sparsity is reached: sparsity_steps is 6 and max_steps 5; make sparsity_steps smaller",
        "the head alone trains: unfreeze_steps is 5 and max_steps 5; make unfreeze_steps smaller")


# Resuming

@pytest.mark.parametrize("changes", [
    {"group": ("norm:weight_decay=0.1", "lm_head:lr=0.001")}, {"lr_decay_by_layer": 0.5}, {"unfreeze_steps": 2},
    {"sparse_updates": True, "dtype": "bfloat16"}, {"sparsity": 0.5, "sparsity_steps": 4},
    {"sparsity": 0.5, "dtype": "bfloat16", "sparse_updates": True, "unfreeze_steps": 1, "optimizer": "sgd"}], ids=str)
def test_resuming_changes_no_bit(tmp_path, changes):
    settings = replace(SHORT, **changes)
    undisturbed, records = begin(tmp_path / "whole", settings)
    list(records)
    for step in 1, 3:
        _, records = begin(tmp_path / f"{step}", settings)
        list(itertools.islice(records, step))
        records.close()
        state, records = go_on(tmp_path / f"{step}", settings)
        list(records)
        np.testing.assert_array_equal(state.flat, undisturbed.flat)
        for name, a in undisturbed.optimizer.state().items():
            np.testing.assert_array_equal(state.optimizer.state()[name], a)


# On a GPU

def on_gpu(settings, like):
    """The parameters after a run on the stand-in for a GPU, brought to the host."""
    state = loop.start(CONFIG, settings, like=like)
    list(loop.train(state, TEXT, settings))
    return device.host(state.flat)


@pytest.mark.parametrize("changes", [{"group": ("norm:lr=0.001",)}, {"unfreeze_steps": 1},
                                     {"sparsity": 0.5, "sparsity_steps": 3}], ids=str)
def test_a_gpu_updates_the_same_parameters(changes):
    """Sums in another order differ by some 1e-15; a step of AdamW divides such a difference by the gradient."""
    settings = replace(SHORT, shards=1, dtype="float64", **changes)
    state = loop.start(CONFIG, settings)
    with fakecupy.installed(), backend.use("numpy"):
        list(loop.train(state, TEXT, settings))
        found = on_gpu(settings, device.cupy().zeros(1))
    np.testing.assert_allclose(found, state.flat, rtol=1e-10, atol=1e-12)


def test_sparse_updates_on_a_gpu_are_refused():
    with fakecupy.installed(), pytest.raises(UserError, match="sparse_updates runs on the CPU only; remove it"):
        on_gpu(replace(SHORT, sparse_updates=True), device.cupy().zeros(1, np.float32))
