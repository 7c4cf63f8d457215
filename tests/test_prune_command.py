"""The command prune: what it writes, what it prints, what it refuses."""
import re

import numpy as np
import pytest

import pyllama
from pyllama.cli import main
from pyllama.training import checkpoint
from tests.shared import written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text and a model of its letters."""
    folder = tmp_path_factory.mktemp("prune")
    text = written(folder / "text.txt", "".join(np.random.default_rng(0).choice(list("abc d\n"), 3000)))
    model = pyllama.create("llama", str(text), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                           intermediate_size=24, max_position_embeddings=16, seed=3)
    model.save(folder / "model")
    return folder


def test_the_command_writes_a_smaller_model_that_is_trained_on_and_resumed_bit_for_bit(folder, tmp_path, capsys):
    data = ["--data", f"{folder}/text.txt"]
    assert main(["prune", f"{folder}/model", f"{tmp_path}/small", "--heads", "0.25", "--channels", "0.5", *data]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "removed 0 of 2 layers; of the others 2 of 8 key/value heads and 24 of 48 channels" in out
    assert re.search(r"refitted 4 output matrices: squared error of their products [\d.]+% before, [\d.]+% after", out)
    assert re.search(r"perplexity [\d.]+ before, [\d.]+ after: [+-][\d.]+%, over 599 tokens held out", out)
    flags = ["--init_from", f"{tmp_path}/small", *data, "--block_size", "8", "--batch_size", "2", "--warmup_steps", "1",
             "--schedule", "constant", "--sample_tokens", "0"]
    for name, steps in (("whole", "4"), ("halves", "2")):
        assert main(["train", *flags, "--out_dir", f"{tmp_path}/{name}", "--max_steps", steps]) == 0
    assert main(["resume", f"{tmp_path}/halves", "--max_steps", "4"]) == 0
    one, other = (checkpoint.load(tmp_path / name) for name in ("whole", "halves"))
    for name, a in one.tensors.items():
        np.testing.assert_array_equal(a, other.tensors[name], err_msg=name)
    assert pyllama.load(tmp_path / "whole").generate("ab", max_new_tokens=3).startswith("ab")
    capsys.readouterr()
    assert main(["inspect", f"{tmp_path}/whole"]) == 0
    assert "channels in a layer" in " ".join(capsys.readouterr().out.split())
    assert main(["quantize", f"{tmp_path}/small", f"{tmp_path}/small.gguf"]) == 2
    assert "equally many heads and channels in every layer" in capsys.readouterr().err
    assert main(["quantize", f"{tmp_path}/small", f"{tmp_path}/small.gguf", "--padded"]) == 0


def test_nothing_that_is_there_is_replaced(folder, tmp_path, capsys):
    model, half = f"{folder}/model", ["--channels", "0.5"]
    for dst, message in ((model, "are the same folder"), (f"{tmp_path}/a.gguf", "but a folder is written; name one")):
        assert main(["prune", model, dst, *half]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    assert main(["prune", model, f"{tmp_path}/run", *half]) == 2
    said = capsys.readouterr()
    assert "contains a run, which a saved model would damage; choose another folder" in said.err
    assert not said.out                                         # refused before anything is computed
    assert main(["prune", model, f"{tmp_path}/small", *half]) == 0
    assert main(["prune", model, f"{tmp_path}/small", *half]) == 2
    assert "contains a model; give another folder, or --force to replace it" in capsys.readouterr().err
    assert main(["prune", model, f"{tmp_path}/small", *half, "--force"]) == 0
