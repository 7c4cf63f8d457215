"""How verify passes an op's inputs and options to somebody else's function; the command; wrong use."""
import json
import re
import sys
from pathlib import Path

import pytest

from pyllama.cli import main
from pyllama.op import OPS, op
from pyllama.ops import attention, dropout, linear, rms_norm
from pyllama.testing.verify import verify
from pyllama.testing.verify.adapter import Adapter
from tests.test_verify import norm, wrong


@pytest.mark.parametrize(("kernel", "notes"), [
    (lambda x, w: linear(x, w), ["b"]), (lambda x, w, b=None: linear(x, w, b), []),
    (lambda x, w, bias=None: linear(x, w, bias), []), (lambda x, w, *b: linear(x, w, *b), []),
    (lambda x, w, **b: linear(x, w), ["b"]), (lambda x, w, /, transposed=False: linear(x, w), ["b"]),
    (lambda x, w, *, b: linear(x, w, b), [])])
def test_an_optional_input_goes_to_the_parameter_that_may_be_its(kernel, notes):
    found = verify(kernel, linear, seed=0)
    assert found, str(found)
    assert [note.partition(":")[0] for note in found.notes] == notes


def test_optional_inputs_in_the_middle_may_be_left_out():
    def biased(q, k, v, *, bias=None, causal=False):
        y, back = attention(q, k, v, bias=bias, causal=causal)
        return y, lambda dy: [g for i, g in enumerate(back(dy)) if i not in (3, 4)]

    found = verify(biased, attention, seed=0)
    assert found, str(found)
    assert [note.partition(":")[0] for note in found.notes] == ["mask", "segments", "window", "scale", "softcap"]


def test_options_are_renamed_fixed_or_left_at_their_default():
    def epsilon(x, w, epsilon=1e-6):
        return norm(x, w, eps=epsilon)

    assert verify(epsilon, rms_norm, rename={"eps": "epsilon"}, seed=0)
    found = verify(epsilon, rms_norm, seed=0)
    assert found.notes == ("eps: epsilon has no parameter of this name, so rms_norm uses 1e-05",)
    assert "values" in wrong(found)
    assert verify(epsilon, rms_norm, fix={"eps": 1e-6}, seed=0)
    assert verify(lambda x: dropout(x, rate=0.5, key=(1,)), dropout, fix={"rate": 0.5, "key": (1,)}, seed=0)


def forward_with_saved(x, w, eps=1e-5):
    y, saved = rms_norm.forward(x, w, eps=eps)
    return y, list(saved)


def backward_of_inputs(dy, x, w, eps=1e-5):
    return norm(x, w, eps=eps)[1](dy)


@pytest.mark.parametrize(("kernel", "backward", "saved"), [
    (lambda x, w, eps=1e-5: norm(x, w, eps=eps)[0], backward_of_inputs, False),
    (forward_with_saved, rms_norm.backward, True)])
def test_the_backward_pass_may_be_a_function_of_its_own(kernel, backward, saved):
    found = verify(kernel, rms_norm, backward, saved=saved, seed=0)
    assert found, str(found)
    assert found["gradients"].verdict == "right"
    doubled = verify(kernel, rms_norm, lambda dy, *rest, **options: [2 * g for g in backward(dy, *rest, **options)],
                     saved=saved, seed=0)
    assert doubled["gradients"].mistake.what == "dx"
    assert ("y, saved = f(" if saved else "backward(dy, x, w") in doubled["gradients"].case


@pytest.mark.parametrize(("kernel", "sentence"), [
    (lambda x: x, "<lambda> takes 1 argument by position, but rms_norm passes x, w; let it take these"),
    (lambda x, w, n: x, "<lambda> needs n, which rms_norm does not pass; give it a default value, or say which option "
                        "it is with rename"),
    (lambda x, w, *, n: x, "<lambda> needs n, which rms_norm does not pass; give it a default value, or say which "
                           "option it is with rename")])
def test_a_function_that_cannot_be_called_so_is_one_sentence(kernel, sentence):
    with pytest.raises((TypeError, ValueError)) as error:
        verify(kernel, rms_norm)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("options", "sentence"), [
    ({"saved": True}, "saved is for a backward pass that takes what the forward pass saved; give backward, too"),
    ({"fix": {"epsilon": 1}}, "rms_norm has no option 'epsilon'; it has eps"),
    ({"rename": {"b": "bias"}}, "rms_norm has no option or optional input 'b'; it has eps"),
    ({"dtype": "float8"}, "dtype is 'float8'; it must be 'float64', 'float32', 'float16' or 'bfloat16'")])
def test_a_wrong_argument_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        verify(norm, rms_norm, **options)


def test_an_option_without_a_default_must_be_known(monkeypatch):
    monkeypatch.setattr("pyllama.op.OPS", OPS.copy())
    scaled = op("x[N] -> y[N]", lambda x, *, by: (x * by, ()), lambda dy, *, by: (dy * by,), name="scaled", by=[2, 3])
    assert verify(lambda x, by: (x * by, lambda dy: dy * by), scaled, seed=0)
    assert verify(lambda x: (x * 3, lambda dy: dy * 3), scaled, fix={"by": 3}, seed=0)
    with pytest.raises(ValueError, match="has no parameter 'by', which scaled needs; add it, or give"):
        verify(lambda x: x, scaled)


