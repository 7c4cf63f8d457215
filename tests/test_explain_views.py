"""The backward explorer: its page shows the numbers of the recording."""
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pyllama
from pyllama.study.explain import cells, texts, views
from pyllama.study.explain.document import document
from pyllama.study.explain.recording import record
from pyllama.study.explain.update import update
from tests.explained import SENTENCE, SMALL, TEXT, Models, every_model, made, small_run
from tests.shared import written


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return written(tmp_path_factory.mktemp("text") / "text.txt", TEXT)


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
def test_the_document_has_its_schema(models, case):
    subject, _ = models.subject(case)
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


def test_the_scores_of_the_classes_are_those_of_the_model(models):
    folder, given, _ = models.folder(("classify", "bert"))
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


def test_a_number_has_its_score_and_a_gradient_that_no_op_passes_back(models):
    folder, given, _ = models.folder(("regress", "llama"))
    _, _, shown = made(folder, given)
    row, = shown["tokenLosses"]
    score, last = float(row["best"]), shown["calls"][shown["order"][0]]["outputs"][0]
    assert (row["target"], row["probability"], shown["classes"]) == ("2.5", None, None)
    np.testing.assert_allclose(row["loss"], (score - 2.5) ** 2, rtol=1e-5)
    np.testing.assert_allclose(last["gradients"], 2 * (score - 2.5), rtol=1e-5)
    assert last["adds"] == []


def test_tags_and_the_ends_of_a_span_have_their_losses(models):
    folder, given, _ = models.folder(("tag", "lstm"))
    _, recording, shown = made(folder, given)
    assert [(row["of"].strip(), row["target"]) for row in shown["tokenLosses"]] == [
        ("Ann", "B-PER"), ("Lee", "I-PER"), ("saw", "O"), ("Maine", "B-LOC")]
    assert shown["classes"]["rows"] == [row["of"] for row in shown["tokenLosses"]]
    folder, given, _ = models.folder(("qa", "bert"))
    _, recording, shown = made(folder, given)
    rows = shown["tokenLosses"]
    assert [(row["of"], row["target"].split()[1]) for row in rows] == [("first", "the"), ("last", "cat")]
    np.testing.assert_allclose(np.mean([row["loss"] for row in rows]), recording.loss, rtol=1e-5)


@every_model
def test_the_texts_are_those_that_the_attentions_read(models, case):
    """Queries and keys have the lengths of their texts; where source and target are read, all three kinds occur."""
    (subject, _), recording = models.subject(case), models.recording(case)
    of, maps = texts.texts(subject, recording), texts.attention(recording)
    for one in maps:
        assert one["shape"] == [len(of[one[side]]["tokens"]) for side in ("queries", "keys")]
        assert any(name.startswith(f"{one['name']}.") for name in recording.grads)
    kinds = {(one["queries"], one["keys"]) for one in maps}
    two = subject.state.config.TYPE in ("bart", "mbart", "transformer")
    assert kinds == ({(0, 0), (1, 1), (1, 0)} if two else {(0, 0)} if maps else set())
    modules, c = {one["name"] for one in maps}, subject.state.config
    runs = c.num_hidden_layers // c.num_hidden_groups if c.TYPE == "albert" else 1              # of one layer
    assert len(modules) * runs == len({one["call"] for one in maps})
    if two:
        assert {name.split(".")[1] for name in modules} == {"encoder", "decoder"}
        assert all((name.endswith("encoder_attn")) == (one["queries"] != one["keys"])
                   for one in maps for name in [one["name"]])


@every_model
def test_the_gradient_at_a_token_is_that_of_its_embedding(models, case):
    (subject, _), recording = models.subject(case), models.recording(case)
    for text in texts.texts(subject, recording):
        call = recording.calls[text["call"]]
        np.testing.assert_allclose(text["gradients"], np.linalg.norm(call.dys[0][0], axis=-1), rtol=1e-3)
        assert len(text["tokens"]) == call.inputs[0].shape[1]


def test_a_head_that_reads_one_token_passes_a_gradient_to_this_row_alone(models):
    for family, position in ("bert", 0), ("llama", -1):
        folder, given, _ = models.folder(("classify", family))
        text, = made(folder, given)[2]["texts"]
        assert np.flatnonzero(text["lastGradients"]).tolist() == [range(len(text["tokens"]))[position]]
        assert np.count_nonzero(text["gradients"]) > 1


def test_the_steps_of_an_lstm_are_in_the_order_of_the_text(models):
    """Each part of the recurrent matrix's gradient is an outer product of a gradient and the state before it."""
    subject, _ = models.subject(("tag", "lstm"))
    recording = models.recording(("tag", "lstm"))
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


def test_all_calls_that_use_a_parameter_show_the_same_cells(models):
    folder, given, _ = models.folder(("classify", "lstm"))
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
