"""Training in bfloat16: the master and its rounded copy, gradients in float32, the commands, what is refused."""
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import pyllama
from pyllama import backend, params
from pyllama.cli import display
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.formats.safetensors import to_safetensors
from pyllama.models import MODELS, llama
from pyllama.models.config import Dimensions
from pyllama.quantization import decoded_tree
from pyllama.text.tokens import Batch, Tokens, windows
from pyllama.training import checkpoint, loop, optim, working
from pyllama.training.optim import is_matrix
from pyllama.training.run import restore, run
from tests import test_objectives
from tests.test_train import CONFIG, HELD_OUT, SHORT, TEXT, RunPolicy

LOW = replace(SHORT, dtype="bfloat16")
EPS = float(np.finfo(np.float32).eps)


def working_of(p):
    """What a model reads of a master p: its matrices rounded by ml_dtypes, its vectors as they are."""
    return {name: a.astype(ml_dtypes.bfloat16) if is_matrix(name, a) else a for name, a in params.leaves(p)}


def assert_same(tree, expected):
    leaves = dict(params.leaves(tree))
    assert leaves.keys() == expected.keys()
    for name, a in leaves.items():
        assert a.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(a.astype(np.float32), expected[name].astype(np.float32), err_msg=name)


def gradient(state, settings, rows=6):
    """(loss, gradient) of the first step, in float32."""
    ids = windows(TEXT, rows, settings.block_size, settings.seed, 0)
    flats = [np.zeros_like(state.flat) for _ in range(settings.shards)]
    batch = Batch({"ids": ids, "labels": ids}, ids[:, 1:].size)
    loss = loop.gradient(state, batch, settings, [params.over(flat, state.p) for flat in flats])
    return loss, sum(flats)


# The master and its copy

@pytest.mark.parametrize("name", backend.available())
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_model_reads_the_master_as_it_is_after_each_step(optimizer, name):
    settings = replace(LOW, optimizer=optimizer, max_steps=3, shards=1)
    state = loop.start(CONFIG, settings)
    assert state.flat.dtype == state.optimizer.dtype == np.float32
    assert_same(state.working.tree, working_of(state.p))
    with backend.use(name):
        steps = [*loop.train(state, TEXT, settings)]
    assert len(steps) == 3
    assert_same(state.working.tree, working_of(state.p))
    for _ in loop.train(state, TEXT, replace(settings, max_steps=6)):
        assert_same(state.working.tree, working_of(state.p))
    assert all(tree is leaf for (name, tree), (_, leaf) in zip(params.leaves(state.working.tree),
               params.leaves(state.p), strict=True) if not is_matrix(name, leaf))


def test_a_copy_is_rounded_in_pieces_without_a_gap(monkeypatch):
    monkeypatch.setattr(optim, "PIECE", 7)
    flat, p = params.flatten(llama.init(CONFIG, 3))
    assert_same(working.Working(flat, p, "bfloat16").tree, working_of(p))


def test_parameters_that_the_caller_sets_are_read_from_the_first_step_on():
    state, other = loop.start(CONFIG, LOW), loop.start(CONFIG, LOW)
    for twin in state, other:
        twin.flat[:] *= 2
    other.working.update()
    assert next(loop.train(state, TEXT, LOW))[:3] == next(loop.train(other, TEXT, LOW))[:3]


def test_updates_that_bfloat16_would_lose_add_up():
    """Ten updates of a tenth of a weight's last place: none changes the copy alone, all together do."""
    settings = replace(LOW, optimizer="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=0.0, schedule="constant",
                       warmup_steps=0, max_steps=10)
    state = loop.start(replace(CONFIG, resid_pdrop=0.0), settings)
    _, g = gradient(state, settings)
    weight, slope = state.p["lm_head"]["weight"], params.over(g, state.p)["lm_head"]["weight"]
    row, column = np.unravel_index(abs(slope).argmax(), slope.shape)
    weight[row, column] = 1                                         # between 1 and 2 the last place is 2 ** -7
    _, g = gradient(state, settings)
    slope = params.over(g, state.p)["lm_head"]["weight"][row, column]
    rate = 2 ** -7 / 10 / abs(float(slope))
    copies = [float(state.working.tree["lm_head"]["weight"][row, column])
              for _ in loop.train(state, TEXT, replace(settings, learning_rate=rate, min_lr=rate))]
    assert copies[0] == 1 or copies[1] == 1
    assert copies[-1] != 1


