"""The backward explorer: its recording is what the model computes, and its page shows these numbers."""
import dataclasses
import functools
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pyllama
from pyllama import params
from pyllama.cli import main
from pyllama.errors import UserError
from pyllama.study.explain import cells, page, texts, views
from pyllama.study.explain.document import ROOM, document, is_transposed, rooms
from pyllama.study.explain.nudges import EACH, weight, weights
from pyllama.study.explain.products import products
from pyllama.study.explain.recording import record
from pyllama.study.explain.rows import Given
from pyllama.study.explain.subject import load
from pyllama.study.explain.tracing import Source, traced
from pyllama.study.explain.update import update
from pyllama.tasks import TASKS
from pyllama.text.tokens import Batch
from pyllama.training import loop
from pyllama.training.examples import IGNORE, collate
from tests.explained import (
    OF_TASKS,
    OF_TEXT,
    ROWS,
    SENTENCE,
    SMALL,
    TEXT,
    double,
    made,
    small_run,
    task_folder,
    task_run,
)
from tests.shared import written

every_model = pytest.mark.parametrize("case", [*OF_TEXT, *OF_TASKS], ids="-".join)
every_task = pytest.mark.parametrize("case", OF_TASKS, ids="-".join)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return written(tmp_path_factory.mktemp("text") / "text.txt", TEXT)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory):
    """folders(case): (the folder of a model, what it learns from, the inputs that fine-tuning makes of it)."""
    @functools.cache
    def folder_of(case):
        task, family = case
        folder = tmp_path_factory.mktemp("-".join(case))
        if task != "text":
            model, examples = task_folder(folder, task, family)
            return model, ROWS[task][1], examples
        pyllama.create(family, text, seed=1, tokenizer="bpe", vocab_size=300, **SMALL).save(folder)
        return folder, SENTENCE, []
    return folder_of


@pytest.fixture(scope="module")
def subjects(folders):
    """subjects(case): (the subject, its parameters in float64)."""
    @functools.cache
    def subject_of(case):
        folder, given, _ = folders(case)
        subject = load(folder, given)
        return subject, double(subject)
    return subject_of


@pytest.fixture(scope="module")
def recordings(subjects):
    """recordings(case): the recorded step in float64."""
    @functools.cache
    def recording_of(case):
        subject, p = subjects(case)
        return record(subject.loss, p)
    return recording_of


# --- the recording ----------------------------------------------------------------------------------------------------

@every_task
def test_the_batch_is_what_fine_tuning_computes_the_loss_of(folders, subjects, case):
    subject, _ = subjects(case)
    _, _, examples = folders(case)
    wanted = [collate([one]).inputs for one in examples]
    assert any(subject.inputs.keys() == one.keys() and all(np.array_equal(subject.inputs[name], one[name])
                                                           for name in one) for one in wanted)


@every_model
def test_the_recorded_numbers_are_those_of_the_model_bit_for_bit(subjects, recordings, case):
    (subject, p), recording = subjects(case), recordings(case)
    loss, back = subject.loss(p)
    assert recording.loss == loss
    grads = dict(params.leaves(back()))
    assert grads.keys() == recording.grads.keys()
    for parameter, grad in grads.items():
        np.testing.assert_array_equal(recording.grads[parameter], grad)


@every_model
def test_every_call_runs_back_once_and_after_the_calls_that_read_it(recordings, case):
    recording = recordings(case)
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
def test_the_local_products_add_up_to_every_gradient(recordings, case):
    recording = recordings(case)
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
def test_the_gradient_of_a_parameter_is_the_sum_over_the_calls_that_use_it(recordings, case):
    recording = recordings(case)
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


def test_the_names_of_factors_are_the_places_of_their_numbers(recordings):
    """linear's dx[b,t,d] is the sum over e of dy[b,t,e] w[e,d]."""
    recording = recordings(("text", "llama"))
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


# --- what is shown ----------------------------------------------------------------------------------------------------

@given(arrays(float, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-50, 50)), st.integers(1, 9))
def test_a_block_has_the_largest_entry_and_as_many_cells_as_fit(x, most):
    shown = cells.block(x, most)
    assert (len(shown.rows), len(shown.columns)) == tuple(min(most, length) for length in x.shape)
    assert np.abs(shown.of(x)).max() == np.abs(x).max()
    assert all(a < b for lines in shown for a, b in pairwise(lines))
    np.testing.assert_array_equal(x[shown.cells(x.shape)], shown.of(x))


