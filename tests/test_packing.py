"""Packed documents train as if each were in a window of its own."""
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama import device, params
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models import gpt2, llama
from pyllama.pretrained import Model
from pyllama.text import special
from pyllama.text.tokens import evaluation_windows, joined, packed_evaluation_windows, within_documents
from pyllama.training import loop
from pyllama.training.run import RunPolicy
from pyllama.training.text_run import Text, begin
from tests import fakecupy
from tests.laws import close

LLAMA = llama.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, rope_theta=100.0,
                          num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)
GPT2 = gpt2.GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=2, n_head=2)
SETTINGS = loop.Settings(batch_size=3, block_size=12, max_steps=3, learning_rate=0.01, warmup_steps=1, packing=True)
each_model = pytest.mark.parametrize("config", [LLAMA, replace(LLAMA, sliding_window=4), GPT2],
                                     ids=["llama", "llama-window", "gpt2"])
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=12)


def documents(rng, sizes):
    return [rng.integers(0, 50, n).astype(np.uint16) for n in sizes]


@each_model
@given(sizes=lengths.filter(lambda sizes: sum(sizes) > 1), seed=st.integers(0, 99), recompute=st.booleans())
def test_packed_documents_have_the_loss_and_the_gradient_of_single_ones(config, sizes, seed, recompute):
    """In one row, and one by one; the sums over all targets, in float64, to rounding."""
    rng = np.random.default_rng(seed)
    texts, p = documents(rng, sizes), config.model.init(config, seed, "float64")
    ids, segments = np.concatenate(texts)[None].astype(int), np.repeat(rng.permutation(len(sizes)), sizes)[None]
    labels = within_documents(ids, segments)
    value, back = config.model.loss(ids, labels, p, config, segments=segments, count=1, recompute=recompute)
    packed, total = dict(params.leaves(back())), 0.0
    single = {name: np.zeros_like(leaf) for name, leaf in params.leaves(p)}
    for text in texts:
        if len(text) == 1:                                  # it has no target
            continue
        one, one_back = config.model.loss(text[None].astype(int), text[None].astype(int), p, config, count=1)
        total += float(one)
        for name, grad in params.leaves(one_back()):
            single[name] += grad
    close(value, total, 1000, max(1, total))
    for name, grad in packed.items():
        close(grad, single[name], 1e5, max(1, np.abs(single[name]).max()))


@each_model
def test_no_token_depends_on_another_document(config):
    """Bit for bit: the scores of the second document, whatever the first one is, as long as it is."""
    rng = np.random.default_rng(0)
    p, second = config.model.init(config, 0, "float32"), rng.integers(0, 50, 7)
    segments = np.repeat([3, 1], [5, 7])[None]
    scores = []
    for _ in range(2):
        ids = np.concatenate([rng.integers(0, 50, 5), second])[None]
        scores.append(config.model.logits(ids, p, config, segments=segments)[0][:, 5:])
    np.testing.assert_array_equal(*scores)


@each_model
@pytest.mark.parametrize("left", [0, 2, 3])
def test_padding_around_packed_documents_changes_no_score(config, left):
    """On either side; the padding belongs to the first and to the last document, or between them to the second."""
    rng, around = np.random.default_rng(0), (left, 3 - left)
    p, first, second = config.model.init(config, 0, "float64"), *np.split(rng.integers(1, 50, (1, 12)), [5], axis=1)
    want = [config.model.logits(ids, p, config)[0] for ids in (first, second)]
    gap = np.zeros((1, 2), int)
    ids = np.pad(np.concatenate([first, gap, second], axis=1), ((0, 0), around))
    segments = np.repeat([3, 1], [left + 5, 2 + 7 + 3 - left])[None]
    got, _ = config.model.logits(ids, p, config, mask=(ids != 0).astype(int), segments=segments)
    for z, start in zip(want, (left, left + 7), strict=True):
        close(got[:, start:start + z.shape[1]], z, 1000, max(1, np.abs(z).max()))


@given(sizes=lengths.filter(lambda sizes: sum(sizes) > 12), step=st.integers(0, 9))
def test_a_batch_has_the_targets_within_documents_alone(sizes, step):
    tokens = joined([np.full(n, i, np.uint16) for i, n in enumerate(sizes)])         # a token is its document's number
    batch = tokens.batch(SETTINGS, step)
    ids, labels, segments = (batch.inputs[name] for name in ("ids", "labels", "segments"))
    np.testing.assert_array_equal(ids, segments)
    np.testing.assert_array_equal(ids, tokens.batch(replace(SETTINGS, packing=False), step).inputs["ids"])
    same = ids[:, 1:] == ids[:, :-1]
    np.testing.assert_array_equal(labels[:, 1:], np.where(same, ids[:, 1:], -100))
    assert batch.targets == same.sum()


@given(sizes=lengths.filter(lambda sizes: sum(sizes) > 1), rows=st.integers(1, 3))
def test_an_evaluation_has_each_token_but_the_first_of_a_document_once(sizes, rows):
    tokens = joined([np.full(n, i, np.uint16) for i, n in enumerate(sizes)])
    seen = np.concatenate([labels[:, 1:][labels[:, 1:] != -100]
                           for _, labels, _ in packed_evaluation_windows(tokens, rows, 4)])
    assert np.bincount(seen, minlength=len(sizes)).tolist() == [n - 1 for n in sizes]
    for (ids, _, segments), (same_ids, labels) in zip(packed_evaluation_windows(tokens, rows, 4),
                                                      evaluation_windows(tokens, rows, 4), strict=True):
        np.testing.assert_array_equal(ids, same_ids)
        np.testing.assert_array_equal(segments[labels != -100], ids[labels != -100])


