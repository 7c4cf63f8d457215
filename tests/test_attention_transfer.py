"""The loss on attention: between which calls it is, in models of several layers, of groups of heads, recomputed."""
from dataclasses import replace

import numpy as np
import pytest

import pyllama
from pyllama import params
from pyllama.errors import UserError
from pyllama.op import watching
from pyllama.ops import softmax
from pyllama.tasks import distill
from pyllama.testing import check_partials
from pyllama.training.distilling import Distillation, Teacher, loss_of, read
from pyllama.training.loop import Settings
from tests.shared import written
from tests.test_distilling import batch, configuration, randomized

STUDENT = configuration("llama", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
OTHER = configuration("gpt2", n_layer=3, n_embd=12, n_head=4)
TEACHER = Teacher(randomized(OTHER, 2), OTHER)
ATTENTION = Distillation(alpha=1.0, attention=1.0)
EPS = np.finfo("float64").eps


def shares(seen, ids, p, c, **given):
    """[B T H S]: how the last layer shares out the keys that are seen [B T S]."""
    calls = []

    def watch(op, call, inputs, options):
        if op.name == "attention":
            calls.append(inputs)
        return call(*inputs, **options)

    with watching(watch):
        read(ids, p, c, **given)
    q, k, *_ = calls[-1]
    q, k = q.reshape(len(q), -1, *q.shape[3:]), np.repeat(k, q.shape[2], axis=1)
    z = np.einsum("bhtk,bhsk->bths", q, k) / np.sqrt(q.shape[-1])
    return softmax(np.where(seen[:, :, None], z, -np.inf))[0]


MASK, SEGMENTS = np.ones((3, 7), int), np.zeros((3, 7), int)
MASK[0, 2], SEGMENTS[1:, 4:] = 0, 1
WINDOWED = replace(STUDENT, sliding_window=2)


@pytest.mark.parametrize(("c", "teacher", "given"), [
    (STUDENT, TEACHER, {}), (STUDENT, TEACHER, {"mask": MASK}), (STUDENT, TEACHER, {"segments": SEGMENTS}),
    (WINDOWED, TEACHER, {"mask": MASK, "segments": SEGMENTS}),
    (STUDENT, Teacher(randomized(WINDOWED, 2), WINDOWED), {})],
    ids=["plain", "mask", "segments", "window", "window-of-the-teacher"])
@pytest.mark.parametrize("count", [None, 40])
def test_it_compares_the_last_layers_over_the_keys_that_both_see(c, teacher, given, count):
    """20 terms of p log(p/o), each of which is right to a few eps of numbers below 10."""
    p, (ids, labels) = randomized(STUDENT, 1), batch()
    plain, value = (loss_of(teacher, s)(ids, labels, p=p, c=c, count=count, **given)[0]
                    for s in (Distillation(alpha=1.0), ATTENTION))
    own = {"mask": None} | {name: a[:, :-1] for name, a in given.items()}
    t, u = np.indices((6, 6))
    seen = np.tile((u <= t) & (t - u < (2 if WINDOWED in (c, teacher.c) else 6)), (3, 1, 1))
    if "mask" in given:
        seen &= own["mask"][:, None] != 0
    if "segments" in given:
        seen &= own["segments"][:, :, None] == own["segments"][:, None]
    theirs, ours = (shares(seen, ids[:, :-1], *model, **own) for model in (teacher, Teacher(p, c)))
    terms = np.where(theirs > 0, theirs * np.log(np.where(theirs > 0, theirs / np.where(ours > 0, ours, 1), 1)), 0)
    counts = labels[:, 1:] != -100
    expected = terms.sum(axis=-1).mean(axis=-1)[counts].sum() / (count or counts.sum())
    assert expected > 0.005
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


def test_one_model_and_itself_do_not_differ():
    p, (ids, labels) = randomized(STUDENT, 1), batch()
    plain, _ = loss_of(TEACHER, Distillation(alpha=1.0))(ids, labels, p=p, c=STUDENT)
    value, _ = loss_of(Teacher(p, STUDENT), ATTENTION)(ids, labels, p=p, c=STUDENT)
    assert value == pytest.approx(plain, rel=100 * EPS)


def test_the_heads_of_the_last_layers_must_be_as_many(tmp_path):
    """A pruned model may have fewer there than elsewhere, or fewer elsewhere."""
    text = written(tmp_path / "text.txt", "The cat sat on the mat.")
    whole = pyllama.create("llama", str(text), hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, max_position_embeddings=8)
    settings = Settings(block_size=8)

    def pruned(groups):
        c = replace(whole.config, num_key_value_heads_by_layer=groups)
        return replace(whole, config=c, params=c.model.init(c))

    fewer_first, fewer_last = pruned([1, 2]), pruned([2, 1])
    for pair in (whole, fewer_last), (fewer_last, whole):
        distill.require_alike(*pair, settings, Distillation())
        with pytest.raises(UserError, match=r"the student's ., so they cannot be compared; set attention"):
            distill.require_alike(*pair, settings, ATTENTION)
    for teacher, own in (whole, fewer_first), (fewer_first, whole), (fewer_last, fewer_last):
        distill.require_alike(teacher, own, settings, ATTENTION)
        _, back = loss_of(Teacher(teacher.params, teacher.config), ATTENTION)(*batch(), p=own.params, c=own.config)
        back()