MINE = '''
import numpy as np
def norm(x, w, *, eps=1e-5):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    return x * r * w
def backward(dy, x, w, *, eps=1e-5):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    g = dy * w
    return r * g - x * r ** 3 * (g * x).mean(-1, keepdims=True), (dy * x * r).sum(tuple(range(dy.ndim - 1)))
def wrong(dy, x, w, *, eps=1e-5):
    return backward(dy, x, np.ones_like(w), eps=eps)
def other(x, w, epsilon=1e-3):
    return norm(x, w, eps=epsilon)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_kernel.py").write_text(MINE)


def call(capsys, *argv):
    return main([str(word) for word in argv]), *capsys.readouterr()


def test_the_command_prints_the_table_and_the_counterexample(mine, capsys, tmp_path):
    words = ["verify", "my_kernel.py:norm", "--op", "rms_norm", "--seed", 4]
    code, out, err = call(capsys, *words, "--backward", "my_kernel.py:backward")
    assert (code, err) == (0, "")
    assert "nothing is wrong" in out
    code, out, _ = call(capsys, *words, "--backward", "my_kernel.py:wrong", "--only_wrong", "--json", "found.json")
    assert code == 1
    assert "gradients" in out
    assert "values" not in out
    assert "\n    f = find('my_kernel.py:norm')\n    backward = find('my_kernel.py:wrong')\n" in out
    saved = json.loads((tmp_path / "found.json").read_text())
    assert (saved["right"], saved["seed"]) == (False, 4)
    assert {p["name"]: p["verdict"] for p in saved["properties"]}["gradients"] == "wrong"
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "not tried  the function returns y alone; give its backward pass" in out


@pytest.mark.parametrize(("dtype", "verdict"), [("float16", "wrong"), ("bfloat16", "right")])
def test_the_command_checks_a_kernel_of_a_half_precision(dtype, verdict, mine, capsys):
    """NumPy adds squares in float32, but those of 1e3 overflow in float16."""
    code, out, err = call(capsys, "verify", "my_kernel.py:norm", "--op", "rms_norm", "--seed", 4, "--dtype", dtype,
                          "--problems", 4)
    assert (code, err) == (int(verdict == "wrong"), "")
    lines = {line.split()[0]: line for line in out.splitlines()[3:13]}
    assert " right " in lines["values"]
    assert f" {verdict} " in lines["scales"]


def test_the_command_takes_options_by_other_names(mine, capsys):
    words = ["verify", "my_kernel.py:other", "--op", "rms_norm"]
    assert call(capsys, *words, "--rename", "eps=epsilon")[0] == 0
    assert call(capsys, *words, "--fix", "eps=1e-3")[0] == 0
    assert call(capsys, *words)[0] == 1


@pytest.mark.parametrize(("words", "sentence"), [
    (["my_kernel.py:norm", "--op", "rmsnorm"], "there is no op 'rmsnorm'; did you mean rms_norm?"),
    (["my_kernel.py:nrm", "--op", "rms_norm"], "my_kernel has no 'nrm'; did you mean norm?"),
    (["my_kernel.py:norm", "--op", "my_kernel.py:norm"], "my_kernel.py:norm is not an op; name one of pyllama, or one "
                                                         "that pyllama.op.op() made"),
    (["my_kernel.py:norm", "--op", "softmax"], "norm needs w, which softmax does not pass; give it a default value, or "
                                               "say which option it is with rename"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--fix", "eps"], "--fix is 'eps'; write NAME=VALUE"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--fix", "eps=small"],
     "--fix eps is 'small'; write a number, True, None or a string in quotes"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--problems", "0"], "problems is 0; it must be at least 1"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--seed", "-1"], "seed is -1; it must be at least 0"),
    (["my_kernel.py:norm", "--op", "rms_norm", "--json", "none/found.json"],
     "the folder none of --json does not exist; create it, or name another file"),
    (["my_kernel.py:norm"], "verify needs --op (op to compare with); see `pyllama verify --help`"),
])
def test_wrong_use_of_the_command_is_one_sentence(mine, capsys, words, sentence):
    code, out, err = call(capsys, "verify", *words)
    assert (code, out) == (2, "")
    assert " ".join(err.split()) == f"pyllama: {sentence}"


def test_a_kernel_that_ends_python_is_refused_in_one_sentence(mine, capsys):
    Path("ends.py").write_text("def norm(x, w, *, eps=1e-5):\n    raise SystemExit(0)\n")
    code, out, err = call(capsys, "verify", "ends.py:norm", "--op", "rms_norm")
    assert (code, out) == (2, "")
    assert err.startswith("pyllama: ends.py:norm ended Python: SystemExit: 0 (line 2 of ends.py); let it return")


def test_the_adapter_passes_by_keyword_what_has_a_name():
    seen = {}

    def f(q, k, v, bias=None, *, causal=False):
        seen.update(bias=bias, causal=causal)
        return q

    adapter = Adapter(f, attention)
    adapter(1, 2, 3, 4, causal=True, window=5)
    assert seen == {"bias": 4, "causal": True}