@each_model
def test_an_evaluation_is_that_of_the_documents_one_by_one(config):
    """Where no window cuts one."""
    texts = documents(np.random.default_rng(0), [12, 12, 12, 12, 13])
    state, count, total = loop.start(config, replace(SETTINGS, dtype="float64")), 0, 0.0
    for text in texts:
        ids = text[None].astype(int)
        total += float(config.model.loss(ids, ids, state.p, config, count=1)[0])
        count += len(text) - 1
    evaluation = loop.evaluate(state, joined(texts), SETTINGS)
    assert evaluation.tokens == count
    assert evaluation.loss == pytest.approx(total / count, rel=1e-12)


def test_documents_of_one_token_teach_nothing_and_have_no_loss():
    tokens = joined([np.array([i], np.uint16) for i in range(20)])
    state = loop.start(LLAMA, SETTINGS)
    assert [np.isnan(record.loss) for record in loop.train(state, tokens, SETTINGS)] == [True] * 3
    with pytest.raises(UserError, match="none of the 20 evaluation tokens follows another one of its document; give"):
        loop.evaluate(state, tokens, SETTINGS)


@each_model
def test_three_steps_on_a_gpu_are_those_of_the_cpu(config):
    tokens = joined(documents(np.random.default_rng(0), [5, 9, 3, 20, 30]))
    settings = replace(SETTINGS, dtype="float64")
    with fakecupy.installed():
        there, here = loop.start(config, settings, like=device.like("cuda")), loop.start(config, settings)
        for ours, theirs in zip(loop.train(there, tokens, settings), loop.train(here, tokens, settings), strict=True):
            assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-9)


TEXT = "\n<|endoftext|>\n".join(f"document {n} says {n * n} and no more" for n in range(60))


def test_the_command_evaluate_may_keep_documents_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    state = loop.start(replace(LLAMA, vocab_size=300), SETTINGS)
    Model(state.config, state.p, special.byte_pairs([], 260, ["<mask>"])).save(tmp_path / "model")
    targets = []
    for flags in ([], ["--packing"]):
        assert main(["evaluate", "--model", "model", "--data", "text.txt", "--out", "loss.json", *flags]) == 0
        targets.append(json.loads((tmp_path / "loss.json").read_text())["tokens"])
    assert targets[0] - targets[1] == 59                    # the first tokens of 60 documents but the very first


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if '"loss"' in line]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_packed_run_resumes_bit_for_bit(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    run = ["train", "--data", "text.txt", "--model", model, "--tokenizer", "byte", "--packing", "--block_size", "64",
           "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--batch_size", "2",
           "--shards", "1", "--learning_rate", "0.01", "--schedule", "constant", "--warmup_steps", "0"]
    assert main([*run, "--out_dir", "whole", "--max_steps", "6"]) == 0
    assert main([*run, "--out_dir", "parts", "--max_steps", "3"]) == 0
    assert main(["resume", "parts", "--max_steps", "6"]) == 0
    assert main([*[word for word in run if word != "--packing"], "--out_dir", "plain", "--max_steps", "6"]) == 0
    whole, parts, plain = (losses(tmp_path / name) for name in ("whole", "parts", "plain"))
    assert whole == parts != plain


@pytest.mark.parametrize("model", ["bert", "bart"])
def test_models_that_do_not_continue_texts_refuse(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["train", "--data", "text.txt", "--model", model, "--tokenizer", "bpe", "--vocab_size", "300",
                 "--block_size", "16", "--hidden_size", "16", "--num_attention_heads", "2", "--packing"]) == 2
    assert "predicts the next token, such as llama or gpt2" in " ".join(capsys.readouterr().err.split())


def test_tasks_refuse(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "label": "b"}\n' * 9)
    assert main(["finetune", "--task", "classify", "--model", "gpt2", "--data", str(rows), "--packing", "--out_dir",
                 str(tmp_path / "run")]) == 2
    assert "rows are apart already" in " ".join(capsys.readouterr().err.split())


def test_a_file_of_another_program_has_its_documents_at_the_ends(tmp_path):
    tokens = joined([np.array([5, 6, 0, 7, 0, 0, 8], np.uint16)]).ending_with(0)
    assert [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, tokens.stops, strict=True)] == [
        [5, 6, 0], [7, 0], [0], [8]]
    whole = joined([np.array([5, 0], np.uint16)]).ending_with(0)
    assert (whole.starts.tolist(), whole.stops.tolist()) == ([0], [2])
    tokenizer, file = special.byte_pairs([], 260, ["<mask>"]), tmp_path / "tokens.bin"
    np.array([*tokenizer.encode("one"), tokenizer.eos_id] * 40, np.uint16).tofile(file)
    config = replace(LLAMA, vocab_size=tokenizer.vocab_size)
    for packing in (True, False):
        plan = begin(None, config, tokenizer, Text((str(file),)), replace(SETTINGS, packing=packing), RunPolicy())
        assert (len(plan.training.starts) > 30) == packing
