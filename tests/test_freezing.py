"""Training with parameters that do not train: they keep their bits, and cost nothing."""
import itertools
from dataclasses import replace

import numpy as np
import pytest

from pyllama import params
from pyllama.errors import UserError
from pyllama.models import llama
from pyllama.quantization import EncodedArray
from pyllama.training import checkpoint, loop
from pyllama.training.diagnose import first_not_finite
from pyllama.training.run import resumed
from tests.test_train import CONFIG, SHORT, TEXT, begin


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw", "float32"), ("sgd", "float32"), ("adamw", "bfloat16")])
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns_as_if_it_had_no_gradient(optimizer, dtype):
    settings = replace(SHORT, freeze=("model.layers.0", "model.embed_tokens"), optimizer=optimizer, weight_decay=0.5,
                       dtype=dtype)
    state, free = loop.start(CONFIG, settings), loop.start(CONFIG, replace(settings, freeze=()))
    before = {name: a.copy() for name, a in params.leaves(state.p)}
    record, whole = (next(loop.train(s, TEXT, replace(settings, freeze=freeze)))
                     for s, freeze in ((state, settings.freeze), (free, ())))
    kept = {name for name, a in params.leaves(state.p) if np.array_equal(a, before[name])}
    assert kept == {name for name in before if name.startswith(("model.layers.0.", "model.embed_tokens"))}
    assert record.loss == whole.loss
    assert record.grad_norm < whole.grad_norm
    size = params.size(state.p) - sum(before[name].size for name in kept)
    assert {state.flat.size, *(getattr(state.optimizer, name).size for name in state.optimizer.vectors)} == {size}
    with pytest.raises(UserError, match="freeze names parameters that this state trains"):
        next(loop.train(free, TEXT, replace(settings, max_steps=9)))


def test_what_is_frozen_is_neither_copied_nor_kept_in_two_precisions():
    """In bfloat16 a frozen matrix is rounded once, which a checkpoint keeps; the model in one precision is exact."""
    tree = llama.init(CONFIG)
    settings = replace(SHORT, freeze=("model.layers",))
    state = loop.start(CONFIG, settings, tree)
    low = loop.start(CONFIG, replace(settings, dtype="bfloat16"), tree)
    for (name, leaf), (_, given) in zip(params.leaves(state.p), params.leaves(tree), strict=True):
        assert (leaf is given) == name.startswith("model.layers."), name
    for (name, leaf), (_, read), (_, wide), (_, given) in zip(
            *map(params.leaves, (low.p, low.working.tree, low.tree, tree)), strict=True):
        if name.startswith("model.layers."):
            assert read is leaf
            assert leaf.dtype == ("float32" if leaf.ndim == 1 else "bfloat16")
            np.testing.assert_array_equal(wide, given.astype(leaf.dtype).astype("float32"), strict=True)
        else:
            assert wide is leaf


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_with_frozen_parameters_resumes_also_one_that_kept_their_moments(dtype, tmp_path):
    """As 0.1 saved it: vectors of all parameters, which are 0 for the frozen ones."""
    settings = replace(SHORT, freeze=("model.layers.0", "lm_head"), dtype=dtype)
    whole, happenings = begin(tmp_path / "whole", settings)
    list(happenings)
    begun, happenings = begin(tmp_path / "begun", settings)
    list(itertools.islice(happenings, 3))
    happenings.close()
    saved = checkpoint.load(tmp_path / "begun")
    zeros = params.rebuild(begun.p, (np.zeros(leaf.shape, "float32") for _, leaf in params.leaves(begun.p)))
    older = {name: params.flatten(params.over(a, zeros, begun.trained))[0] if a.ndim else a
             for name, a in saved.optimizer.items()}
    assert older["m"].size == params.size(begun.p) > saved.optimizer["m"].size > 0
    for optimizer in (saved.optimizer, older):
        state = resumed(CONFIG, saved._replace(optimizer=optimizer), settings)
        list(loop.train(state, TEXT, settings))
        np.testing.assert_array_equal(state.flat, whole.flat)
        for name, leaf in params.leaves(state.p):
            np.testing.assert_array_equal(leaf, dict(params.leaves(whole.p))[name], strict=True)


def test_the_moments_of_a_run_without_frozen_parameters_are_loaded_without_a_copy(monkeypatch):
    state = loop.start(CONFIG, SHORT)
    saved = {name: np.ones_like(a) for name, a in state.optimizer.state().items()}
    monkeypatch.setattr(params, "flatten", None)                # which copies
    state.load_optimizer(saved)
    assert state.optimizer.m.all()


def test_a_name_that_freezes_nothing_is_refused():
    for wrong in ("modle", "", "model.layer", "model.layers.0.mlp.up"):
        with pytest.raises(UserError, match=rf"no parameter at '{wrong}'; give names such as model\.embed"):
            loop.start(CONFIG, replace(SHORT, freeze=("model.norm", wrong)))
    with pytest.raises(UserError, match="freeze leaves no parameter to train"):
        loop.start(CONFIG, replace(SHORT, freeze=("model", "lm_head")))


def test_encoded_matrices_may_be_frozen_where_a_caller_names_what_trains():
    """They are neither copied nor decoded, no op takes them, and a diagnosis reads them."""
    encoded = EncodedArray.of(np.ones((2, 32)), "q8_0")
    plain = llama.init(CONFIG)
    tree = {**plain, "base": encoded}
    state = loop.start(CONFIG, SHORT, tree, trained={name for name, _ in params.leaves(tree)} - {"base"})
    assert state.p["base"] is state.working.tree["base"] is state.tree["base"] is encoded
    losses = {next(loop.train(one, TEXT, SHORT)).loss for one in (state, loop.start(CONFIG, SHORT, plain))}
    assert len(losses) == 1
    assert first_not_finite({"base": encoded}, lambda: None) == "every tensor is finite, but a sum of them is not"
    broken = EncodedArray.of(np.full((2, 32), 1.0), "f16")
    broken.data[:] = 0xFF
    assert first_not_finite({"base": broken}, lambda: None) == "the parameter base is not finite"