def test_a_checkpoint_has_the_master_and_a_resumed_state_its_copy(tmp_path):
    state = loop.start(CONFIG, LOW)
    list(run(tmp_path, state, TEXT, HELD_OUT, LOW, RunPolicy(eval_steps=99, save_steps=3), {"text": {}}))
    saved = checkpoint.load(tmp_path)
    assert {a.dtype for a in (*saved.tensors.values(), saved.optimizer["m"])} == {np.dtype(np.float32)}
    assert saved.trainer["settings"]["dtype"] == "bfloat16"
    again = loop.start(CONFIG, replace(LOW, seed=1))
    restore(again, saved)
    np.testing.assert_array_equal(again.flat, state.flat)
    assert_same(again.working.tree, working_of(state.p))
    assert loop.evaluate(again, HELD_OUT, LOW) == loop.evaluate(state, HELD_OUT, LOW)


# Gradients

def test_pieces_and_shards_differ_only_by_the_order_of_float32_sums():
    """A row's activations do not depend on the other rows, so the parts of a sum over rows are the same numbers.

    A sum of n = 30 numbers is off by at most n eps Σ|x|, which is 2 ** 8 eps |Σx| where Σ|x| is 8 |Σx|.  A gradient
    that was rounded to bfloat16 on the way would be off by up to 2 ** -8, which is 2 ** 15 eps.
    """
    whole = replace(LOW, shards=1, micro_batch_size=6)
    state = loop.start(CONFIG, whole)
    loss, expected = gradient(state, whole)
    rows = 6 * whole.block_size
    for shards, piece in ((2, 6), (3, 1), (1, 2)):
        part_loss, split = gradient(state, replace(whole, shards=shards, micro_batch_size=piece))
        assert part_loss == pytest.approx(loss, rel=rows * EPS)
        assert np.linalg.norm(split - expected) <= 8 * rows * EPS * np.linalg.norm(expected)


def test_a_tied_matrix_has_the_sum_of_both_gradients_in_float32():
    tied = replace(CONFIG, tie_word_embeddings=True)
    one, two = loop.start(tied, LOW), loop.start(CONFIG, LOW)
    for name, a in params.leaves(two.p):
        a[...] = dict(params.leaves(one.p)).get(name, one.p["model"]["embed_tokens"]["weight"])
    two.working.update()
    sums, parts = (params.over(gradient(state, LOW)[1], state.p) for state in (one, two))
    a, b = parts["model"]["embed_tokens"]["weight"], parts["lm_head"]["weight"]
    bound = 6 * LOW.block_size * EPS * (abs(a) + abs(b)).max()      # sums over the rows, in another order
    np.testing.assert_allclose(sums["model"]["embed_tokens"]["weight"], a + b, rtol=0, atol=bound)
    np.testing.assert_array_equal(sums["model"]["norm"]["weight"], parts["model"]["norm"]["weight"])


@pytest.mark.parametrize("model", [kind for kind, family in MODELS.items() if family.config.LEARNS])
def test_every_family_learns_from_text_as_in_float32(model):
    """Two steps: one rounding changes a number by 2 ** -8 of it at most, and in the mean over many most cancel.

    Tokens that are hidden have nearly the same vectors before anything is learned, so that the mean is over the numbers
    of a vector: at a width of 16 the norms of 40 seeds differed by up to 2 ** -5.5, at 128 those of 20 by 2 ** -8.7.
    """
    text, config = test_objectives.source(model), test_objectives.configuration(model, width=128)
    steps = [[record[:3] for record in loop.train(loop.start(config, settings), text, settings)] for settings in
             (replace(test_objectives.SETTINGS, dtype=dtype) for dtype in ("float32", "bfloat16"))]
    np.testing.assert_allclose(steps[1], steps[0], rtol=2 ** -8)


