"""Magnitude pruning: which weights are zero, when, and that nothing moves them again."""
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import params
from pyllama.training import checkpoint, loop
from pyllama.training.masks import Mask, drop_smallest
from pyllama.training.optim import is_matrix
from tests.test_train import CONFIG, SHORT, TEXT, begin

SPARSE = replace(SHORT, sparsity=0.6, weight_decay=0.5)


@given(x=st.lists(st.integers(-4, 4), min_size=1, max_size=12).map(lambda x: np.array(x, float)), data=st.data())
def test_the_smallest_are_dropped_and_those_that_are_stay_so(x, data):
    first, second = sorted(data.draw(st.tuples(*[st.integers(0, x.size)] * 2)))
    dropped = np.zeros(x.size, bool)
    drop_smallest(x, dropped, first)
    assert dropped.sum() == first
    assert not first or first == x.size or abs(x[dropped]).max() <= abs(x[~dropped]).min()
    before = dropped.copy()
    x = np.where(dropped, 0, x[::-1])                           # the others learn, and some become zero by chance
    drop_smallest(x, dropped, second)
    assert dropped.sum() == second
    assert (dropped | ~before).all()


def test_ties_are_dropped_from_the_left():
    """So the mask does not depend on how a processor sorts."""
    dropped = np.zeros(5, bool)
    drop_smallest(np.array([0.0, -1.0, 0.0, 0.0, 1.0]), dropped, 2)
    assert dropped.tolist() == [True, False, True, False, False]


def test_the_share_grows_by_the_cube_of_what_is_left():
    """Zhu & Gupta's equation 1 with s_i = 0, at stages that reach its end whether they divide it or not."""
    mask = Mask([slice(0, 100_000)], 100_000, sparsity=0.5, steps=50)
    p, seen = np.random.default_rng(0).standard_normal(100_000), {}
    for t in range(60):
        mask.renew(t, p)
        seen[t] = int((p == 0).sum())
    assert seen[0] == 0
    assert seen[24] == round(100_000 * (0.5 + (0 - 0.5) * (1 - 24 / 50) ** 3))
    assert seen[50] == seen[59] == 50_000
    assert list(seen.values()) == sorted(seen.values())
    assert len(set(seen.values())) == 18                        # every ⌈50/20⌉ = 3 steps from 0 to 48, and 50


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"optimizer": "sgd"}, {"sparse_updates": True}],
                         ids=str)
def test_each_matrix_has_its_zeros_at_every_step_and_the_rest_learns(changes):
    settings = replace(SPARSE, **changes)
    state = loop.start(CONFIG, settings)
    first = {name: a.copy() for name, a in params.leaves(state.p)}
    for _ in loop.train(state, TEXT, settings):
        for (name, a), (_, read) in zip(params.leaves(state.p), params.leaves(state.working.tree), strict=True):
            zeros = np.zeros(a.size, bool)
            if is_matrix(name, a):
                zeros[np.argsort(abs(first[name]), axis=None, kind="stable")[:round(0.6 * a.size)]] = True
            np.testing.assert_array_equal(a.ravel() == 0, zeros)
            np.testing.assert_array_equal(read.ravel() == 0, zeros)
    moved = {name for name, a in params.leaves(state.p) if not np.array_equal(a[a != 0], first[name][a != 0])}
    assert moved == first.keys()
    for name in state.optimizer.vectors:
        assert not getattr(state.optimizer, name)[state.flat == 0].any()


def test_the_rest_learns_as_if_the_mask_were_the_model():
    """The same bits as a model whose weights were zero from the start, and whose gradients are cut by hand."""
    settings = replace(SPARSE, shards=1)
    state = loop.start(CONFIG, settings)
    other = loop.start(CONFIG, replace(settings, sparsity=0.0))
    list(loop.train(state, TEXT, settings))
    dropped, plain = state.optimizer.mask.dropped, other.optimizer.sum_and_norm
    other.flat[dropped] = 0

    def cut(gs):
        gs[0][dropped] = 0
        return plain(gs)

    other.optimizer.sum_and_norm = cut
    list(loop.train(other, TEXT, replace(settings, sparsity=0.0)))
    np.testing.assert_array_equal(state.flat, other.flat)


def test_the_mask_grows_while_it_trains_and_is_saved(tmp_path):
    """In the working copy of bfloat16, too, which the step that drops a weight has just written."""
    settings = replace(SPARSE, sparsity_steps=4, dtype="bfloat16")
    state, records = begin(tmp_path, settings)
    shares = []
    for _ in records:
        dropped = state.optimizer.mask.dropped
        np.testing.assert_array_equal(state.flat[dropped], 0)
        np.testing.assert_array_equal(state.working.copy[dropped].astype(float), 0)
        shares.append(dropped.mean())
    assert shares == sorted(shares)
    assert len(set(shares)) == 4
    saved = checkpoint.load(tmp_path)
    np.testing.assert_array_equal(np.unpackbits(saved.optimizer["dropped"], count=dropped.size), dropped)
    assert (saved.tensors["lm_head.weight"] == 0).sum() == round(0.6 * CONFIG.vocab_size * CONFIG.hidden_size)


def test_weights_that_are_given_after_the_start_are_pruned_too():
    """As word vectors, which finetune puts into a model that is ready to train."""
    settings = replace(SPARSE, max_steps=1)
    state = loop.start(CONFIG, settings)
    table = state.p["model"]["embed_tokens"]["weight"]
    table[:] = 1 + np.arange(table.size).reshape(table.shape)
    list(loop.train(state, TEXT, settings))
    assert np.flatnonzero(table == 0).tolist() == list(range(round(0.6 * table.size)))
