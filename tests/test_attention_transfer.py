"""The loss on attention: between which calls it is, in models of several layers, of groups of heads, recomputed."""
from dataclasses import replace

import numpy as np
import pytest

from pyllama import params
from pyllama.op import watching
from pyllama.ops import softmax
from pyllama.testing import check_partials
from pyllama.training.distilling import Distillation, Teacher, loss_of
from tests.test_distilling import batch, configuration, randomized

STUDENT = configuration("llama", num_hidden_layers=2, num_key_value_heads=1)
OTHER = configuration("gpt2", n_layer=3, n_embd=12)
TEACHER = Teacher(randomized(OTHER, 2), OTHER)
ATTENTION = Distillation(alpha=1.0, attention=1.0)
EPS = np.finfo("float64").eps


def shares(ids, p, c):
    """[B T H S]: how the last layer shares out its keys."""
    calls = []

    def watch(op, call, inputs, options):
        if op.name == "attention":
            calls.append(inputs)
        return call(*inputs, **options)

    with watching(watch):
        c.model.logits(ids, p, c)
    q, k, *_ = calls[-1]
    q, k = q.reshape(len(q), -1, *q.shape[3:]), np.repeat(k, q.shape[2], axis=1)
    z = np.einsum("bhtk,bhsk->bths", q, k) / np.sqrt(q.shape[-1])
    return softmax(np.where(np.tri(z.shape[1])[:, None], z, -np.inf))[0]


def test_it_compares_the_last_layers_of_models_of_two_families():
    """20 terms of p log(p/o), each of which is right to a few eps of numbers below 10."""
    p, (ids, labels) = randomized(STUDENT, 1), batch()
    plain, _ = loss_of(TEACHER, Distillation(alpha=1.0))(ids, labels, p=p, c=STUDENT)
    value, _ = loss_of(TEACHER, ATTENTION)(ids, labels, p=p, c=STUDENT)
    theirs, ours = shares(ids[:, :-1], *TEACHER), shares(ids[:, :-1], p, STUDENT)
    seen = theirs > 0
    terms = np.where(seen, theirs * np.log(np.where(seen, theirs / np.where(seen, ours, 1), 1)), 0)
    counts = labels[:, 1:] != -100
    expected = terms.sum(axis=-1).mean(axis=-1)[counts].mean()
    assert expected > 0.01
    assert value - plain == pytest.approx(expected, rel=0, abs=1000 * EPS)


def test_its_gradient_is_the_complex_step_in_groups_of_heads_and_recomputed():
    p, (ids, labels) = randomized(STUDENT, 1), batch()
    loss = loss_of(TEACHER, replace(ATTENTION, attention=3.0))
    report = check_partials(lambda p: loss(ids, labels, p=p, c=STUDENT), p, seed=0, entries=0, budget=None)
    assert report, str(report)
    value, back = loss(ids, labels, p=p, c=STUDENT)
    again, again_back = loss(ids, labels, p=p, c=STUDENT, recompute=True)
    assert again == value
    for _ in range(2):                                      # back may run twice
        for (name, a), (_, b) in zip(params.leaves(back()), params.leaves(again_back()), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_keys_that_one_of_both_does_not_see_do_not_count():
    """A window of 2 in the student: the teacher shares out the same two keys."""
    narrow = replace(STUDENT, sliding_window=2)
    p, (ids, labels) = randomized(narrow, 1), batch()
    mask = np.ones_like(ids)
    mask[0, :2] = 0
    few, all_before = (loss_of(TEACHER, ATTENTION)(ids, labels, p=p, c=c, mask=mask)[0] for c in (narrow, STUDENT))
    assert np.isfinite([few, all_before]).all()
    assert few != all_before


def test_one_model_and_itself_do_not_differ():
    p, (ids, labels) = randomized(STUDENT, 1), batch()
    plain, _ = loss_of(TEACHER, Distillation(alpha=1.0))(ids, labels, p=p, c=STUDENT)
    value, _ = loss_of(Teacher(p, STUDENT), ATTENTION)(ids, labels, p=p, c=STUDENT)
    assert value == pytest.approx(plain, rel=100 * EPS)
