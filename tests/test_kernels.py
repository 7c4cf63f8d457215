"""The kernels of docs/kernels pass pyllama verify, and fail with a bug.  torch and numba are small stand-ins here, C is
compiled; docs/verify.md has the output of the real ones."""
import io
import re
import shutil
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from pyllama.cli import checking, main
from pyllama.cli.flags import flags_of
from pyllama.ops import rms_norm
from pyllama.testing.named import find
from pyllama.testing.verify import verify
from tests import small_torch
from tests.small_torch import Tensor

KERNELS = Path(__file__).parents[1] / "docs/kernels"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def torch(monkeypatch):
    """What rms_norm_torch.py calls, over NumPy."""
    small_torch.installed(monkeypatch)
    sys.modules["torch"].rsqrt = lambda t: Tensor(t.data ** -0.5)

    def data(x):
        return x.data if isinstance(x, Tensor) else x

    for name, method in {
            "__mul__": lambda a, b: Tensor(a.data * data(b)), "__sub__": lambda a, b: Tensor(a.data - data(b)),
            "__add__": lambda a, b: Tensor(a.data + data(b)),
            "reshape": lambda a, *shape: Tensor(a.data.reshape(shape)),
            "mean": lambda a, axis, keepdim: Tensor(a.data.mean(axis, keepdims=keepdim)),
            "sum": lambda a, axis: Tensor(a.data.sum(axis))}.items():
        monkeypatch.setattr(Tensor, name, method, raising=False)


@pytest.fixture
def numba(monkeypatch):
    """A numba whose compiled functions are the Python ones."""
    module = types.ModuleType("numba")
    module.njit = lambda function: function
    monkeypatch.setitem(sys.modules, "numba", module)


needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler named cc on this machine")
EACH = pytest.mark.parametrize(("name", "words"), [
    ("torch", ["--arrays", "torch"]), ("numba", []),
    pytest.param("ctypes", ["--backward", "{file}:backward"], marks=needs_cc)])
BUGS = {"torch": ("g * n", "g"), "numba": ("r * r * gx", "r * gx"), "ctypes": ("x[n][d] * r * gn", "x[n][d] * gn")}


@pytest.fixture
def ctypes():
    """The real one."""


def command(file, words, capsys):
    words = [word.format(file=file) for word in words]
    return main(["verify", f"{file}:rms_norm", "--op", "rms_norm", "--seed", "1", "--problems", "8", *words]), \
        capsys.readouterr().out


@EACH
def test_the_kernel_is_right_and_nothing_is_left_out(name, words, capsys, request):
    request.getfixturevalue(name)
    code, out = command(KERNELS / f"rms_norm_{name}.py", words, capsys)
    assert code == 0, out
    assert out.count("  right  ") + out.count("  right\n") == 9, out
    assert "refused" not in out
    assert "not passed" not in out


@EACH
def test_a_bug_in_its_backward_pass_is_found(name, words, capsys, tmp_path, request, monkeypatch):
    request.getfixturevalue(name)
    shutil.copytree(KERNELS, tmp_path / "kernels")
    changed = tmp_path / "kernels" / ("rms_norm.c" if name == "ctypes" else f"rms_norm_{name}.py")
    before, after = BUGS[name]
    source = changed.read_text("utf-8")
    assert source.count(before) == 1
    changed.write_text(source.replace(before, after), "utf-8")
    code, out = command(tmp_path / "kernels" / f"rms_norm_{name}.py", words, capsys)
    assert code == 1
    assert "wrong: gradients, sizes, options, layouts, dtypes, scales\n" in out
    assert "The smallest call found, gradients: dx[" in out
    case = out.partition("The smallest call found, gradients")[2].partition("\n\n")[2].partition("The smallest")[0]
    monkeypatch.setattr(sys, "stdout", printed := io.StringIO())
    exec(textwrap.dedent(case), {})
    theirs, ours = printed.getvalue().splitlines()
    assert theirs.partition("array(")[2] != ours.partition("array(")[2]


@pytest.mark.parametrize("page", ["verify.md", "vectors.md"])
def test_the_python_of_the_pages_runs_and_their_flags_exist(page):
    text = (KERNELS.parent / page).read_text("utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})
    known = {flag.name for command in (checking.verify, checking.export_vectors) for flag in flags_of(command)}
    assert {*re.findall(r"--([a-z_]+)", text)} <= known


@pytest.mark.usefixtures("torch")
def test_tensors_need_the_word_and_no_backward():
    function = find(f"{KERNELS}/rms_norm_torch.py:rms_norm")
    assert not verify(function, rms_norm, seed=0, problems=1)
    with pytest.raises(ValueError, match="torch has the gradients of a function of its arrays; leave backward out"):
        verify(function, rms_norm, rms_norm.backward, arrays="torch")


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"^torch cannot be imported: .*; install it, or leave arrays out$"):
        verify(lambda x, w: x, rms_norm, arrays="torch")


@pytest.mark.usefixtures("torch")
def test_what_a_function_of_tensors_does_to_its_inputs_is_seen():
    def doubles(x, w, *, eps=1e-5):
        y = Tensor(x.data / np.sqrt((x.data ** 2).mean(-1, keepdims=True) + eps) * w.data)
        x.data *= 2
        return y

    found = verify(doubles, rms_norm, arrays="torch", seed=0)
    assert found["values"].verdict == "right"
    assert found["aliasing"].mistake.sentence == "doubles changes its input x; work on a copy"
