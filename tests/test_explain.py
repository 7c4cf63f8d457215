"""The backward explorer: its recording is what the model computes, and its products add up to every gradient."""
import dataclasses

import numpy as np
import pytest

from pyllama import params
from pyllama.study.explain.document import is_transposed
from pyllama.study.explain.nudges import EACH, weight, weights
from pyllama.study.explain.products import products
from pyllama.study.explain.recording import record
from pyllama.study.explain.subject import load
from pyllama.study.explain.tracing import Source, traced
from pyllama.study.explain.update import update
from pyllama.text.tokens import Batch
from pyllama.training import loop
from pyllama.training.examples import IGNORE, collate
from tests.explained import ROWS, SENTENCE, Models, every_model, every_task, made, small_run, task_run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@every_task
def test_the_batch_is_what_fine_tuning_computes_the_loss_of(models, case):
    subject, _ = models.subject(case)
    _, _, examples = models.folder(case)
    wanted = [collate([one]).inputs for one in examples]
    assert any(subject.inputs.keys() == one.keys() and all(np.array_equal(subject.inputs[name], one[name])
                                                           for name in one) for one in wanted)


@every_model
def test_the_recorded_numbers_are_those_of_the_model_bit_for_bit(models, case):
    (subject, p), recording = models.subject(case), models.recording(case)
    loss, back = subject.loss(p)
    assert recording.loss == loss
    grads = dict(params.leaves(back()))
    assert grads.keys() == recording.grads.keys()
    for parameter, grad in grads.items():
        np.testing.assert_array_equal(recording.grads[parameter], grad)


@every_model
def test_every_call_runs_back_once_and_after_the_calls_that_read_it(models, case):
    recording = models.recording(case)
    assert sorted(recording.order) == list(range(len(recording.calls)))
    turn = {call: i for i, call in enumerate(recording.order)}
    for number, call in enumerate(recording.calls):
        read = {source.call for sources in call.reads for source in sources if source.kind == "output"}
        assert all(other < number and turn[other] > turn[number] for other in read)
        backs = {source.call for sources in call.dy_reads for source in sources}
        assert all(turn[other] < turn[number] for other in backs)
        readers = {i for i, other in enumerate(recording.calls)
                   for source in sum(other.reads, ()) if (source.kind, source.call) == ("output", number)}
        assert bool(readers) == bool(backs) == (number != recording.order[0])


@every_model
def test_the_local_products_add_up_to_every_gradient(models, case):
    recording = models.recording(case)
    for call in recording.calls:
        for k, gradient in enumerate(call.grads):
            if gradient is None or call.inputs[k] is None:
                continue
            places = np.unravel_index(np.arange(0, gradient.size, 7), gradient.shape)
            left, right = products(call, k).factors(places)
            # Both sides add these products in float64, in another order, with a few roundings in each factor.  Factors
            # such as attention's dz are differences, so their error is relative to the largest.
            largest = np.abs(left * right).sum(axis=1).max(initial=0)
            rounding = 64 * left.shape[1] * np.finfo(np.float64).eps * largest
            assert (np.abs((left * right).sum(axis=1) - gradient[places]) <= rounding).all(), (call.op.name, k)
            assert left.shape[1] == sum(int(np.prod(group.shape)) for group in products(call, k).groups)


@every_model
def test_the_gradient_of_a_parameter_is_the_sum_over_the_calls_that_use_it(models, case):
    recording = models.recording(case)
    uses = [(sources[0].name, i, k) for i, call in enumerate(recording.calls) for k, sources in enumerate(call.reads)
            if [source.kind for source in sources] == ["parameter"]]
    assert {name for name, *_ in uses} == recording.grads.keys()
    for name, grad in recording.grads.items():
        calls = [(recording.calls[i], i, k) for other, i, k in uses if other == name]
        parts = [(call.grads[k].T if is_transposed(call.inputs[k]) else call.grads[k]).reshape(grad.shape)
                 for call, _, k in calls]
        # The same sum of float64 in another order
        assert (np.abs(sum(parts) - grad) <= 64 * np.finfo(float).eps * sum(map(np.abs, parts))).all(), name
        assert {source.call for source in recording.reads[name]} == {i for _, i, _ in calls}


def test_the_names_of_factors_are_the_places_of_their_numbers(models):
    """linear's dx[b,t,d] is the sum over e of dy[b,t,e] w[e,d]."""
    recording = models.recording(("text", "llama"))
    call = next(call for call in recording.calls if call.op.name == "linear")
    (x, w), dy = call.inputs, call.dys[0]
    group, = products(call, 0).groups
    assert (group.left, group.right, group.shape) == ("dy[{0},{1},{j0}]", "w[{j0},{2}]", (len(w),))
    left, right = products(call, 0).factors(tuple(np.array([i]) for i in (0, 3, 5)))
    np.testing.assert_array_equal([left[0], right[0]], [dy[0, 3], w[:, 5]])
    group, = products(call, 1).groups
    assert (group.left, group.right, group.shape) == ("dy[{j0},{j1},{0}]", "x[{j0},{j1},{1}]", x.shape[:2])


