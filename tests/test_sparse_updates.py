"""Rows of tables that only the steps that look them up update: the rule, which rows, and what that leaves alone."""
import contextlib
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import backend, params
from pyllama.errors import UserError
from pyllama.models import glove, llama, skipgram
from pyllama.models.skipgram import SkipgramConfig
from pyllama.ops import embedding
from pyllama.text.tokens import joined, windows
from pyllama.training import loop, words
from pyllama.training.optim import Part, clip_scale, global_norm
from pyllama.training.rows import Tables
from tests.test_models import CASES, randomized
from tests.test_optim import DTYPES, EVERY_RULE, TRANSCRIPTION, built, close
from tests.test_train import CONFIG, SHORT, TEXT, gradient

V, D = 6, 3
SPARSE = replace(SHORT, sparse_updates=True, weight_decay=0.3, max_grad_norm=0.0)


@pytest.fixture(autouse=True, scope="module", params=[name for name in backend.available() if name != "cuda"])
def on(request):
    with backend.use(request.param):
        yield request.param


def with_table(make, options, dtype, dense=2):
    """(optimizer, table) of a vector of some numbers and then a table [V D]."""
    optimizer = make(dense + V * D, dtype, matrices=[], **options)
    optimizer.tables = Tables({"table": np.zeros((V, D))}, V)
    table = optimizer.tables.of_name["table"]
    optimizer.parts = [Part(slice(0, dense), decay=0.0), Part(slice(dense, optimizer.size), table=table)]
    return optimizer, table


def touch(table, rows):
    table.note(np.array(rows, int))
    table.close()


each_rule = pytest.mark.parametrize(("make", "options"), EVERY_RULE.values(), ids=EVERY_RULE)


