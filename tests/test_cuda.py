"""The whole GPU path without a GPU: from one op to a run folder, with the stand-in for CuPy."""
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pyllama import device, params
from pyllama.cli.main import main
from pyllama.generation import GenerationConfig, generate
from pyllama.models import gpt2, llama
from pyllama.text.tokens import Tokens
from pyllama.training import checkpoint, loop
from pyllama.training.run import RunPolicy, restore, run
from tests import fakecupy
from tests.another import python
from tests.fakecupy import rules

rules.real()
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="kernels are compiled by g++")

GENERIC = {                                     # file: tests that ask what no device can answer
    "ops": {"test_ops.py": "not beyond and not slopes",             # what both passes compute is the reference's
            "test_frozen_weights.py": "cuda"},
    "laws": {"test_laws.py": "cuda",
             "test_laws_linear.py": "not refuses_ids and not backends",      # IndexError on the CPU; here see below
             "test_laws_loss.py": "not outside_the_vocabulary",
             "test_laws_attention.py": "cuda",
             "test_laws_attention_inputs.py": "cuda"},
    "models": {"test_models.py": "cuda"},
}
SETTINGS = loop.Settings(batch_size=3, block_size=12, gradient_accumulation_steps=2, max_steps=3, learning_rate=0.01,
                          warmup_steps=1, weight_decay=0.1, max_grad_norm=0.5)
LLAMA = llama.LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                          num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, resid_pdrop=0.1)
GPT2 = gpt2.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.1, embd_pdrop=0.1)
each_model = pytest.mark.parametrize("config", [LLAMA, replace(LLAMA, tie_word_embeddings=True), GPT2],
                                     ids=["llama", "llama-tied", "gpt2"])


@pytest.fixture
def cupy():
    with fakecupy.installed() as stand_in:
        yield stand_in


def tokens(n=300, seed=0):
    ids = np.random.default_rng(seed).integers(0, 50, n).astype(np.uint16)
    return Tokens(ids, np.array([0]), np.array([n]))


@pytest.mark.parametrize("files", GENERIC.values(), ids=GENERIC)
def test_the_generic_tests_pass_with_the_kernels_of_the_gpu(files):
    """Ops, laws and whole models, on a few problems each: a kernel's paths are far fewer than the CPU's."""
    which = " or ".join(f"({file} and cuda and {those})" for file, those in files.items())
    done = python("-m", "pytest", "-p", "no:cacheprovider", "-rp", "-k", which, *(f"tests/{file}" for file in files),
                  timeout=900, PYLLAMA_TEST_GPU="1", HYPOTHESIS_PROFILE="few")
    assert done.returncode == 0, done.stdout + done.stderr
    for file in files:
        assert done.stdout.count(f"PASSED tests/{file}::") > 5, done.stdout


# --- training ---------------------------------------------------------------------------------------------------------

@each_model
@pytest.mark.parametrize("frozen", [0, 1], ids=["all", "every-other-frozen"])
@pytest.mark.parametrize(("optimizer", "dtype", "off"), [("adamw", "float64", 1e-9), ("sgd", "float32", 1e-5)])
def test_three_steps_are_those_of_the_cpu(config, optimizer, dtype, off, frozen, cupy):
    """AdamW makes a whole step of a gradient however small, be it nothing but rounding: so in float64 alone."""
    freeze = tuple(name for name, _ in params.leaves(config.model.init(config)))[::2] * frozen
    settings = replace(SETTINGS, optimizer=optimizer, dtype=dtype, freeze=freeze)
    host = loop.start(config, settings)
    there = loop.start(config, settings, like=device.like("cuda"))
    for ours, theirs in zip(loop.train(there, tokens(), settings), loop.train(host, tokens(), settings), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=off)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=off)
    assert {type(leaf) for leaf in (there.flat, *dict(params.leaves(there.p)).values())} == {cupy.ndarray}
    np.testing.assert_allclose(there.flat.get(), host.flat, rtol=0, atol=off)


@each_model
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_waits_once_and_copies_nothing_but_its_batch(config, recompute, cupy):
    """The first step may bring tables to the device; the one that waits for the loss and the norm is the only one."""
    settings = replace(SETTINGS, max_steps=4, recompute=recompute)
    steps = loop.train(loop.start(config, settings, like=device.like("cuda")), tokens(), settings)
    next(steps)
    batch = tokens().batch(settings, 1)
    with fakecupy.counting() as counts:
        next(steps)
    assert counts.syncs == 1
    assert counts.d2h_bytes == 2 * 8
    assert counts.h2d_bytes <= sum(a.nbytes for a in batch.inputs.values())
    assert counts.launches > 10