def test_recomputing_changes_no_bit():
    state = loop.start(CONFIG, LOW)
    kept, again = (gradient(state, replace(LOW, recompute=recompute)) for recompute in (False, True))
    assert kept[0] == again[0]
    np.testing.assert_array_equal(kept[1], again[1])


@pytest.mark.skipif(not backend.cpu, reason="NumPy has no threads to set")
def test_the_bits_do_not_depend_on_the_number_of_threads():
    before, results = backend.cpu.threads(), []
    config = llama.LlamaConfig.small(Dimensions(vocab_size=64, context=64, head="lm"))
    settings = replace(LOW, batch_size=8, block_size=63, max_steps=2)
    try:
        for threads in (1, 2, 5):
            backend.cpu.set_threads(threads)
            state = loop.start(config, settings)
            results.append([*(record[:3] for record in loop.train(state, TEXT, settings)), state.flat.tobytes()])
    finally:
        backend.cpu.set_threads(before)
    assert results[0] == results[1] == results[2]


def test_a_small_text_is_learned_by_heart_as_in_float32():
    ids = np.tile(np.arange(6, dtype=np.uint16), 30)
    text = Tokens(ids, np.array([0]), np.array([ids.size]))
    settings = loop.Settings(batch_size=4, block_size=8, max_steps=80, learning_rate=0.02, warmup_steps=5,
                             dtype="bfloat16")
    state = loop.start(replace(CONFIG, resid_pdrop=0.0, initializer_range=0.2), settings)
    assert [*loop.train(state, text, settings)][-1].loss < 0.05
    result = loop.evaluate(state, text, settings)
    assert result.accuracy == 1
    assert result.loss < 0.05


def test_a_weight_that_rounds_to_infinity_is_named():
    state = loop.start(CONFIG, LOW)
    state.p["lm_head"]["weight"][1, 2] = 3.4e38                     # the largest bfloat16 is 3.39e38
    with pytest.raises(UserError, match=r"step 1: the parameter lm_head\.weight is not finite"):
        next(loop.train(state, TEXT, LOW))


# Commands

TEXT_FLAGS = ["--n_layer", "2", "--n_head", "2", "--n_embd", "16", "--block_size", "16", "--batch_size", "4",
              "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--shards", "2", "--sample_tokens", "0"]
ROW_FLAGS = ["--vocab_size", "300", "--batch_size", "8", "--shards", "1", "--max_steps", "4", "--max_length", "24"]
ROWS = {"classify": [("a fine film", "good"), ("a dull film", "bad")],
        "qa": [("who came?", "Ada came late.", "Ada"), ("who left?", "Bob left early.", "Bob")],
        "tag": [("Ada came", [[0, 3, "name"]]), ("we left", [])],
        "translate": [("ab", "ba"), ("cd", "dc")]}
FIELDS = {"classify": ("text", "label"), "qa": ("question", "context", "answer"), "tag": ("text", "entities"),
          "translate": ("source", "target")}


def call(capsys, *argv):
    """(exit code, standard output, standard error)"""
    code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    return path


@pytest.fixture
def trained(text, tmp_path, capsys):
    folder = tmp_path / "run"
    assert call(capsys, "train", "--data", text, "--out_dir", folder, *TEXT_FLAGS, "--dtype", "bfloat16")[0] == 0
    return folder


def rounded(path, folder):
    """The model with its matrices rounded to bfloat16, saved in float32."""
    model = pyllama.load(path)
    model.params = params.rebuild(model.params, (a.astype(np.float32) for a in working_of(model.params).values()))
    model.save(folder)
    return folder