def test_the_document_has_the_numbers_of_the_recording(run):
    _, recording, shown = made(run)
    assert shown["order"] == recording.order
    for call, one in zip(recording.calls, shown["calls"], strict=True):
        for array, x, gradient in [*zip(one["inputs"], call.inputs, call.grads, strict=True),
                                   *zip(one["outputs"], call.outputs, call.dys, strict=True)]:
            # rounded to six digits
            np.testing.assert_allclose(array["values"], np.ravel(x), rtol=5.1e-6)
            assert (array["gradients"] is None) == (gradient is None)
            if gradient is not None:
                np.testing.assert_allclose(array["gradients"], np.ravel(gradient), rtol=5.1e-6)
        for array in one["outputs"]:
            if len(array["adds"]) > 1:
                parts = np.array([part["values"] for part in array["adds"]])
                np.testing.assert_allclose(parts.sum(axis=0), array["gradients"], atol=2e-5 * np.abs(parts).max())
    json.dumps(shown, allow_nan=False)


SCHEMA = {
    "": "version loss order model given calls tokenLosses classes texts attention flow units time update nudges",
    "model": "name type task head learns parameters dtype step resumed",
    "calls": "op line parameter options inputs outputs norms gradientNorms",
    "tokenLosses": "of target loss probability best",
    "classes": "rows columns targets count z p dz",
    "texts": "call tokens gradients last lastGradients",
    "attention": "call name queries keys head shape rows columns p dp",
    "flow": "name shape norm gradient largest update calls",
    "units": "call units dead",
    "time": "name steps",
    "update": "rule step lr norm scale options vectors rows",
    "nudges": "weight gradient epsilons losses",
}
OF_ARRAY = "name place shape rows columns whole values gradients reads parameter transposed"


@every_model
def test_the_document_has_its_schema(subjects, case):
    subject, _ = subjects(case)
    recording = record(subject.loss, subject.state.p)
    shown = json.loads(json.dumps(document(subject, recording, update(subject, recording), [], 3, 2), allow_nan=False))
    assert shown.keys() == {*SCHEMA[""].split()}
    for key, names in SCHEMA.items():
        parts = shown.get(key) or []
        assert all(part.keys() == {*names.split()} for part in (parts if isinstance(parts, list) else [parts]))
    for call in shown["calls"]:
        for kind, last in ("inputs", "products"), ("outputs", "adds"):
            for array in call[kind]:
                has_gradient = array["gradients"] is not None
                assert array.keys() == {*OF_ARRAY.split(), *["isSum"] * (kind == "inputs"), *[last] * has_gradient}
                size = len(array["rows"]) * len(array["columns"])
                assert len(array["values"]) == size
                assert not has_gradient or len(array["gradients"]) == size
                assert not has_gradient or max(len(array["rows"]), len(array["columns"])) <= 3
                assert array["whole"] == (size == np.prod(array["shape"]))
        for of in (array["products"] for array in call["inputs"] if "products" in array):
            assert of.keys() == {"method", "groups", "count", "cells"}
            assert all(len(cell) <= 2 * 3 and all(0 <= j < of["count"] for j in cell[::3]) for cell in of["cells"])


def test_the_losses_per_token_have_the_loss_as_mean(run):
    _, recording, shown = made(run)
    rows = shown["tokenLosses"]
    assert [row["target"] for row in rows] == list(SENTENCE[1:])
    assert [row["of"] for row in rows] == list(SENTENCE[:-1])
    np.testing.assert_allclose(np.mean([row["loss"] for row in rows]), recording.loss, rtol=1e-5)
    np.testing.assert_allclose([-np.log(row["probability"]) for row in rows], [row["loss"] for row in rows], rtol=2e-5)