@pytest.mark.parametrize("dtype", DTYPES)
@each_rule
@given(steps=st.lists(st.sets(st.integers(0, V - 1)), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_row_is_updated_as_if_the_steps_that_touch_it_were_the_only_ones(dtype, make, options, steps, seed):
    """Each number follows the scalar formula over these steps, with its bound on rounding; its decay, too."""
    optimizer, table = with_table(make, options, dtype)
    p, *gs = np.random.default_rng(seed).standard_normal((1 + len(steps), optimizer.size)).astype(dtype)
    after = p.copy()
    for g, rows in zip(gs, steps, strict=True):
        touch(table, sorted(rows))
        optimizer.step(after, g, 0.1, 0.3, 0.7)
    rule = {"betas": (0.9, 0.95), "eps": 1e-8} | options if make.__name__ == "AdamW" else options
    for i in range(optimizer.size):
        row = (i - 2) // D
        seen = [g[i] for g, rows in zip(gs, steps, strict=True) if i < 2 or row in rows]
        exact, e = TRANSCRIPTION[make](p[i], seen, 0.1, 0.3 if i >= 2 else 0.0, 0.7, **rule)
        assert close(after[i], exact, e) if seen else after[i] == p[i], i


@pytest.mark.parametrize("dtype", DTYPES)
@each_rule
def test_it_is_the_dense_rule_bit_for_bit_if_every_step_touches_every_row(dtype, make, options):
    optimizer, table = with_table(make, options, dtype)
    dense = make(optimizer.size, dtype, matrices=[slice(2, optimizer.size)], **options)
    p, *gs = np.random.default_rng(0).standard_normal((4, optimizer.size)).astype(dtype)
    after = p.copy()
    for g in gs:
        touch(table, range(V))
        optimizer.step(after, g, 0.1, 0.3, 0.7)
        dense.step(p, g, 0.1, 0.3, 0.7)
    np.testing.assert_array_equal(after, p)


def test_only_touched_rows_are_read_and_written():
    """What else is in the gradient does not enter the norm, nor the rounded copy, the means or the counts."""
    optimizer, table = with_table(*EVERY_RULE["adamw"], np.float32)
    touch(table, [1, 4])
    rng = np.random.default_rng(0)
    p, g, other = rng.standard_normal((3, optimizer.size)).astype(np.float32)
    touched = np.array([True, True, *np.isin(np.arange(V), [1, 4]).repeat(D)])
    expected = np.linalg.norm((g + other)[touched].astype(np.float64))
    total = np.where(touched, g + other, g)
    assert optimizer.sum_and_norm([g, other]) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(g, total)

    before, rounded = p.copy(), np.full(p.shape, 7, ml_dtypes.bfloat16)
    optimizer.step(p, g, 0.1, 0.3, rounded=rounded)
    for changed in p != before, rounded != 7, optimizer.m != 0, optimizer.v != 0:
        np.testing.assert_array_equal(changed, touched)
    np.testing.assert_array_equal(rounded[touched], p[touched].astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(table.count, [0, 1, 0, 0, 1, 0])


# Which rows

@pytest.mark.parametrize(("model", "c", "inputs", "options"), CASES.values(), ids=CASES)
def test_rows_of_no_model_have_a_gradient_unless_they_are_touched(model, c, inputs, options):
    """A table that is tied, or read in another way, is touched as a whole."""
    p = randomized(model, c)
    tables = Tables(p, c.vocab_size)
    grads = params.over(np.zeros(sum(a.size for _, a in params.leaves(p))), p)
    with tables.recording(p), params.adding(p, grads):
        _, back = model.loss(*inputs, p, c, **options)
        params.add(grads, back())
    for name, leaf in params.leaves(grads):
        if name in tables.of_name:
            untouched = np.setdiff1d(np.arange(len(leaf)), tables.of_name[name].touched)
            assert not leaf[untouched].any(), name


def recorded(config, settings, steps=1):
    """{name: the rows of its table that the last of some steps touched}."""
    state = loop.start(config, replace(settings, max_steps=steps))
    list(loop.train(state, TEXT, replace(settings, max_steps=steps)))
    return {name: table.touched.tolist() for name, table in state.optimizer.tables.of_name.items()}


@pytest.mark.parametrize("settings", [SPARSE, replace(SPARSE, recompute=True), replace(SPARSE, dtype="bfloat16")])
def test_the_rows_of_a_step_are_those_of_its_inputs(settings):
    wide = replace(CONFIG, vocab_size=40)
    ids = windows(TEXT, 6, settings.block_size, settings.seed, 1)[:, :-1]
    assert recorded(wide, settings, steps=2) == {"model.embed_tokens.weight": np.unique(ids).tolist(),
                                                 "lm_head.weight": list(range(40))}


def test_a_tied_table_is_touched_as_a_whole():
    tied = replace(CONFIG, vocab_size=40, tie_word_embeddings=True)
    assert recorded(tied, SPARSE) == {"model.embed_tokens.weight": list(range(40))}


def test_a_parameter_that_no_op_reads_is_touched_as_a_whole():
    """Its use is not known: it may be read by a view of some rows, whose gradient is added by name."""
    p = {"table": np.ones((V, D)), "seen": np.ones((V, D))}
    tables = Tables(p, V)
    with tables.recording(p):
        embedding(np.array([[1, 4, 1]]), p["seen"])
    assert tables.of_name["table"].touched.tolist() == list(range(V))
    assert tables.of_name["seen"].touched.tolist() == [1, 4]


def test_a_step_that_was_interrupted_touches_no_row_of_the_next():
    p = {"seen": np.ones((V, D))}
    tables = Tables(p, V)
    with contextlib.suppress(KeyboardInterrupt), tables.recording(p):
        embedding(np.array([[1, 4]]), p["seen"])
        raise KeyboardInterrupt
    with tables.recording(p):
        embedding(np.array([[2, 2]]), p["seen"])
    assert tables.of_name["seen"].touched.tolist() == [2]


# The loop

@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_the_loop_follows_the_written_rule(max_grad_norm):
    """In float64, beside a plain loop over the rows: 6 steps of some 30 roundings each, of numbers of order 1."""
    settings = replace(SPARSE, dtype="float64", max_grad_norm=max_grad_norm)
    wide = replace(CONFIG, vocab_size=40)
    state, plain = loop.start(wide, settings), loop.start(wide, replace(settings, sparse_updates=False))
    records = list(loop.train(state, TEXT, settings))
    table = plain.p["model"]["embed_tokens"]["weight"]
    m, v, count = np.zeros_like(table), np.zeros_like(table), np.zeros(40, int)
    for step, record in enumerate(records):
        ids = windows(TEXT, 6, settings.block_size, settings.seed, step)
        _, g = gradient(plain, ids, settings)
        norm, lr = global_norm(g), settings.rate(step)
        assert record.grad_norm == pytest.approx(norm, rel=1e-9)
        scale, kept = clip_scale(norm, max_grad_norm), table.copy()
        plain.optimizer.step(plain.flat, g, lr, settings.weight_decay, scale)
        table[:] = kept
        for row in np.unique(ids[:, :-1]):
            count[row] += 1
            dw = scale * params.over(g, plain.p)["model"]["embed_tokens"]["weight"][row]
            m[row] = 0.9 * m[row] + 0.1 * dw
            v[row] = 0.99 * v[row] + 0.01 * dw ** 2
            mean, square = m[row] / (1 - 0.9 ** count[row]), v[row] / (1 - 0.99 ** count[row])
            table[row] -= lr * (mean / (np.sqrt(square) + 1e-8) + settings.weight_decay * table[row])
        plain.step += 1
    assert 0 < count.min(initial=9, where=count > 0) < count.max()
    np.testing.assert_allclose(state.flat, plain.flat, rtol=1e-9, atol=1e-10)


@built
def test_no_bit_depends_on_the_number_of_threads():
    before, results = backend.cpu.threads(), []
    for threads in 1, 2, 3:
        backend.cpu.set_threads(threads)
        state = loop.start(replace(CONFIG, vocab_size=40), SPARSE)
        list(loop.train(state, TEXT, SPARSE))
        results.append([state.flat, *state.optimizer.state().values()])
    backend.cpu.set_threads(before)
    for result in results[1:]:
        assert all(map(np.array_equal, result, results[0]))


def test_word_vectors_that_a_step_does_not_draw_stay():
    """Both tables of skip-gram are looked up: the centers', and that of the contexts and negatives."""
    c = SkipgramConfig(50, 4, window=2, negatives=2, subsample=0.0)
    batch = skipgram.batches(joined([np.arange(50)]), c, 3, seed=0)
    settings = loop.Settings(max_steps=1, sparse_updates=True)
    state = loop.start(c, settings)
    state.p["output"]["weight"][:] = state.p["input"]["weight"]         # a zero table has no gradient for the other
    before = {name: a.copy() for name, a in params.leaves(state.p)}
    list(words.train(state, batch, settings))
    centers, contexts, negatives = batch(0)
    for name, rows in (("input.weight", centers), ("output.weight", [*contexts, *negatives.ravel()])):
        moved = (dict(params.leaves(state.p))[name] != before[name]).any(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(rows))


def test_a_model_without_tables_is_refused():
    with pytest.raises(UserError, match="sparse_updates has no effect: nothing that is trained has a row"):
        loop.start(CONFIG, replace(SPARSE, freeze=("model.embed_tokens", "lm_head")))


def test_a_bias_of_each_word_is_a_table_too():
    c = glove.GloveConfig(9, 4)
    assert set(Tables(c.model.init(c), 9).of_name) == {"input.weight", "input.bias", "output.weight", "output.bias"}
    assert set(Tables(llama.init(CONFIG), 99).of_name) == set()