def test_a_run_goes_on_bit_for_bit_and_its_model_is_float32(trained, capsys):
    whole = checkpoint.load(trained)
    shutil.rmtree(whole.folder)
    (trained / "latest").write_text("step-00000002\n")
    code, out, _ = call(capsys, "resume", trained)
    again = checkpoint.load(trained)
    assert (code, again.step) == (0, 4)
    assert "steps 2 to 4" in out
    assert all(np.array_equal(again.tensors[name], a) for name, a in whole.tensors.items())
    assert {a.dtype for a in again.tensors.values()} == {np.dtype(np.float32)}


def test_evaluate_rounds_the_matrices_and_leaves_them_alone(text, trained, tmp_path, capsys):
    """A model whose matrices are rounded already has the same loss; without the flag it has another."""
    def loss(model, *flags):
        out = tmp_path / "loss.json"
        assert call(capsys, "evaluate", "--model", model, "--data", text, "--out", out, *flags)[0] == 0
        return json.loads(out.read_text())["loss"]

    same = rounded(trained, tmp_path / "rounded")
    assert loss(trained, "--dtype", "bfloat16") == loss(same, "--dtype", "bfloat16")
    assert loss(trained) != loss(same) != loss(same, "--dtype", "bfloat16")


def test_generate_computes_in_float32_with_matrices_of_16_bits(trained, tmp_path, capsys):
    same = rounded(trained, tmp_path / "rounded")
    words = ["--prompt", "the quick", "--temperature", "0", "--max_new_tokens", "30"]
    assert call(capsys, "generate", "--model", trained, *words, "--dtype", "bfloat16")[1] == \
        call(capsys, "generate", "--model", same, *words)[1]
    model, float32 = pyllama.load(trained, dtype="bfloat16"), pyllama.load(same)
    kinds = {name: getattr(a, "kind", a.dtype.name if isinstance(a, np.ndarray) else "")
             for name, a in params.leaves(model.params)}
    assert kinds == {name: "bf16" if a.ndim == 2 else "float32" for name, a in params.leaves(float32.params)}
    for (_, a), (name, b) in zip(params.leaves(decoded_tree(model.params)), params.leaves(float32.params), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize(("task", "model"), [("classify", "bert"), ("classify", "lstm"), ("qa", "bert"),
                                             ("tag", "distilbert"), ("translate", "transformer")])
def test_tasks_are_trained_and_measured_in_bfloat16(task, model, tmp_path, capsys):
    """The metrics are those of the run's precision, so evaluate --dtype bfloat16 finds them again."""
    rows, run_folder = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text("".join(json.dumps(dict(zip(FIELDS[task], row, strict=True))) + "\n" for row in ROWS[task] * 10))
    code, out, error = call(capsys, "finetune", "--task", task, "--model", model, "--data", rows, "--test_data", rows,
                            "--out_dir", run_folder, *ROW_FLAGS, "--dtype", "bfloat16")
    assert code == 0, error
    metrics = json.loads((run_folder / "metrics.json").read_text())
    out = tmp_path / "metrics.json"
    assert call(capsys, "evaluate", "--model", run_folder, "--data", rows, "--out", out, "--dtype", "bfloat16")[0] == 0
    assert json.loads(out.read_text()).items() <= (metrics | {"task": task}).items()
    assert {a.dtype for a in checkpoint.load(run_folder).tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("words", "sentence"), [
    (["train", "--data", "TEXT", "--device", "cuda"], "bfloat16 is computed only on the CPU; set device to cpu"),
    (["evaluate", "--model", "RUN", "--data", "TEXT", "--device", "cuda"], "bfloat16 is computed only on the CPU"),
    (["generate", "--model", "RUN", "--device", "cuda"], "bfloat16 is computed only on the CPU"),
    (["resume", "RUN"], "resume has no flag --dtype"),
    (["quantize", "RUN", "model.gguf"], "--dtype is 'bfloat16'; it must be one of q8_0, q4_0, f16, bf16"),
])
def test_what_bfloat16_cannot_do_is_said_in_one_sentence(words, sentence, trained, text, capsys):
    words = [{"TEXT": text, "RUN": trained}.get(word, word) for word in words]
    code, _, error = call(capsys, *words, "--dtype", "bfloat16")
    assert code == 2
    assert sentence in error
    assert error.count("\n") == 1


def test_a_gpu_is_refused_where_a_run_is_resumed_on_one():
    with pytest.raises(UserError, match="bfloat16 is computed only on the CPU"):
        loop.start(CONFIG, LOW, like=SimpleNamespace())


@pytest.mark.parametrize(("isa", "sentence"), [
    ("amx", "products by tdpbf16ps, tiles"), ("avx512bf16", "products by vdpbf16ps, pairs"),
    ("avx512", "arithmetic of float32, which is no faster"), (None, "NumPy, which is much slower")])
def test_env_says_what_computes_in_bfloat16_and_a_run_if_that_gains_no_speed(isa, sentence, monkeypatch, capsys):
    monkeypatch.setattr(backend, "cpu", isa and SimpleNamespace(isa=isa))
    assert display.bfloat16().startswith(sentence)
    display.announce("the run", "bfloat16")
    assert (f"bfloat16 by {sentence}" in capsys.readouterr().out) == ("products" not in sentence)
    display.announce("the run")
    assert "bfloat16" not in capsys.readouterr().out


def test_env_has_a_line_on_bfloat16(capsys):
    assert re.search(r"\n +bfloat16 +(products|arithmetic|NumPy)", call(capsys, "env")[1])


# From Python

def test_a_float32_model_trains_in_bfloat16_and_stays_float32(text):
    settings = pyllama.Settings(max_steps=2, batch_size=2, block_size=8, warmup_steps=0, dtype="bfloat16")
    models = [pyllama.create("llama", text, hidden_size=16, num_hidden_layers=1) for _ in range(2)]
    losses = [[record.loss for record in pyllama.train(model, text, replace(settings, dtype=dtype))]
              for model, dtype in zip(models, ("bfloat16", "float32"), strict=True)]
    assert losses[0] != losses[1]
    assert {a.dtype for _, a in params.leaves(models[0].params)} == {np.dtype(np.float32)}


def test_weights_that_are_not_float32_are_refused(text):
    model = pyllama.create("llama", text, hidden_size=16, num_hidden_layers=1, dtype="float64")
    settings = pyllama.Settings(dtype="bfloat16")
    with pytest.raises(UserError, match="which trains weights of float32, but the model's are float64"):
        next(pyllama.train(model, text, settings))
    with pytest.raises(UserError, match=r"'bfloat16'; it must be one of float32, float64$"):
        pyllama.create("llama", text, dtype="bfloat16")


def test_a_model_of_bfloat16_files_is_a_start(text, trained, tmp_path, capsys):
    """A folder whose tensors are bfloat16, as most are that others publish."""
    folder = rounded(trained, tmp_path / "rounded")
    tensors = checkpoint.load(folder).tensors
    low = {name: a.astype(ml_dtypes.bfloat16) for name, a in tensors.items()}
    (folder / checkpoint.MODEL).write_bytes(b"".join(bytes(part) for part in to_safetensors(low)))
    code, _, error = call(capsys, "train", "--data", text, "--init_from", folder, "--out_dir", tmp_path / "next",
                          "--block_size", 16, "--batch_size", 4, "--max_steps", 1, "--sample_tokens", 0, "--dtype",
                          "bfloat16")
    assert code == 0, error
    assert {a.dtype for a in checkpoint.load(tmp_path / "next").tensors.values()} == {np.dtype(np.float32)}