def test_the_scores_of_the_classes_are_those_of_the_model(folders):
    folder, given, _ = folders(("classify", "bert"))
    subject, recording, shown = made(folder, given)
    z, _ = pyllama.load(folder).logits(subject.inputs["ids"], types=subject.inputs["types"])
    p = np.exp(z[0]) / np.exp(z[0]).sum()
    classes, loss = shown["classes"], shown["tokenLosses"][0]
    assert (classes["columns"], classes["targets"], classes["count"]) == (["no", "yes"], ["yes"], 2)
    np.testing.assert_allclose(classes["z"], z[0], rtol=1e-5)
    np.testing.assert_allclose(classes["p"], p, rtol=1e-5)
    np.testing.assert_allclose(classes["dz"], p - [0, 1], rtol=1e-5)
    assert (loss["target"], loss["best"]) == ("yes", ["no", "yes"][p.argmax()])
    np.testing.assert_allclose([loss["loss"], recording.loss], -np.log(p[1]), rtol=1e-5)


def test_a_number_has_its_score_and_a_gradient_that_no_op_passes_back(folders):
    folder, given, _ = folders(("regress", "llama"))
    _, _, shown = made(folder, given)
    row, = shown["tokenLosses"]
    score, last = float(row["best"]), shown["calls"][shown["order"][0]]["outputs"][0]
    assert (row["target"], row["probability"], shown["classes"]) == ("2.5", None, None)
    np.testing.assert_allclose(row["loss"], (score - 2.5) ** 2, rtol=1e-5)
    np.testing.assert_allclose(last["gradients"], 2 * (score - 2.5), rtol=1e-5)
    assert last["adds"] == []


def test_tags_and_the_ends_of_a_span_have_their_losses(folders):
    folder, given, _ = folders(("tag", "lstm"))
    _, recording, shown = made(folder, given)
    assert [(row["of"].strip(), row["target"]) for row in shown["tokenLosses"]] == [
        ("Ann", "B-PER"), ("Lee", "I-PER"), ("saw", "O"), ("Maine", "B-LOC")]
    assert shown["classes"]["rows"] == [row["of"] for row in shown["tokenLosses"]]
    folder, given, _ = folders(("qa", "bert"))
    _, recording, shown = made(folder, given)
    rows = shown["tokenLosses"]
    assert [(row["of"], row["target"].split()[1]) for row in rows] == [("first", "the"), ("last", "cat")]
    np.testing.assert_allclose(np.mean([row["loss"] for row in rows]), recording.loss, rtol=1e-5)


@every_model
def test_the_texts_are_those_that_the_attentions_read(subjects, recordings, case):
    """Queries and keys have the lengths of their texts; where source and target are read, all three kinds occur."""
    (subject, _), recording = subjects(case), recordings(case)
    of, maps = texts.texts(subject, recording), texts.attention(recording)
    for one in maps:
        assert one["shape"] == [len(of[one[side]]["tokens"]) for side in ("queries", "keys")]
        assert any(name.startswith(f"{one['name']}.") for name in recording.grads)
    kinds = {(one["queries"], one["keys"]) for one in maps}
    two = subject.state.config.TYPE in ("bart", "mbart", "transformer")
    assert kinds == ({(0, 0), (1, 1), (1, 0)} if two else {(0, 0)} if maps else set())
    modules = {one["name"] for one in maps}
    assert len(modules) == len({one["call"] for one in maps})
    if two:
        assert {name.split(".")[1] for name in modules} == {"encoder", "decoder"}
        assert all((name.endswith("encoder_attn")) == (one["queries"] != one["keys"])
                   for one in maps for name in [one["name"]])


@every_model
def test_the_gradient_at_a_token_is_that_of_its_embedding(subjects, recordings, case):
    (subject, _), recording = subjects(case), recordings(case)
    for text in texts.texts(subject, recording):
        call = recording.calls[text["call"]]
        np.testing.assert_allclose(text["gradients"], np.linalg.norm(call.dys[0][0], axis=-1), rtol=1e-3)
        assert len(text["tokens"]) == call.inputs[0].shape[1]


def test_a_head_that_reads_one_token_passes_a_gradient_to_this_row_alone(folders):
    for family, position in ("bert", 0), ("llama", -1):
        folder, given, _ = folders(("classify", family))
        text, = made(folder, given)[2]["texts"]
        assert np.flatnonzero(text["lastGradients"]).tolist() == [range(len(text["tokens"]))[position]]
        assert np.count_nonzero(text["gradients"]) > 1