def test_a_step_between_ops_keeps_the_sources():
    a, b = (traced(np.arange(6.0).reshape(2, 3), Source("parameter", name)) for name in "ab")

    def names(x):
        return [source.name for source in x.sources]

    assert names(a.T[1:].reshape(-1) * 2) == ["a"]
    assert names(np.concatenate([a, b])) == names(np.where(a > 1, a, b)) == names(a.sum(axis=0) + b[0]) == ["a", "b"]
    assert names(np.zeros_like(a)) == []
    filled, added, total = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
    filled[0] = b[1]
    np.add.at(added, np.array([0, 1]), b)
    total += b
    assert names(filled) == names(added) == names(total) == ["b"]
    np.testing.assert_array_equal(added, b)
    assert type(np.asarray(total).view(np.ndarray)) is np.ndarray


def test_nudged_losses_are_those_of_the_model_with_this_weight(run):
    subject, recording, shown = made(run)
    for one in shown["nudges"]:
        name, index = weight(one["weight"], recording.grads)
        for epsilon, loss in zip(one["epsilons"], one["losses"], strict=True):
            p = params.rebuild(subject.state.p, (leaf.copy() for _, leaf in params.leaves(subject.state.p)))
            dict(params.leaves(p))[name][index] += epsilon
            # epsilon is rounded to six digits
            np.testing.assert_allclose(subject.loss(p)[0], loss, atol=1e-6 * abs(epsilon) * 10 + 1e-11)
        small, losses = one["epsilons"][3], one["losses"]
        curve = abs(losses[3] + losses[1] - 2 * losses[2])      # what the prediction may miss: the second order
        assert abs(losses[3] - losses[2] - small * one["gradient"]) <= curve + 1e-5 * abs(small)


def test_every_matrix_has_its_nudges(run):
    subject = load(run, SENTENCE)
    recording = record(subject.loss, subject.state.p)
    chosen = weights(recording.grads, ["lm_head.weight[0,1]"])
    assert chosen[0] == ("lm_head.weight", (0, 1))
    for name, grad in recording.grads.items():
        places = [one.place for one in chosen if one.name == name]
        assert grad.ndim < 2 or len(places) >= EACH
        assert grad.ndim < 2 or tuple(np.unravel_index(np.abs(grad).argmax(), grad.shape)) in places


OF_RUNS = [
    ("text", "llama", {}),
    ("text", "llama", {"optimizer": "sgd", "nesterov": True, "max_grad_norm": 0.01}),
    ("text", "llama", {"freeze": ("model.embed_tokens", "lm_head"), "z_loss": 0.1}),
    ("classify", "bert", {"label_smoothing": 0.1}),
    ("regress", "distilbert", {"max_grad_norm": 0.01}),
    ("g2p", "transformer", {"freeze": ("model.encoder",)}),
    ("text", "llama", {"group": ("norm:weight_decay=0.2", "lm_head:lr=1e-4"), "sparse_updates": True, "sparsity": 0.5}),
    ("tag", "lstm", {}),
]


@pytest.mark.parametrize(("task", "family", "options"), OF_RUNS)
def test_the_update_is_that_of_a_training_step(tmp_path, task, family, options):
    if task == "text":
        subject = load(small_run(tmp_path, **options), SENTENCE)
    else:
        subject = load(task_run(tmp_path, task, family, **options), ROWS[task][1])
    recording = record(subject.loss, subject.state.p)
    found = update(subject, recording)
    before = {name: leaf.copy() for name, leaf in params.leaves(subject.state.p)}
    labels = subject.inputs["labels"]
    targets = len(SENTENCE) - 1 if task == "text" else np.sum(labels != IGNORE)

    class Rows:
        def batch(self, settings, step):
            return Batch(subject.inputs, targets)

    settings = dataclasses.replace(subject.settings, max_steps=5, lr_decay_steps=subject.settings.max_steps)
    step, = loop.train(subject.state, Rows(), settings)
    np.testing.assert_allclose([recording.loss, found.norm, found.lr], [step.loss, step.grad_norm, step.lr], rtol=1e-12)
    assert subject.state.optimizer.t == found.optimizer.t == 5
    for name, leaf in params.leaves(subject.state.p):
        np.testing.assert_array_equal(found.before[name], before[name])
        np.testing.assert_allclose(found.after[name], leaf, rtol=1e-10, atol=1e-13)
        moved = (leaf != before[name]).any()
        if name.startswith(options.get("freeze", "no parameter")):
            assert not moved, name
        else:
            assert moved or not recording.grads[name].any(), name