def test_a_run_is_saved_from_the_gpu_and_resumed_on_either(tmp_path, cupy):
    settings, keeping = replace(SETTINGS, dtype="float64"), RunPolicy(eval_steps=2)

    def state(on):
        return loop.start(LLAMA, settings, like=device.like(on))

    whole, half = state("cuda"), state("cuda")
    list(run(tmp_path / "whole", whole, tokens(), tokens(60, 1), settings, keeping, {}))
    happenings = run(tmp_path / "half", half, tokens(), tokens(60, 1), settings, keeping, {})
    next(happenings)
    happenings.close()
    for on, off in (("cuda", 0), ("cpu", 1e-9)):
        resumed = state(on)
        restore(resumed, checkpoint.load(tmp_path / "half"))
        assert resumed.step == 1
        list(loop.train(resumed, tokens(), settings))
        np.testing.assert_allclose(device.host(resumed.flat), whole.flat.get(), rtol=0, atol=off)


def test_what_is_not_finite_is_traced_on_the_gpu(cupy):
    state = loop.start(LLAMA, SETTINGS, like=device.like("cuda"))
    state.p["model"]["layers"][1]["mlp"]["up_proj"]["weight"][0, 0] = np.inf
    with pytest.raises(loop.UserError, match=r"the parameter model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
        next(loop.train(state, tokens(), SETTINGS))


# --- generating -------------------------------------------------------------------------------------------------------

@each_model
def test_texts_are_continued_as_on_the_cpu(config, cupy):
    """With caches, of prompts of different lengths, beyond the context; each token waits once, for its scores."""
    p = config.model.init(config, 3)
    there = params.rebuild(p, (cupy.asarray(a) for _, a in params.leaves(p)))
    prompts, settings = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], GenerationConfig(max_new_tokens=14, do_sample=True, seed=5)
    wanted = generate(p, config, prompts, None, settings)
    with fakecupy.counting() as counts:
        got = generate(there, config, prompts, None, settings)
    assert [result.ids for result in got] == [result.ids for result in wanted]
    assert counts.syncs <= (28 if config.model is gpt2 else 14)     # GPT-2 looks at the places of padded prompts, too


# --- refusals ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong", [-1, 50, 2 ** 31])
def test_an_id_outside_the_vocabulary_gives_nan(wrong, cupy):
    """Where the CPU raises IndexError: to look would be to wait.  A step then says that its loss is not finite."""
    p = params.rebuild(tree := llama.init(LLAMA), (cupy.asarray(a) for _, a in params.leaves(tree)))
    ids = cupy.asarray(np.array([[1, wrong, 3, 4]]))
    assert np.isnan(llama.loss(ids, cupy.asarray(np.array([[1, 2, 3, 4]])), p, LLAMA)[0].get())
    labels = cupy.asarray(np.array([[1, 2, wrong, 4]]))
    assert np.isnan(llama.loss(cupy.asarray(np.array([[1, 2, 3, 4]])), labels, p, LLAMA)[0].get())


# --- the commands -----------------------------------------------------------------------------------------------------

def test_a_gpu_trains_resumes_measures_and_writes_by_command(tmp_path, cupy, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the cat sat on the mat and the dog ran. " * 40)
    shape = ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--block_size", "16", "--batch_size", "4"]
    for on, folder in (("cuda", out), ("cpu", tmp_path / "cpu")):
        assert main(["train", "--data", str(text), "--out_dir", str(folder), "--device", on, "--max_steps", "6",
                     "--warmup_steps", "1", "--eval_steps", "3", *shape]) == 0
    losses = [[json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
              for folder in (out, tmp_path / "cpu")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert main(["resume", str(out), "--max_steps", "8", "--device", "cuda"]) == 0
    capsys.readouterr()
    said = []
    for on in ("cuda", "cpu"):
        assert main(["eval", "--model", str(out), "--data", str(text), "--device", on]) == 0
        assert main(["generate", "--model", str(out), "--prompt", "the ", "--max_new_tokens", "9", "--temperature", "0",
                     "--device", on]) == 0
        said.append(re.sub(r"\s+", " ", capsys.readouterr().out))
    assert said[0] == said[1]
    assert main(["env"]) == 0
    assert "the stand-in, 80 GiB" in re.sub(r"\s+", " ", capsys.readouterr().out)