def test_the_steps_of_an_lstm_are_in_the_order_of_the_text(subjects, recordings):
    """Each part of the recurrent matrix's gradient is an outer product of a gradient and the state before it."""
    subject, _ = subjects(("tag", "lstm"))
    recording = recordings(("tag", "lstm"))
    shown = views.through_time(recording)
    length = subject.inputs["ids"].shape[1]
    assert [one["name"] for one in shown] == [f"lstm.weight_hh_l{layer}{direction}" for layer in range(2)
                                              for direction in ("", "_reverse")]
    for one in shown:
        assert len(one["steps"]) == length
        total = 0
        for step in one["steps"]:
            call, recurrent = recording.calls[step["call"]], recording.calls[step["recurrent"]]
            h, dy = recurrent.inputs[0][0], recurrent.dys[0][0]
            np.testing.assert_allclose(step["weight"], np.linalg.norm(h) * np.linalg.norm(dy), rtol=1e-5)
            np.testing.assert_allclose(step["state"], np.linalg.norm(call.outputs[0]), rtol=1e-5)
            total = total + np.outer(dy, h)
        np.testing.assert_allclose(total, recording.grads[one["name"]], rtol=1e-9, atol=1e-15)
        states = [np.array(recording.calls[step["call"]].outputs[0]) for step in one["steps"]]
        reads = [recording.calls[step["recurrent"]].inputs[0] for step in one["steps"]]
        before = [np.zeros_like(states[0]), *states[:-1]]
        after = [*states[1:], np.zeros_like(states[0])]
        np.testing.assert_array_equal(reads, after if one["name"].endswith("_reverse") else before)


def test_all_calls_that_use_a_parameter_show_the_same_cells(folders):
    folder, given, _ = folders(("classify", "lstm"))
    _, recording, shown = made(folder, given, most=3)
    for name in "lstm.weight_hh_l0", "lstm.weight_hh_l1_reverse", "lstm.bias_hh_l0":
        used = [array for call in shown["calls"] for array in call["inputs"] if array["parameter"] == name]
        assert len(used) > 2
        assert len({(*array["rows"], *array["columns"]) for array in used}) == 1
        whole = recording.grads[name].reshape(-1, recording.grads[name].shape[-1])
        at_cells = whole[np.ix_(used[0]["rows"], used[0]["columns"])].ravel()
        sizes = np.sum([np.abs(array["gradients"]) for array in used], axis=0)
        difference = np.abs(np.sum([array["gradients"] for array in used], axis=0) - at_cells)
        assert (difference <= 1e-5 * sizes).all()                   # six digits are shown
        assert np.abs(at_cells).max() == np.abs(whole).max()


def test_attention_maps_are_distributions_over_the_keys_that_a_query_sees(run):
    _, _, shown = made(run)
    assert len(shown["attention"]) == 2 * 2
    for one in shown["attention"]:
        p = np.reshape(one["p"], one["shape"])
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=5e-4 * p.shape[1])
        np.testing.assert_array_equal(np.triu(p, 1), 0)


def test_units_without_a_gradient_are_counted(text, tmp_path):
    model = pyllama.create("bert", text, tokenizer="bpe", vocab_size=300, hidden_act="relu", **SMALL)
    for i, layer in enumerate(model.params["bert"]["encoder"]["layer"]):
        layer["intermediate"]["dense"]["bias"][:] = 100                     # alive
        layer["intermediate"]["dense"]["bias"][:3 + i] = -100
    model.save(tmp_path)
    _, _, shown = made(tmp_path)
    assert [(one["units"], one["dead"]) for one in shown["units"]][:2] == [(32, 3), (32, 4)]


def test_a_weight_that_an_op_reads_transposed_is_marked(text, tmp_path):
    """GPT-2 stores its matrices as (in, out)."""
    pyllama.create("gpt2", text, **SMALL).save(tmp_path)
    _, _, shown = made(tmp_path)
    marked = {array["parameter"] for call in shown["calls"] for array in call["inputs"] if array["transposed"]}
    assert {name.rsplit(".", 2)[-2] for name in marked} == {"c_attn", "c_proj", "c_fc"}


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
        assert not name.startswith(options.get("freeze", "no parameter")) or (leaf == before[name]).all()
    assert any((leaf != before[name]).any() for name, leaf in params.leaves(subject.state.p))


