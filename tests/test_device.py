"""Devices: the three reasons why a GPU is missing, and reading numbers from either device."""
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pyllama import device, params
from pyllama.cli.main import main
from pyllama.errors import UserError
from pyllama.models import llama
from pyllama.training.loop import Settings, start


class CUDARuntimeError(RuntimeError):
    pass


def cupy_with(count):
    def counted():
        if isinstance(count, Exception):
            raise count
        return count

    found = ModuleType("cupy")
    found.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=counted, CUDARuntimeError=CUDARuntimeError))
    return found


REASONS = {
    "missing": (None, r"a GPU needs cupy, which is not installed: pip install '.*\[cuda13\]'"),
    "no driver": (cupy_with(CUDARuntimeError("cudaErrorInsufficientDriver")), r"finds no GPU: cudaErrorInsuff.*driver"),
    "no device": (cupy_with(0), r"the driver offers no GPU; check CUDA_VISIBLE_DEVICES"),
}


@pytest.mark.parametrize(("found", "sentence"), REASONS.values(), ids=REASONS)
@pytest.mark.parametrize("command", ["train", "resume", "eval", "generate"])
def test_why_there_is_no_gpu_is_said_before_any_work(command, found, sentence, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "cupy", found)
    monkeypatch.chdir(tmp_path)
    flags = {"train": ["--data", "none.txt"], "resume": ["none"], "eval": ["--model", "none", "--data", "none.txt"],
             "generate": ["--model", "none"]}[command]
    assert main([command, *flags, "--device", "cuda"]) == 2
    with pytest.raises(UserError, match=sentence):
        device.like("cuda")
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("why", ["libcudart.so.13: cannot open shared object file", "No module named 'fastrlock'"])
def test_a_broken_cupy_is_distinguished_from_a_missing_one(why, monkeypatch, tmp_path):
    kind = "ModuleNotFoundError" if "module" in why else "ImportError"
    (tmp_path / "cupy.py").write_text(f"raise {kind}({why!r}, name='fastrlock')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(UserError, match=f"does not load: {why}"):
        device.like("cuda")


def test_on_the_host_nothing_is_copied_and_numbers_are_read_as_they_are():
    x = np.arange(3.0)
    assert device.host(x) is x
    assert device.read(2, np.float32(0.1), np.float64(0.1)) == [2.0, float(np.float32(0.1)), 0.1]
    c = llama.LlamaConfig(vocab_size=5, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    flat, tree = params.flatten(llama.init(c))
    assert np.array_equal(start(c, Settings(), tree, device.like("cpu")).flat, flat)