def test_a_page_takes_at_most_five_megabytes(run, monkeypatch):
    subject = load(run, SENTENCE)
    recording = record(subject.loss, subject.state.p)
    assert [*rooms(recording, 10 ** 9)] == [*ROOM]
    assert next(rooms(recording, 0)) == ROOM[-1]
    whole = page.explained(run, SENTENCE)
    monkeypatch.setattr(page, "LIMIT", 2 * len(whole) // 3)
    assert len(page.explained(run, SENTENCE)) <= 2 * len(whole) // 3
    monkeypatch.setattr(page, "LIMIT", 1000)
    with pytest.raises(UserError, match="smaller model or a shorter text"):
        page.explained(run, SENTENCE)


def test_the_page_needs_nothing_but_itself_and_a_text_cannot_end_its_data(text, tmp_path):
    model = pyllama.create("llama", text, tokenizer="byte", **SMALL)
    model.save(tmp_path)
    html = page.explained(tmp_path, "</script>/*program*/").decode()
    assert set(re.findall(r"https?://[^\s\"'<]*", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<link|<img|\bimport\b\s*\(|\bsrc=|@import|fetch\(", html)
    data = re.search(r'<script type="application/json" id="document">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(data)["given"]["text"] == "</script>/*program*/"


# --- the command ------------------------------------------------------------------------------------------------------

def test_the_command_writes_the_page_of_a_step(run, tmp_path, capsys):
    for step in 2, 4:
        out = tmp_path / f"{step}.html"
        assert main(["explain", str(run), "--text", SENTENCE, "--step", str(step), "--out", str(out)]) == 0
        assert f'"step":{step},"resumed":true' in out.read_text("utf-8")
    assert main(["explain", str(run), "--text", SENTENCE, "--out", str(tmp_path / "latest.html")]) == 0
    assert (tmp_path / "latest.html").read_bytes() == (tmp_path / "4.html").read_bytes()
    capsys.readouterr()


@pytest.mark.parametrize(("arguments", "message"), [
    (["RUN/absent", "--text", "the cat"], "there is no model at .*absent; give a run"),
    (["RUN", "--text", "the cat", "--step", "3"], r".*tiny has no checkpoint of step 3; it has those of 2, 4"),
    (["RUN/checkpoints/step-00000004", "--text", "the cat", "--step", "4"], "step is 4, but .* is not a run; give"),
    (["RUN", "--text", "t"], "the text has 1 token; give one of at least 2"),
    (["RUN", "--text", "the cat sat on the mat; " * 3], "the text has 72 tokens, but the model sees only 32 .*shorten"),
    (["RUN", "--text", "THE CAT"], ".*'T'.*"),
    (["RUN", "--text", "the cat", "--nudge", "lm_head"], r"nudge is 'lm_head'; write NAME\[i,j\], such as model.emb"),
    (["RUN", "--text", "the cat", "--nudge", "head[0,0]"], "nudge names 'head', which is not a parameter; give one"),
    (["RUN", "--text", "the cat", "--nudge", "lm_head.weight[0,8]"], r"nudge is .*, but lm_head.weight has the shap"),
    (["RUN", "--text", "the cat", "--out", "RUN/absent/page.html"], "--out is .*, which cannot be a file; name a file"),
])
def test_a_mistake_is_one_sentence_and_leaves_no_file(run, tmp_path, capsys, arguments, message):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "page.html")]
    assert main(["explain", *(word.replace("RUN", str(run)) for word in arguments), *out]) == 2
    said = capsys.readouterr().err
    assert re.match(message, said.removeprefix("pyllama: ").removeprefix("error: ")), said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("task", "given", "message"), [
    ("classify", Given("a fine film"), "the loss of the task classify needs the label of the text; set label to one of "
                                       "no, yes"),
    ("classify", Given("a fine film", label="maybe"), "the text has the label 'maybe', but the model has the classes "
                                                      "no, yes; give their names"),
    ("classify", Given("a fine film", target="yes"), "the model was trained on the task classify, which has no target; "
                                                     "remove it"),
    ("classify", Given(" \n", label="yes"), "the text is empty; give one"),
    ("relations", Given("a <e1>cat</e1> and <e2>I</e2>", label="Owns"), "label has 'Owns', but the model has Cause-Effe"
                                                                      r"ct\(e2,e1\), Other; give one of these"),
    ("relations", Given("a cat and I", label="Other"), "the row is invalid: .* does not contain one marked entity"),
    ("relations", Given("a <e1>cat</e1>", "and", label="Other"), "the model was trained on the task relations, which "
                                                                 "has no text_pair; remove it"),
    ("tag", Given("Ann Lee"), "the loss of the task tag needs the tags of the text; set label to the tag of each word, "
                              "between spaces: O, B-LOC, I-LOC, B-PER, I-PER"),
    ("tag", Given("Ann Lee", label="B-PER"), r"the text has 2 words \(Ann, Lee\), but label has 1 tag; give one for"),
    ("tag", Given("Ann Lee", label="B-PER I-ORG"), "label has 'I-ORG', but the model has O, B-LOC, I-LOC, B-PER, "),
    ("tag", Given(" ".join(["cat"] * 40), label=" ".join(["O"] * 40)), "the text takes .* windows of 32 tokens, but a "
                                                                       "page explains a single one; shorten it"),
    ("regress", Given("a film"), "the loss of the task regress needs the label of the text; set label to a number"),
    ("regress", Given("a film", label="good"), "the row is invalid: 'label' is 'good', not a number; fix it"),
    ("g2p", Given("cat"), "the loss of the task g2p needs the target of the text; set target to a text"),
    ("g2p", Given("cat", label="K"), "the model was trained on the task g2p, which has no label; remove it"),
    ("qa", Given("the cat sat", target="cat"), "the task qa reads context and question; set text_pair to the question"),
    ("qa", Given("the cat sat", "who sat", target="a dog"), "the row is invalid: the answer 'a dog' does not occur in"),
    ("instruct", Given("plural", label="cats"), "the model learns from plain text, which has no label; remove it"),
    ("instruct", Given("say " * 200, target="hi"), "the text leaves no room for an answer in the 96 tokens that the "),
])
def test_a_row_that_does_not_fit_the_task_is_refused(folders, task, given, message):
    folder, *_ = folders((task, TASKS[task].models()[0]))
    with pytest.raises(UserError, match=message):
        load(folder, given)


def test_a_long_text_is_truncated_as_in_training_and_a_note_says_so(folders):
    folder, given, _ = folders(("classify", "bert"))
    subject = load(folder, given._replace(text="a fine film " * 40, text_pair=None))
    assert subject.inputs["ids"].shape == (1, 32)
    assert "truncated at the 32 tokens that the model was trained to read" in subject.notes[-1]


def test_a_model_of_independent_classes_is_refused(folders, tmp_path):
    folder, *_ = folders(("classify", "bert"))
    shutil.copytree(folder, tmp_path / "model")
    stored = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    written(tmp_path / "model/config.json", json.dumps(stored | {"problem_type": "multi_label_classification"}))
    with pytest.raises(UserError, match="problem_type multi_label_classification, for which no task here has a loss"):
        load(tmp_path / "model", Given("a fine film", label="yes"))


def test_a_model_that_writes_answers_also_continues_plain_text(folders):
    folder, *_ = folders(("instruct", "llama"))
    subject = load(folder, "plural")
    assert subject.task is None
    np.testing.assert_array_equal(subject.inputs["ids"], subject.inputs["labels"])


def test_the_command_explains_a_row_of_a_task(folders, tmp_path, capsys):
    folder, *_ = folders(("classify", "lstm"))
    out = tmp_path / "page.html"
    assert main(["explain", str(folder), "--text", "a fine film", "--text_pair", "it is good", "--label", "yes",
                 "--out", str(out)]) == 0
    data = re.search(r'<script type="application/json" id="document">(.*?)</script>', out.read_text("utf-8"), re.DOTALL)
    shown = json.loads(data[1])
    assert shown["given"] == {"text": "a fine film", "text_pair": "it is good", "label": "yes"}
    assert (shown["model"]["task"], shown["tokenLosses"][0]["target"]) == ("classify", "yes")
    capsys.readouterr()
    assert main(["explain", str(folder), "--text", "a fine film", "--out", str(tmp_path / "none.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none.html").exists()


def test_a_model_that_does_not_learn_from_text_is_refused(text, tmp_path):
    pyllama.create("bert", text, head="classification", tokenizer="byte", **SMALL).save(tmp_path)
    with pytest.raises(UserError, match="does not learn from plain text"):
        load(tmp_path, SENTENCE)
